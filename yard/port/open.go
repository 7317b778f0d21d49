package port

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// Opens reports whether a network's containers have ports that are open wherever their default route is, as those of
// routed networks.
func Opens(t modes.Traits) bool {
	return t.Sharing == nil && !t.Publish.OnOwn && (t.Publish.Routed.V4 || t.Publish.Routed.V6)
}

// expand returns the requests for host addresses, and the ports on the endpoint's own. A withdrawal leaves open what is
// open wherever the default route is.
func expand(g *group, r Request) ([]book.PortRequest, []modes.Port, error) {
	switch {
	case !r.Opened:
		return expandAddresses(g.Held, expansion{lent: r.Lent, only: g.lead.Families}, r.Ports)
	case len(r.Ports) == 0:
		return nil, slices.DeleteFunc(slices.Clone(g.Endpoint.Ports), func(p modes.Port) bool { return !p.Routed }), nil
	}
	return nil, openPorts(g.Held, r.Ports), nil
}

// openPorts returns the ports of an endpoint that are open on routed networks. A request for an address of the host is
// for another network.
func openPorts(h *book.Held, asks []book.PortRequest) (open []modes.Port) {
	e, routed := h.Endpoint, h.Traits().Publish.Routed
	for _, a := range asks {
		for _, every := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			if routed.Has(every) && hasFamily(e, every) && (!a.HostIP.IsValid() || a.HostIP == every) {
				a := a
				a.HostIP = every
				open = append(open, ownPort(e, a))
			}
		}
	}
	slices.SortFunc(open, ComparePorts)
	return Join(slices.Compact(open))
}

// beside returns the IDs of the other endpoints in the sandbox of one that has open ports.
func beside(tx store.Tx, e modes.Endpoint) (ids []string, err error) {
	if !slices.ContainsFunc(e.Ports, func(p modes.Port) bool { return p.Routed }) {
		return nil, nil
	}
	others, err := Neighbours(tx, e)
	for _, o := range others {
		ids = append(ids, o.ID)
	}
	return ids, err
}
