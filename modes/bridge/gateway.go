package bridge

import (
	"net/netip"
	"slices"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	kports "netyard/kernel/ports"
	"netyard/modes"
	"netyard/modes/internal/bridged"
)

// How a network is joined to what is outside of it: options to objects.

// isGuide says whether an endpoint is of the container that the others go out by.
func isGuide(n modes.Network, e modes.Endpoint) bool {
	return slices.ContainsFunc(gatewayAddress.Of(n), func(a netip.Addr) bool { return hasAddr(e, a) })
}

// isRouter says whether the network sends what is for others to an endpoint: it is the gateway, or the next hop of a
// route.
func isRouter(n modes.Network, e modes.Endpoint) bool {
	return isGuide(n, e) || slices.ContainsFunc(staticRoutes.Of(n), func(r modes.Route) bool { return hasAddr(e, r.Via) })
}

// leaveAs is the element that says with which address what leaves a subnet does so; none when it keeps its own.
func leaveAs(n modes.Network, s modes.Subnet) []core.Object {
	v6 := s.Pool.Addr().Is6()
	if n.Internal || !modes.Masquerade.Of(n) || gatewayMode(v6).Of(n) != gatewayNAT || s.Pool.Bits() == 0 {
		return nil
	}
	if a := egress(v6).Of(n); a.IsValid() {
		return []core.Object{core.HostAddr{Addr: a}, kports.Egress(s.Pool, a).For(n.ID)}
	}
	return bridged.NAT(n, s)
}

// gatewayObjects are the elements of a network that is not just translated.
func gatewayObjects(n modes.Network) (objects []core.Object) {
	br := name(n)
	var elements []nft.Element
	for _, v6 := range []bool{false, true} {
		four, six := n.Families()
		how := gatewayMode(v6).Of(n)
		switch has := v6 && six || !v6 && four; {
		case has && how == gatewayRouted:
			elements = append(elements, kports.Routed(br, v6))
		case has && how == gatewayIsolated:
			elements = append(elements, kports.Isolated(br, v6))
		}
		if four && !v6 && how == gatewayIsolated {
			objects = append(objects, deaf(br))
		}
	}
	if by := gatewayAddress.Of(n); len(by) > 0 {
		if !gatewayExit.Of(n) {
			by = nil
		}
		elements = append(elements, kports.Guided(br, by)...)
	}
	return append(objects, bridged.Owned(n, elements...)...)
}

// deaf keeps the host from answering on a bridge for addresses that it has elsewhere (arp_ignore, ip-sysctl.rst). IPv6
// needs nothing of the kind: it is off there.
func deaf(bridge string) core.Sysctl {
	return core.Sysctl{Path: []string{"net", "ipv4", "conf", bridge, "arp_ignore"}, Value: "8"}
}

// gateways are the default gateways of an endpoint. Where a container is the gateway the others have it and no other,
// in no family; that container itself has the host only if the network says so.
func gateways(n modes.Network, e modes.Endpoint) []netip.Addr {
	guides := gatewayAddress.Of(n)
	switch {
	case len(guides) == 0:
		return n.Gateways(e)
	case !isGuide(n, e):
		return slices.DeleteFunc(guides, func(g netip.Addr) bool { return !e.Address(g.Is4()).IsValid() })
	case !gatewayExit.Of(n):
		return nil
	}
	e.Addrs = slices.DeleteFunc(slices.Clone(e.Addrs), func(a netip.Prefix) bool { return !slices.Contains(guides, a.Addr()) })
	return n.Gateways(e)
}

// routes are the static routes of an endpoint: of the families it has addresses of, and not those that lead to it,
// which an engine could not make.
func routes(n modes.Network, e modes.Endpoint) []modes.Route {
	return slices.DeleteFunc(staticRoutes.Of(n), func(r modes.Route) bool {
		return hasAddr(e, r.Via) || !e.Address(r.Dst.Addr().Is4()).IsValid()
	})
}
