// Package trace follows the first packet of a flow through networks and rules.
package trace

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netyard/kernel/explain"
	"netyard/kernel/ports"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
)

// ErrQuestion says that a trace was asked for something that is no client, target or port.
var ErrQuestion = errors.New("bad question")

// Host is how a trace names the host as a client.
const Host = "host"

// A Trace says what a packet meets on its way.
type Trace struct {
	// Steps are in the order of the way.
	Steps []string `json:"steps"`
	// Reachable is "yes", "no" or "unsure".
	Reachable string `json:"reachable"`
}

// Follow follows the first packet of a flow. from is an address, a container or Host; to is PORT of this host, or
// CONTAINER:PORT; either with /udp or /sctp behind it. v6 asks for IPv6 where an address does not say so.
func Follow(y *yard.Yard, from, to string, v6 bool) (Trace, error) {
	t := &tracer{y: y, v6: v6, reach: explain.Passes}
	if err := t.parse(from, to); err != nil {
		return Trace{}, err
	}
	follow := t.toContainer
	if t.dstEndpoint.ID == "" {
		follow = t.toHost
	}
	err := follow()
	word := map[explain.Outcome]string{explain.Passes: "yes", explain.Dropped: "no", explain.Passes | explain.Dropped: "unsure"}
	return Trace{Steps: t.steps, Reachable: word[t.reach]}, err
}

// A tracer follows one packet.
type tracer struct {
	y           *yard.Yard
	v6          bool
	src         netip.Addr // invalid: the host
	srcEndpoint modes.Endpoint
	dstEndpoint modes.Endpoint
	proto       string
	port        uint16

	steps []string
	reach explain.Outcome
}

func (t *tracer) say(format string, a ...any) { t.steps = append(t.steps, fmt.Sprintf(format, a...)) }

func (t *tracer) no(format string, a ...any) {
	t.say(format, a...)
	t.reach = explain.Dropped
}

// parse reads the question.
func (t *tracer) parse(from, to string) (err error) {
	what, proto, found := strings.Cut(to, "/")
	if t.proto = proto; !found {
		t.proto = "tcp"
	}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, t.proto) {
		return fmt.Errorf("%w: protocol %q: want tcp, udp or sctp", ErrQuestion, proto)
	}
	name, port := "", what
	if at := strings.LastIndexByte(what, ':'); at >= 0 {
		name, port = what[:at], what[at+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%w: %q: want PORT, or CONTAINER:PORT", ErrQuestion, to)
	}
	t.port = uint16(n)
	if a, err := netip.ParseAddr(from); err == nil {
		t.src, t.v6 = a.Unmap(), a.Unmap().Is6()
	} else if from != Host {
		if t.srcEndpoint, err = placeOf(t.y, from, ""); err != nil {
			return err
		}
	}
	if name == "" || name == Host {
		return nil
	}
	t.dstEndpoint, err = placeOf(t.y, name, t.srcEndpoint.NetworkID)
	if err == nil && t.srcEndpoint.ID != "" && t.srcEndpoint.NetworkID != t.dstEndpoint.NetworkID {
		if in, err := placeOf(t.y, from, t.dstEndpoint.NetworkID); err == nil && in.NetworkID == t.dstEndpoint.NetworkID {
			t.srcEndpoint = in
		}
	}
	return err
}

