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

// Neighbours returns the other endpoints in the same sandbox.
func Neighbours(tx store.Tx, e modes.Endpoint) (others []modes.Endpoint, err error) {
	if e.Sandbox == "" {
		return nil, nil
	}
	for _, key := range book.Endpoints.Keys(tx, "") {
		if strings.HasSuffix(key, "/"+e.ID) { // whoever asks has read it
			continue
		}
		o, err := book.Endpoints.Get(tx, key)
		if err != nil {
			return nil, err
		}
		if o.Sandbox == e.Sandbox && o.Phase != modes.Deleting {
			others = append(others, o)
		}
	}
	return others, nil
}

// Reclaim removes the ports from the records of endpoints whose ports go to another one of their container.
func Reclaim(tx store.Tx, from []*book.Held) error {
	for _, h := range from {
		e := h.Endpoint
		e.Ports, e.Lent = nil, false
		if err := h.PutIn(tx, e); err != nil {
			return err
		}
	}
	return nil
}

// OwnPorts returns the ports that an interface publishes on its own address: none if an interface of the same container
// with a lower number has ports.
func OwnPorts(tx store.Tx, h *book.Held, own []modes.Port) ([]modes.Port, error) {
	if !h.Traits().Publish.OnOwn {
		return own, nil
	}
	e := h.Endpoint
	others, err := book.AttachmentsOf(tx, e.Attachment)
	if slices.ContainsFunc(others, func(o modes.Endpoint) bool {
		return o.ID != e.ID && len(o.Ports) > 0 && book.Metric(o.IfName) < book.Metric(e.IfName)
	}) {
		return nil, err
	}
	return own, err
}

// OwnPortsAt returns the ports with those on the endpoint's own address moved from one address to another.
func OwnPortsAt(ports []modes.Port, from, to netip.Addr) []modes.Port {
	ports = slices.Clone(ports)
	for i, p := range ports {
		if p.Routed && p.HostIP == from {
			ports[i].HostIP = to
		}
	}
	return ports
}

// ordered returns the requests with those for a certain port of the container before those for any.
func (w *expansion) ordered(asks []book.PortRequest) []book.PortRequest {
	if !w.redirects {
		return asks
	}
	asks = slices.Clone(asks)
	slices.SortStableFunc(asks, func(a, b book.PortRequest) int { return cmp.Compare(rank(a), rank(b)) })
	return asks
}

func rank(a book.PortRequest) int { return -(&chain{ask: a}).fixed() }

// addOwn publishes a port on the endpoint's own addresses; done is false if the port is also to be published on the
// host.
func (w *expansion) addOwn(a book.PortRequest) (done bool, err error) {
	found := false
	for _, p := range w.e.Addrs {
		own := p.Addr()
		if a.HostIP.IsValid() && a.HostIP != own && (!a.HostIP.IsUnspecified() || a.HostIP.Is4() != own.Is4()) {
			continue
		}
		found = true
		if !w.only.Has(own) {
			continue
		}
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
		return false, fmt.Errorf("%s is not an address of the container; "+
			"network %s publishes ports on the container's %s",
			a.HostIP, book.Label(w.n), addrList(w.e))
	}
	return false, errors.New("the container has no address of a family that the port is published on")
}

// addrList writes an endpoint's addresses for an error.
func addrList(e modes.Endpoint) string {
	var all []string
	for _, a := range e.Addrs {
		all = append(all, a.Addr().String())
	}
	if len(all) == 1 {
		return "address " + all[0]
	}
	return "addresses " + strings.Join(all, " and ")
}

// An ownKey is a port on one of the endpoint's addresses.
type ownKey struct {
	proto string
	addr  netip.Addr
	port  uint16
}

// addAt publishes a port on one of the endpoint's addresses: the first free port of the requested range, or the
// container's port if the request names none. In the latter case it is no error if another request has that port.
func (w *expansion) addAt(own netip.Addr, a book.PortRequest) error {
	first, last := a.HostPort, max(a.HostPort, a.HostPortEnd)
	if a.HostPort == 0 {
		first, last = a.ContainerPort, a.ContainerPort
	}
	for port := int(first); port <= int(last); port++ {
		p := modes.Port{
			Proto: a.Proto, HostIP: own, HostPort: uint16(port), //nolint:gosec // between two ports
			ContainerPort: a.ContainerPort, Count: 1, Routed: true,
		}
		at := ownKey{p.Proto, own, p.HostPort}
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
