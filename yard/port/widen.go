package port

import (
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/yard/book"
)

// An expansion replaces missing and unspecified addresses in requests by the addresses to publish on.
type expansion struct {
	n      modes.Network
	e      modes.Endpoint
	binds  []netip.Addr
	routed modes.Families
	// ownTo is the container port that each port of own leads to; it may be another number.
	ownTo map[ownKey]uint16
	// redirects: ports are published on the containers' own addresses; both: on the host's as well.
	redirects, both bool
	// lent: a request that this network cannot serve is left out without an error, since it may be for another network
	// of the container.
	lent bool
	// only are the families that the endpoint publishes ports for. Requests for the other one are for another endpoint
	// of the container.
	only modes.Families
	// asks are the requests for addresses of the host. own are ports on the container's own addresses, as on routed
	// networks; they take no address of the host.
	asks []book.PortRequest
	own  []modes.Port
}

// ExpandAddresses replaces missing and unspecified addresses in requests by those to publish on. It returns the
// requests for host addresses, and the ports on the container's own.
func ExpandAddresses(h *book.Held, asks []book.PortRequest) ([]book.PortRequest, []modes.Port, error) {
	return expandAddresses(h, expansion{only: bothFamilies()}, asks)
}

// expandAddresses leaves out what is for another network of the container: of lent ports what this network cannot
// serve, and families other than w.only.
func expandAddresses(
	h *book.Held, w expansion, asks []book.PortRequest,
) ([]book.PortRequest, []modes.Port, error) {
	if len(asks) == 0 {
		return nil, nil, nil
	}
	n, p := h.Network, h.Traits().Publish
	if !p.OnHost && !p.OnOwn {
		return nil, nil, fmt.Errorf("publish %s: a network of mode %s does not publish ports", asks[0], n.Mode)
	}
	w.n, w.e, w.binds, w.routed, w.ownTo = n, h.Endpoint, p.Binds, p.Routed, map[ownKey]uint16{}
	w.redirects, w.both = p.OnOwn, p.OnOwn && p.OnHost
	every := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	if len(w.binds) == 0 {
		w.binds = every
	}
	w.binds = append(slices.DeleteFunc(slices.Clone(w.binds), w.routed.Has), // these are addresses of the host
		slices.DeleteFunc(every, func(a netip.Addr) bool { return !w.routed.Has(a) })...)
	for _, a := range w.ordered(asks) {
		if err := w.add(a); err != nil {
			return nil, nil, fmt.Errorf("publish %s: %w", a, err)
		}
	}
	slices.SortFunc(w.own, ComparePorts)
	return w.asks, Join(slices.Compact(w.own)), nil
}

// serves reports whether the endpoint publishes ports on a host address, or is open for its family in any case.
func (w *expansion) serves(host netip.Addr) bool { return w.only.Has(host) || w.routed.Has(host) }

func (w *expansion) add(a book.PortRequest) error {
	if a.HostIP.IsValid() && !w.serves(a.HostIP) {
		return nil
	}
	if w.redirects {
		if done, err := w.addOwn(a); done || err != nil {
			return err
		}
	}
	hosts := w.binds
	if a.HostIP.IsValid() {
		if !hasFamily(w.e, a.HostIP) {
			return fmt.Errorf("the container has no %s address on the network", familyName(a.HostIP))
		}
		hosts = []netip.Addr{a.HostIP}
	}
	found := false
	for _, host := range hosts {
		if !hasFamily(w.e, host) {
			continue
		}
		found = true
		a.HostIP = host
		switch {
		case !w.serves(host):
		case !w.routed.Has(host):
			w.asks = append(w.asks, a)
		case host.IsUnspecified():
			w.own = append(w.own, ownPort(w.e, a))
		default:
			return fmt.Errorf("the network's %s is routed: "+
				"the port is opened on the container's own address, not on the host's", familyName(host))
		}
	}
	if !found {
		return fmt.Errorf("the container has no address of a family that ports are published on")
	}
	return nil
}

// ownPort returns a requested port as a port on the endpoint's own address.
func ownPort(e modes.Endpoint, a book.PortRequest) modes.Port {
	at := slices.IndexFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == a.HostIP.Is4() })
	return modes.Port{
		Proto: a.Proto, HostIP: e.Addrs[at].Addr(), HostPort: a.ContainerPort, ContainerPort: a.ContainerPort,
		Count: 1, Routed: true,
	}
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func hasFamily(e modes.Endpoint, a netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}