// placeOf finds an endpoint by its container, one in the preferred network if there are several.
func placeOf(y *yard.Yard, ref, network string) (modes.Endpoint, error) {
	es, err := y.Endpoints()
	if err != nil {
		return modes.Endpoint{}, err
	}
	var found []modes.Endpoint
	for _, e := range es {
		if e.Container.Name == ref || e.ID == ref {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b modes.Endpoint) int {
		return cmp.Or(cmp.Compare(b2i(a.NetworkID != network), b2i(b.NetworkID != network)), cmp.Compare(a.NetworkID, b.NetworkID))
	})
	if len(found) > 0 {
		return found[0], nil
	}
	return y.FindEndpoint(ref)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// address is an endpoint's address of the family asked for.
func (t *tracer) address(e modes.Endpoint) (netip.Addr, error) {
	for _, a := range e.Addrs {
		if a.Addr().Is6() == t.v6 {
			return a.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: %s has no %s address", ErrQuestion, nameOf(e), map[bool]string{false: "IPv4", true: "IPv6"}[t.v6])
}

func nameOf(e modes.Endpoint) string {
	if e.Container.Name != "" {
		return "container " + e.Container.Name
	}
	return "endpoint " + modes.Short(e.ID)
}

// source fills in where the packet comes from.
func (t *tracer) source(p *explain.Packet) error {
	switch {
	case t.srcEndpoint.ID != "":
		n, err := t.y.Network(t.srcEndpoint.NetworkID)
		if err != nil {
			return err
		}
		if p.Src, err = t.address(t.srcEndpoint); err != nil {
			return err
		}
		if p.In = t.y.BridgeOf(n); p.In == "" {
			return fmt.Errorf("%w: network %s is of mode %s: what it sends does not pass this host's rules", ErrQuestion, book.Label(n), n.Mode)
		}
		t.say("%s sends from %s on network %s: it comes in by %s", nameOf(t.srcEndpoint), p.Src, book.Label(n), p.In)
	case t.src.IsValid():
		p.Src = t.src
		own, err := sandbox.HasAddr(t.y.Config.Kernel.Handle, t.src)
		if err != nil {
			return err
		}
		if own {
			t.say("%s is the host's own address", t.src)
			return nil
		}
		if p.In, _, err = explain.RouteTo(t.y.Config.Kernel.Handle, t.src); err != nil {
			return err
		}
		t.say("%s comes in by %s, which the host reaches it by", t.src, p.In)
	}
	return nil
}

// judge has the rules at a hook decide.
func (t *tracer) judge(h explain.Hook, p explain.Packet) error {
	if t.reach == explain.Dropped {
		return nil
	}
	found, sum, err := explain.Judge(t.y.Config.Kernel.Handle, h, p)
	if err != nil {
		return err
	}
	for _, j := range found {
		who := ""
		if j.Foreign {
			who = "not netyard's: "
		}
		if j.Outcome == explain.Dropped {
			t.say("%s: dropped by %s%s", h, who, j.Rule)
		} else {
			t.say("%s: may be dropped by %s%s; netyard cannot tell", h, who, j.Rule)
		}
	}
	switch {
	case sum == explain.Dropped && t.reach == explain.Passes|explain.Dropped, sum == explain.Dropped:
		t.reach = explain.Dropped
	case sum != explain.Passes:
		t.reach = explain.Passes | explain.Dropped
	default:
		t.say("%s: no rule drops it", h)
	}
	return nil
}

// toContainer follows a packet for a container's own address.
func (t *tracer) toContainer() error {
	n, err := t.y.Network(t.dstEndpoint.NetworkID)
	if err != nil {
		return err
	}
	p := explain.Packet{Proto: t.proto, Port: t.port, Out: t.y.BridgeOf(n)}
	if p.Dst, err = t.address(t.dstEndpoint); err != nil {
		return err
	}
	if p.Out == "" && !t.src.IsValid() && t.srcEndpoint.ID == "" {
		p.Out = wayTo(t.y, n)
	}
	if p.Out == "" {
		return fmt.Errorf("%w: network %s is of mode %s: what is for it does not pass this host's rules", ErrQuestion, book.Label(n), n.Mode)
	}
	if err := t.source(&p); err != nil {
		return err
	}
	if !p.Src.IsValid() {
		_, p.Src, err = explain.RouteTo(t.y.Config.Kernel.Handle, p.Dst)
		if err != nil {
			return err
		}
		t.say("the host sends from %s", p.Src)
	}
	t.say("it is for %s of %s on network %s: it leaves by %s", p.Dst, nameOf(t.dstEndpoint), book.Label(n), p.Out)
	err = t.pass(p, n)
	if err == nil && t.reach != explain.Dropped {
		t.redirected(p)
	}
	return err
}

// pass follows a packet through the hooks on its way to a container on network n.
func (t *tracer) pass(p explain.Packet, n modes.Network) error {
	if state := t.y.State(t.dstEndpoint); state != "up" {
		t.no("%s is not there to answer: it is %s", nameOf(t.dstEndpoint), state)
		return nil
	}
	if p.In == p.Out && !p.OrigDst.IsValid() {
		if t.y.Traits(n).Isolated {
			t.no("network %s keeps its containers apart (icc=false): the bridge does not hand it on", book.Label(n))
			return nil
		}
		if !explain.BridgedSeen(t.y.Config.Kernel.Handle, p.Dst.Is6()) {
			t.say("it stays on the bridge, where no rule for routed packets sees it")
			return nil
		}
		t.say("it stays on the bridge, and br_netfilter shows it to the rules for routed packets all the same")
	}
	if p.In == "" {
		if err := t.judge(explain.Output, p); err != nil {
			return err
		}
	} else {
		before := p
		if p.OrigDst.IsValid() {
			before.Dst, before.Port, before.Local, before.OrigDst = p.OrigDst, p.OrigPort, true, netip.Addr{}
		}
		before.Out = ""
		if err := t.judge(explain.Prerouting, before); err != nil {
			return err
		}
		if err := t.judge(explain.Forward, p); err != nil {
			return err
		}
	}
	p.In = ""
	return t.judge(explain.Postrouting, p)
}

// toHost follows a packet for a port of the host.
func (t *tracer) toHost() error {
	p := explain.Packet{Proto: t.proto, Port: t.port, Local: true}
	if err := t.source(&p); err != nil {
		return err
	}
	e, port, err := t.publication(p.In == "")
	if err != nil {
		return err
	}
	if e.ID == "" {
		return t.notPublished(p)
	}
	n, err := t.y.Network(e.NetworkID)
	if err != nil {
		return err
	}
	t.dstEndpoint = e
	if p.Dst, err = t.hostAddr(port, p); err != nil {
		return err
	}
	if !p.Src.IsValid() {
		p.Src = p.Dst
	}
	if p.In != "" && ports.Obeys(t.y.Config.Kernel.Handle) {
		t.say("the host's own firewall decides about published ports (publish=host)")
		if err := t.judge(explain.Input, p); err != nil || t.reach == explain.Dropped {
			return err
		}
	}
	to, err := t.address(e)
	if err != nil {
		return err
	}
	t.say("port %d/%s is published by %s on network %s (%s)", t.port, t.proto, nameOf(e), book.Label(n), port)
	p.OrigDst, p.OrigPort = p.Dst, p.Port
	p.Dst, p.Port, p.Local, p.Out = to, port.ContainerPort+(t.port-port.HostPort), false, wayTo(t.y, n)
	t.say("it is translated to %s port %d, and leaves by %s", p.Dst, p.Port, p.Out)
	return t.pass(p, n)
}

// hostAddr is the address of the host that the packet is taken to be for.
func (t *tracer) hostAddr(port modes.Port, p explain.Packet) (netip.Addr, error) {
	if !port.HostIP.IsUnspecified() {
		return port.HostIP, nil
	}
	to := t.src
	if t.srcEndpoint.ID != "" {
		to = p.Src
	}
	if !to.IsValid() {
		if t.v6 {
			return netip.IPv6Loopback(), nil
		}
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	_, src, err := explain.RouteTo(t.y.Config.Kernel.Handle, to)
	return src, err
}

// publication finds who has published the port, for a client that is the host itself or not.
func (t *tracer) publication(own bool) (found modes.Endpoint, port modes.Port, err error) {
	es, err := t.y.Endpoints()
	if err != nil {
		return found, port, err
	}
	for _, e := range es {
		for _, p := range e.Ports {
			if p.Routed || p.Proto != t.proto || t.port < p.HostPort || t.port-p.HostPort >= max(p.Count, 1) || p.HostIP.Is6() != t.v6 {
				continue
			}
			if p.HostIP.IsLoopback() && !own {
				t.say("%s publishes it on loopback only (%s), which nobody else reaches", nameOf(e), p)
				continue
			}
			found, port = e, p
		}
	}
	return found, port, nil
}

// notPublished follows a packet for the host itself.
func (t *tracer) notPublished(p explain.Packet) error {
	t.say("no container of netyard's publishes port %d/%s for such a client", t.port, t.proto)
	ls, err := sandbox.Listeners(t.y.Config.Kernel.Handle)
	if err != nil {
		return err
	}
	for _, l := range ls {
		a := netip.IPv4Unspecified()
		if t.v6 {
			a = netip.IPv6Unspecified()
		}
		if !l.Takes(t.proto, a, t.port, 1) || l.Addr.IsLoopback() && p.In != "" {
			continue
		}
		t.say("%s of the host listens on it", l.Owner())
		if p.In == "" {
			return nil
		}
		if _, p.Dst, err = explain.RouteTo(t.y.Config.Kernel.Handle, p.Src); err != nil {
			return err
		}
		if err := t.judge(explain.Prerouting, p); err != nil {
			return err
		}
		return t.judge(explain.Input, p)
	}
	t.no("and no program of the host listens on it")
	return nil
}
