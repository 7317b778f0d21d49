package yard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// redirects says whether ports are published on the own addresses of a network's containers, and whether on the host's as well.
func redirects(m modes.Mode, n modes.Network) (own, both bool) {
	r, ok := m.(modes.Redirector)
	return ok && r.Redirects(n), ok && r.Redirects(n) && r.Both(n)
}

// Lend publishes ports on an endpoint that has been joined, if its network has no gateway: of such an endpoint no engine says that it has the
// container's default route, which is when the others get their ports. When the engine says so of another one, the ports go there.
func (y *Yard) Lend(ctx context.Context, n modes.Network, link modes.Link, id string, asks []Ask) error {
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	if own, _ := redirects(m, n); !own || len(asks) == 0 || len(link.Gateways) > 0 {
		return nil
	}
	e, err := y.Endpoint(n.ID, id)
	if err != nil {
		return err
	}
	var others []modes.Endpoint
	err = y.c.Store.View(func(tx store.Tx) error {
		others, err = neighbours(tx, e)
		return err
	})
	if err != nil || slices.ContainsFunc(others, func(o modes.Endpoint) bool { return len(o.Ports) > 0 && !o.Lent }) {
		return err
	}
	// Who has the default route all the same, on the link, is the one that is meant.
	leaves := slices.ContainsFunc(link.Routes, func(r modes.Route) bool { return r.Dst.Bits() == 0 })
	_, err = y.publish(ctx, n.ID, id, asks, !leaves)
	return err
}

// neighbours are the other endpoints in the same sandbox.
func neighbours(tx store.Tx, e modes.Endpoint) (others []modes.Endpoint, err error) {
	if e.Sandbox == "" {
		return nil, nil
	}
	all, err := endpoints.List(tx, "")
	return slices.DeleteFunc(all, func(o modes.Endpoint) bool {
		return o.ID == e.ID || o.Sandbox != e.Sandbox || o.Phase == modes.Deleting
	}), err
}

// reclaim takes the ports that were lent to other endpoints of the same sandbox; robbed are those as they were.
func reclaim(tx store.Tx, e modes.Endpoint) (robbed []modes.Endpoint, err error) {
	if e.Lent {
		return nil, nil
	}
	others, err := neighbours(tx, e)
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if !o.Lent || len(o.Ports) == 0 {
			continue
		}
		robbed = append(robbed, o)
		o.Ports, o.Lent = nil, false
		if err := putEndpoint(tx, o); err != nil {
			return nil, err
		}
	}
	return robbed, nil
}

// clearInside takes what was put into the sandbox of an endpoint out of it, before it is recorded that the endpoint has left: who comes
// after a crash in between would not know the sandbox any more.
func (y *Yard) clearInside(network, id string) error {
	e, err := y.Endpoint(network, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.c.Kernel.Remove(e.Redirects()...)
}

// firstOf are the ports of its own that one of a container's interfaces gets: none, where another one before it has ports already.
func firstOf(tx store.Tx, m modes.Mode, n modes.Network, e modes.Endpoint, own []modes.Port) ([]modes.Port, error) {
	if redirected, _ := redirects(m, n); !redirected {
		return own, nil
	}
	others, err := attachmentsOf(tx, e.Attachment)
	if slices.ContainsFunc(others, func(o modes.Endpoint) bool {
		return o.ID != e.ID && len(o.Ports) > 0 && metric(o.IfName) < metric(e.IfName)
	}) {
		return nil, err
	}
	return own, err
}

// ownPortsAt are ports of which those of an endpoint's own address have moved with it to another.
func ownPortsAt(ports []modes.Port, from, to netip.Addr) []modes.Port {
	ports = slices.Clone(ports)
	for i, p := range ports {
		if p.Routed && p.HostIP == from {
			ports[i].HostIP = to
		}
	}
	return ports
}

// ordered has those who ask for a port of the container's before those who take what there is.
func (w *widening) ordered(asks []Ask) []Ask {
	if !w.redirects {
		return asks
	}
	asks = slices.Clone(asks)
	slices.SortStableFunc(asks, func(a, b Ask) int { return cmp.Compare(rank(a), rank(b)) })
	return asks
}

func rank(a Ask) int { return -(&chain{ask: a}).fixed() }

// addOwn publishes a port on the endpoint's own addresses. It is done unless the ask is about the host as well.
func (w *widening) addOwn(a Ask) (done bool, err error) {
	found := false
	for _, p := range w.e.Addrs {
		own := p.Addr()
		if a.HostIP.IsValid() && a.HostIP != own && (!a.HostIP.IsUnspecified() || a.HostIP.Is4() != own.Is4()) {
			continue
		}
		found = true
		if err := w.addAt(own, a); err != nil {
			return false, err
		}
	}
	named := a.HostIP.IsValid() && !a.HostIP.IsUnspecified()
	switch {
	case w.both:
		return named && (found || w.lent), nil
	case found || w.lent:
		return true, nil
	case named:
		return false, fmt.Errorf("%s is not an address of the container, which has %s on network %s, where ports are published on its own", a.HostIP, addrList(w.e), label(w.n))
	}
	return false, errors.New("the container has no address of a family that the port is published on")
}

func addrList(e modes.Endpoint) string {
	var all []string
	for _, a := range e.Addrs {
		all = append(all, a.Addr().String())
	}
	return strings.Join(all, " and ")
}

// An ownAt is a port of one of the endpoint's addresses.
type ownAt struct {
	proto string
	addr  netip.Addr
	port  uint16
}

// addAt publishes a port on one of the endpoint's addresses: the first of those that will do, which for who named none is that of the
// container. That one need not be published where another has been.
func (w *widening) addAt(own netip.Addr, a Ask) error {
	first, last := a.HostPort, max(a.HostPort, a.HostPortEnd)
	if a.HostPort == 0 {
		first, last = a.ContainerPort, a.ContainerPort
	}
	for port := int(first); port <= int(last); port++ {
		p := modes.Port{Proto: a.Proto, HostIP: own, HostPort: uint16(port), ContainerPort: a.ContainerPort, Count: 1, Routed: true} //nolint:gosec // between two ports
		at := ownAt{p.Proto, own, p.HostPort}
		if to, taken := w.ownTo[at]; !taken {
			w.ownTo[at], w.own = p.ContainerPort, append(w.own, p)
			return nil
		} else if to == p.ContainerPort {
			return nil
		}
	}
	if a.HostPort == 0 {
		return nil
	}
	return fmt.Errorf("%w: port %d/%s of the container is asked for twice", ErrInUse, first, a.Proto)
}

// redirected says which other port of the container's a packet for one that it has published goes to.
func (t *tracer) redirected(p kernel.Packet) {
	for _, port := range t.dstEndpoint.Ports {
		if port.Routed && port.HostPort != port.ContainerPort && port.Proto == t.proto && port.HostIP.Is4() == p.Dst.Is4() &&
			port.HostPort <= t.port && t.port-port.HostPort < max(port.Count, 1) {
			t.say("the container's own table sends it on to port %d (%s)", port.ContainerPort+(t.port-port.HostPort), port)
		}
	}
}

// wayTo is the link of the host that leads to the containers of a network: a bridge, or the host's own on their parent.
func (y *Yard) wayTo(n modes.Network) string {
	if br := y.bridgeOf(n); br != "" {
		return br
	}
	m, err := y.mode(n.Mode)
	if err != nil {
		return ""
	}
	for _, o := range m.Objects(n, nil) {
		if s, ok := o.(kernel.Shim); ok {
			return s.Name
		}
	}
	return ""
}
