// Package gateway plans how traffic leaves a bridged network: with the host's address (NAT), routed, by one of its own
// containers, or not at all.
package gateway

import (
	"net/netip"
	"slices"

	"netyard/kernel/core"
	"netyard/kernel/ndp"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	"netyard/modes"
	"netyard/modes/internal/bridged"
)

// In returns the families of a network that have a gateway mode.
func In(n modes.Network, gateway string) modes.Families {
	return modes.Families{V4: mode4.Of(n) == gateway, V6: mode6.Of(n) == gateway}
}

// IsolatedAt says whether the host has no address in a subnet by choice.
func IsolatedAt(n modes.Network, s modes.Subnet) bool { return In(n, Isolated).Has(s.Pool.Addr()) }

// Objects returns what lets traffic leave the network on a bridge, or keeps it in.
func Objects(n modes.Network, br string) (objects []core.Object) {
	for _, s := range n.Subnets {
		objects = append(objects, leaveAs(n, s)...)
	}
	v4, v6 := n.Families()
	var elements []nft.Element
	for _, family := range []struct{ has, v6 bool }{{v4, false}, {v6, true}} {
		switch how := modeOf(family.v6).Of(n); {
		case !family.has:
		case how == Routed:
			elements = append(elements, ports.Routed(br, family.v6))
		case how == Isolated:
			elements = append(elements, ports.Isolated(br, family.v6))
		}
	}
	if v4 && mode4.Of(n) == Isolated {
		objects = append(objects, silent(br))
	}
	if by := Address.Of(n); len(by) > 0 {
		if !exit.Of(n) {
			by = nil
		}
		elements = append(elements, ports.GatewayContainer(br, by)...)
	}
	return append(objects, bridged.Owned(n, elements...)...)
}

// leaveAs returns the objects that replace the source address of what leaves a subnet; none when it keeps its own.
func leaveAs(n modes.Network, s modes.Subnet) []core.Object {
	v6 := s.Pool.Addr().Is6()
	if n.Internal || !modes.Masquerade.Of(n) || modeOf(v6).Of(n) != NAT || s.Pool.Bits() == 0 {
		return nil
	}
	if a := egress(v6).Of(n); a.IsValid() {
		return []core.Object{core.HostAddr{Addr: a}, ports.Egress(s.Pool, a).For(n.ID)}
	}
	return bridged.NAT(n, s)
}

// silent returns the setting that stops the host from answering ARP on a bridge (arp_ignore=8, ip-sysctl.rst). IPv6
// needs none, since it is off there.
func silent(bridge string) core.Sysctl {
	return core.Sysctl{Path: []string{"net", "ipv4", "conf", bridge, "arp_ignore"}, Value: "8"}
}

// Is says whether an endpoint belongs to the gateway container.
func Is(n modes.Network, e modes.Endpoint) bool { return slices.ContainsFunc(Address.Of(n), e.Has) }

// Of returns the default gateways of an endpoint. Where a container is the gateway, the other containers have no other
// gateway, in any family; that container has the host as its gateway only with gateway_exit.
func Of(n modes.Network, e modes.Endpoint) []netip.Addr {
	guides := Address.Of(n)
	switch {
	case len(guides) == 0:
		return n.Gateways(e)
	case !Is(n, e):
		return slices.DeleteFunc(guides, func(g netip.Addr) bool { return !e.Address(g.Is4()).IsValid() })
	case !exit.Of(n):
		return nil
	}
	e.Addrs = slices.DeleteFunc(slices.Clone(e.Addrs), func(a netip.Prefix) bool {
		return !slices.Contains(guides, a.Addr())
	})
	return n.Gateways(e)
}

// Proxies returns the objects for an endpoint's IPv6 addresses that the host answers for on the link of their subnet.
func Proxies(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	link := ndpProxy.Of(n)
	for _, a := range e.Addrs {
		if link != "" && a.Addr().Is6() {
			objects = append(objects, ndp.Proxy{Link: link, Addr: a.Addr()})
		}
	}
	return objects
}
