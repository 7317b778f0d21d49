package port

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// Neighbours are the other endpoints in the same sandbox.
func Neighbours(tx store.Tx, e modes.Endpoint) (others []modes.Endpoint, err error) {
	if e.Sandbox == "" {
		return nil, nil
	}
	all, err := book.Endpoints.List(tx, "")
	return slices.DeleteFunc(all, func(o modes.Endpoint) bool {
		return o.ID == e.ID || o.Sandbox != e.Sandbox || o.Phase == modes.Deleting
	}), err
}

// reclaim takes the ports that were lent to other endpoints of the same sandbox; robbed are those as they were.
func reclaim(tx store.Tx, e modes.Endpoint) (robbed []modes.Endpoint, err error) {
	if e.Lent {
		return nil, nil
	}
	others, err := Neighbours(tx, e)
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if !o.Lent || len(o.Ports) == 0 {
			continue
		}
		robbed = append(robbed, o)
		o.Ports, o.Lent = nil, false
		if err := book.PutEndpoint(tx, o); err != nil {
			return nil, err
		}
	}
	return robbed, nil
}

// ClearInside takes what was put into the sandbox of an endpoint out of it, before it is recorded that the endpoint has
// left: who comes after a crash in between would not know the sandbox any more.
func ClearInside(y *book.Book, network, id string) error {
	e, err := y.Endpoint(network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.Config.Kernel.Remove(e.Redirects()...)
}

// FirstOf are the ports of its own that one of a container's interfaces gets: none, where another one before it has
// ports already.
func FirstOf(tx store.Tx, m modes.Mode, n modes.Network, e modes.Endpoint, own []modes.Port) ([]modes.Port, error) {
	if !m.Traits(n).Publish.OnOwn {
		return own, nil
	}
	others, err := book.AttachmentsOf(tx, e.Attachment)
	if slices.ContainsFunc(others, func(o modes.Endpoint) bool {
		return o.ID != e.ID && len(o.Ports) > 0 && book.Metric(o.IfName) < book.Metric(e.IfName)
	}) {
		return nil, err
	}
	return own, err
}

// OwnPortsAt are ports of which those of an endpoint's own address have moved with it to another.
func OwnPortsAt(ports []modes.Port, from, to netip.Addr) []modes.Port {
	ports = slices.Clone(ports)
	for i, p := range ports {
		if p.Routed && p.HostIP == from {
			ports[i].HostIP = to
		}
	}
	return ports
}

// ordered has those who ask for a port of the container's before those who take what there is.
func (w *widening) ordered(asks []book.Ask) []book.Ask {
	if !w.redirects {
		return asks
	}
	asks = slices.Clone(asks)
	slices.SortStableFunc(asks, func(a, b book.Ask) int { return cmp.Compare(rank(a), rank(b)) })
	return asks
}

func rank(a book.Ask) int { return -(&chain{ask: a}).fixed() }

// addOwn publishes a port on the endpoint's own addresses. It is done unless the ask is about the host as well.
func (w *widening) addOwn(a book.Ask) (done bool, err error) {
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
		return false, fmt.Errorf("%s is not an address of the container, which has %s on network %s, where ports are published on its own", a.HostIP, addrList(w.e), book.Label(w.n))
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

// addAt publishes a port on one of the endpoint's addresses: the first of those that will do, which for who named none
// is that of the container. That one need not be published where another has been.
func (w *widening) addAt(own netip.Addr, a book.Ask) error {
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
	return fmt.Errorf("%w: port %d/%s of the container is asked for twice", book.ErrInUse, first, a.Proto)
}
