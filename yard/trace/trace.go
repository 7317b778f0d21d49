// Package trace follows the first packet of a flow through the host's networks and firewall rules.
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
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
)

// ErrRequest is matched by every error about the client, target or port of a trace.
var ErrRequest = errors.New("refused trace")

// A refusal is an ErrRequest that names the reason, and no more.
type refusal struct{ error }

func (refusal) Is(target error) bool { return target == ErrRequest }

// refuse returns an error that says why a trace is refused.
func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// Host names the host as the client of a trace.
const Host = "host"

// A Trace is the path of a packet.
type Trace struct {
	// Steps are in the order in which the packet takes them.
	Steps []string `json:"steps"`
	// Reachable is "yes", "no" or "unsure".
	Reachable string `json:"reachable"`
}

// Follow follows the first packet of a flow. from is an address, a container or Host; to is PORT of this host, or
// CONTAINER:PORT, with /udp or /sctp appended if it is not TCP. v6 selects IPv6 if from is not an address.
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
	word := map[explain.Outcome]string{
		explain.Passes: "yes", explain.Dropped: "no", explain.Passes | explain.Dropped: "unsure",
	}
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
	to    netip.AddrPort // where another program's rule has translated the packet to
}

// say adds a step.
func (t *tracer) say(format string, a ...any) { t.steps = append(t.steps, fmt.Sprintf(format, a...)) }

// drop adds the step at which the packet is dropped.
func (t *tracer) drop(format string, a ...any) {
	t.say(format, a...)
	t.reach = explain.Dropped
}

// parse reads the client and the target.
func (t *tracer) parse(from, to string) (err error) {
	what, proto, found := strings.Cut(to, "/")
	if t.proto = proto; !found {
		t.proto = "tcp"
	}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, t.proto) {
		return refuse("protocol %q: want tcp, udp or sctp", proto)
	}
	name, port := "", what
	if at := strings.LastIndexByte(what, ':'); at >= 0 {
		name, port = what[:at], what[at+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return refuse("%q: want PORT, or CONTAINER:PORT", to)
	}
	t.port = uint16(n)
	if a, err := netip.ParseAddr(from); err == nil {
		t.src, t.v6 = a.Unmap(), a.Unmap().Is6()
	} else if from != Host {
		if t.srcEndpoint, err = endpointOf(t.y, from, ""); err != nil {
			return err
		}
	}
	if name == "" || name == Host {
		return nil
	}
	t.dstEndpoint, err = endpointOf(t.y, name, t.srcEndpoint.NetworkID)
	if err == nil && t.srcEndpoint.ID != "" && t.srcEndpoint.NetworkID != t.dstEndpoint.NetworkID {
		in, err := endpointOf(t.y, from, t.dstEndpoint.NetworkID)
		if err == nil && in.NetworkID == t.dstEndpoint.NetworkID {
			t.srcEndpoint = in
		}
	}
	return err
}

// endpointOf finds an endpoint by its container's name or its ID. If there are several, it prefers one on the network.
func endpointOf(y *yard.Yard, ref, network string) (modes.Endpoint, error) {
	es, err := y.Endpoints()
	if err != nil {
		return modes.Endpoint{}, err
	}
	var found []modes.Endpoint
	for _, e := range es {
		if e.Container.Called(ref) || e.ID == ref {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b modes.Endpoint) int {
		return cmp.Or(
			cmp.Compare(b2i(a.NetworkID != network), b2i(b.NetworkID != network)),
			cmp.Compare(a.NetworkID, b.NetworkID),
		)
	})
	if len(found) > 0 {
		return found[0], nil
	}
	return y.FindEndpointIn("", ref)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// address returns an endpoint's address of the selected family.
func (t *tracer) address(e modes.Endpoint) (netip.Addr, error) {
	for _, a := range e.Addrs {
		if a.Addr().Is6() == t.v6 {
			return a.Addr(), nil
		}
	}
	family := map[bool]string{false: "IPv4", true: "IPv6"}[t.v6]
	return netip.Addr{}, refuse("%s has no %s address", nameOf(e), family)
}

func nameOf(e modes.Endpoint) string {
	if e.Container.Name != "" {
		return "container " + e.Container.Name
	}
	return "endpoint " + modes.Short(e.ID)
}

// source sets the source address and the incoming interface of the packet.
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
			return refuse("network %s is of mode %s: its outbound traffic does not pass this host's rules",
				book.Label(n), n.Mode)
		}
		t.say("%s sends from %s on network %s; the packet arrives on %s",
			nameOf(t.srcEndpoint), p.Src, book.Label(n), p.In)
	case t.src.IsValid():
		p.Src = t.src
		own, err := t.y.Config.Kernel.HasAddr(t.src)
		if err != nil {
			return err
		}
		if own {
			t.say("%s is the host's own address", t.src)
			return nil
		}
		if p.In, _, err = explain.RouteTo(t.y.Config.Handle, t.src); err != nil {
			return err
		}
		t.say("the packet from %s arrives on %s, the host's route to that address", t.src, p.In)
	}
	return nil
}

// judge adds what the rules at a hook decide about the packet.
func (t *tracer) judge(h explain.Hook, p explain.Packet) error {
	if t.reach == explain.Dropped {
		return nil
	}
	found, sum, err := explain.Judge(t.y.Config.Handle, h, p)
	if err != nil {
		return err
	}
	for _, j := range found {
		who := ""
		if j.Foreign {
			who = "another program: "
		}
		if j.To.IsValid() {
			t.to = j.To
			t.say("%s: translated to %s port %d by %s%s", h, j.To.Addr(), j.To.Port(), who, j.Rule)
			continue
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

// toContainer follows a packet to a container's own address.
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
		p.Out = linkTo(t.y, n)
	}
	if p.Out == "" {
		return refuse("network %s is of mode %s: its inbound traffic does not pass this host's rules",
			book.Label(n), n.Mode)
	}
	if err := t.source(&p); err != nil {
		return err
	}
	if !p.Src.IsValid() {
		_, p.Src, err = explain.RouteTo(t.y.Config.Handle, p.Dst)
		if err != nil {
			return err
		}
		t.say("the host sends from %s", p.Src)
	}
	t.say("its destination is %s of %s on network %s; it leaves on %s",
		p.Dst, nameOf(t.dstEndpoint), book.Label(n), p.Out)
	err = t.pass(p, n)
	if err == nil && t.reach != explain.Dropped {
		t.redirected(p)
	}
	return err
}

// pass follows a packet through the hooks on its way to a container on network n.
func (t *tracer) pass(p explain.Packet, n modes.Network) error {
	if state := t.y.State(t.dstEndpoint); state != "up" {
		t.drop("%s cannot answer: its state is %s", nameOf(t.dstEndpoint), state)
		return nil
	}
	if p.In == p.Out && !p.OrigDst.IsValid() {
		if t.y.Traits(n).Isolated {
			t.drop("network %s isolates its containers from each other (icc=false): the bridge does not forward it",
				book.Label(n))
			return nil
		}
		if !explain.BridgeNetfilterOn(t.y.Config.Handle, p.Dst.Is6()) {
			t.say("it stays on the bridge, where the rules for routed packets do not apply")
			return nil
		}
		t.say("it stays on the bridge, but br_netfilter passes it to the rules for routed packets")
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

// toHost follows a packet to a port of the host.
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
	if p.In != "" && ports.HostFirewallDecides(t.y.Config.Handle) {
		t.say("published ports are subject to the host's own firewall (publish=host)")
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
	p.Dst, p.Port, p.Local, p.Out = to, port.ContainerPort+(t.port-port.HostPort), false, linkTo(t.y, n)
	t.say("it is translated to %s port %d, and leaves on %s", p.Dst, p.Port, p.Out)
	return t.pass(p, n)
}

// hostAddr returns the host's address that the packet is sent to, as far as the target leaves it open.
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
	_, src, err := explain.RouteTo(t.y.Config.Handle, to)
	return src, err
}

// publication finds the endpoint that has published the port. own: the client is the host itself.
func (t *tracer) publication(own bool) (found modes.Endpoint, port modes.Port, err error) {
	es, err := t.y.Endpoints()
	if err != nil {
		return found, port, err
	}
	for _, e := range es {
		for _, p := range e.Ports {
			inRange := t.port >= p.HostPort && t.port-p.HostPort < max(p.Count, 1)
			if p.Routed || p.Proto != t.proto || !inRange || p.HostIP.Is6() != t.v6 {
				continue
			}
			if p.HostIP.IsLoopback() && !own {
				t.say("%s publishes it on loopback only (%s), which only the host reaches", nameOf(e), p)
				continue
			}
			found, port = e, p
		}
	}
	return found, port, nil
}
