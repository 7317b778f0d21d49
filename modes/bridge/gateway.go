package bridge

import (
	"fmt"
	"net/netip"
	"slices"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	kports "netyard/kernel/ports"
	"netyard/kernel/rule"
	"netyard/kernel/sandbox"
	"netyard/modes"
)

// How a network is joined to what is outside of it: options to objects.

const (
	// guideOption names the container that the others go out by.
	guideOption = "gateway_address"
	// exitOption lets that container out by the network itself.
	exitOption = "gateway_exit"
)

// gatewayMode is how a family of a network is.
func gatewayMode(n modes.Network, v6 bool) string { return n.Opt(modes.ByFamily("gateway_mode", v6)) }

func isolated(n modes.Network, v6 bool) bool { return gatewayMode(n, v6) == modes.GatewayIsolated }

// Routes says whether a family of a network is routed.
func (mode) Routes(n modes.Network, v6 bool) bool { return gatewayMode(n, v6) == modes.GatewayRouted }

// Gatewayless: on an isolated network nobody has the gateway's address, so an engine that asks need not keep one.
func (mode) Gatewayless(n modes.Network) (v4, v6 bool) { return isolated(n, false), isolated(n, true) }

// Keeps: who got the address of the container that is the gateway by accident would have the way out that nobody else
// has.
func (mode) Keeps(n modes.Network) (string, []netip.Addr) { return guideOption, guides(n) }

// guides are the addresses of the container that the others go out by.
func guides(n modes.Network) []netip.Addr { return n.OptAddrs(guideOption) }

// isGuide says whether an endpoint is of that container.
func isGuide(n modes.Network, e modes.Endpoint) bool {
	return slices.ContainsFunc(guides(n), func(a netip.Addr) bool { return hasAddr(e, a) })
}

// isRouter says whether the network sends what is for others to an endpoint: it is the gateway, or the next hop of a
// route.
func isRouter(n modes.Network, e modes.Endpoint) bool {
	return isGuide(n, e) || slices.ContainsFunc(n.OptRoutes("routes"), func(r modes.Route) bool { return hasAddr(e, r.Via) })
}

func hasAddr(e modes.Endpoint, a netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// hostHas says whether the host has an address in a subnet of a network.
func hostHas(n modes.Network, s modes.Subnet) bool {
	v6 := s.Pool.Addr().Is6()
	return s.Gateway.IsValid() && !isolated(n, v6) && (v6 || !n.OptBool("inhibit_ipv4"))
}

// refuse is a refusal of an option as it was resolved.
func refuse(n modes.Network, option, why string, args ...any) error {
	return fmt.Errorf("%w: %s=%s: %s", modes.ErrOption, option, n.Opt(option), fmt.Sprintf(why, args...))
}

func checkGateways(n modes.Network) error {
	for _, v6 := range []bool{false, true} {
		if err := checkFamily(n, v6); err != nil {
			return err
		}
	}
	if err := checkProxy(n); err != nil {
		return err
	}
	for _, r := range n.OptRoutes("routes") {
		if r.Via.IsValid() && subnetOf(n, r.Via) < 0 {
			return refuse(n, "routes", "%s is in no subnet of the network", r.Via)
		}
	}
	return checkGuides(n)
}

func checkFamily(n modes.Network, v6 bool) error {
	how, egress := modes.ByFamily("gateway_mode", v6), modes.ByFamily("egress", v6)
	if isolated(n, v6) && !n.Internal {
		return refuse(n, how, "only a network with --internal can be without the host")
	}
	if gatewayMode(n, v6) == modes.GatewayRouted {
		for _, a := range n.OptAddrs("bind") {
			if a.Is6() == v6 {
				return refuse(n, "bind", "with %s=routed ports are published by the containers' own addresses", how)
			}
		}
	}
	a := n.OptAddr(egress)
	switch {
	case !a.IsValid():
		return nil
	case a.IsLoopback() || a.IsMulticast():
		return refuse(n, egress, "nothing can leave with that address")
	case n.Internal:
		return refuse(n, egress, "an internal network has no way out")
	case gatewayMode(n, v6) != modes.GatewayNAT:
		return refuse(n, egress, "with %s=%s containers leave with their own addresses", how, gatewayMode(n, v6))
	case !n.OptBool("masquerade"):
		return refuse(n, egress, "with masquerade=false containers leave with their own addresses")
	}
	return nil
}

func checkProxy(n modes.Network) error {
	if n.Opt("ndp_proxy") == "" {
		return nil
	}
	_, v6 := n.Families()
	switch {
	case !v6:
		return refuse(n, "ndp_proxy", "the network has no IPv6 subnet")
	case n.Internal:
		return refuse(n, "ndp_proxy", "nothing gets into an internal network")
	case gatewayMode(n, true) == modes.GatewayNAT && n.OptBool("masquerade"):
		return refuse(n, "ndp_proxy", "containers leave with the host's address; say gateway_mode_ipv6=routed too, or masquerade=false")
	}
	return nil
}

func checkGuides(n modes.Network) error {
	const option = guideOption
	if n.OptBool(exitOption) {
		switch {
		case len(guides(n)) == 0:
			return refuse(n, exitOption, "it is about the container that gateway_address names")
		case n.Internal:
			return refuse(n, exitOption, "an internal network has no way out")
		}
	}
	had := map[bool]bool{}
	for _, a := range guides(n) {
		at := subnetOf(n, a)
		switch {
		case at < 0:
			return refuse(n, option, "%s is in no subnet of the network", a)
		case n.Subnets[at].Gateway.Addr() == a:
			return refuse(n, option, "%s is the host's own address on the network", a)
		case had[a.Is6()]:
			return refuse(n, option, "a container can have one default route of a family only")
		case gatewayMode(n, a.Is6()) == modes.GatewayRouted:
			return refuse(n, option, "with %s=routed containers answer by way of the host", modes.ByFamily("gateway_mode", a.Is6()))
		case !n.OptBool("icc"):
			return refuse(n, option, "with icc=false containers do not reach it")
		}
		had[a.Is6()] = true
	}
	return nil
}

// subnetOf is the subnet that an address is in; -1 when there is none.
func subnetOf(n modes.Network, a netip.Addr) int {
	return slices.IndexFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) })
}

// present refuses a network that relies on what the host does not have. Only where it is created: what is on record has
// to come up again whatever the host has lost since.
func (m mode) present(n modes.Network) error {
	for _, v6 := range []bool{false, true} {
		option := modes.ByFamily("egress", v6)
		a := n.OptAddr(option)
		if !a.IsValid() {
			continue
		}
		ok, err := sandbox.HasAddr(m.k.Handle, a)
		if err != nil {
			return err
		}
		if !ok {
			return refuse(n, option, "it is not an address of this host")
		}
	}
	link := n.Opt("ndp_proxy")
	if link == "" {
		return nil
	}
	_, ok, err := m.k.FindLink(link)
	if err == nil && !ok {
		err = refuse(n, "ndp_proxy", "there is no such interface")
	}
	return err
}

// unroutable refuses what cannot be had on a bridge of the host's owner, who routes it.
func unroutable(n modes.Network) error {
	for _, option := range []string{"gateway_mode_ipv4", "gateway_mode_ipv6", "egress_ipv4", "egress_ipv6", guideOption, "ndp_proxy"} {
		if v := n.Opt(option); v != "" && v != modes.GatewayNAT {
			return refuse(n, option, "netyard does not route the host's bridge %s", name(n))
		}
	}
	return nil
}

// leaveAs is the element that says with which address what leaves a subnet does so; none when it keeps its own.
func leaveAs(n modes.Network, s modes.Subnet) []core.Object {
	v6 := s.Pool.Addr().Is6()
	if n.Internal || !n.OptBool("masquerade") || gatewayMode(n, v6) != modes.GatewayNAT || s.Pool.Bits() == 0 {
		return nil
	}
	if a := n.OptAddr(modes.ByFamily("egress", v6)); a.IsValid() {
		return []core.Object{core.HostAddr{Addr: a}, kports.Egress(s.Pool, a).For(n.ID)}
	}
	return []core.Object{nft.SubnetIn(natSet(v6), s.Pool).For(n.ID)}
}

func natSet(v6 bool) rule.SetName {
	if v6 {
		return bridge.NAT6
	}
	return bridge.NAT4
}

// gatewayObjects are the elements of a network that is not just translated.
func gatewayObjects(n modes.Network) (objects []core.Object) {
	br := name(n)
	v4, v6 := n.Families()
	for _, family := range []struct{ has, v6 bool }{{v4, false}, {v6, true}} {
		switch how := gatewayMode(n, family.v6); {
		case !family.has:
		case how == modes.GatewayRouted:
			objects = append(objects, kports.Routed(br, family.v6).For(n.ID))
		case how == modes.GatewayIsolated:
			objects = append(objects, kports.Isolated(br, family.v6).For(n.ID))
		}
	}
	if v4 && isolated(n, false) {
		objects = append(objects, deaf(br))
	}
	by := guides(n)
	if len(by) == 0 {
		return objects
	}
	if !n.OptBool(exitOption) {
		by = nil
	}
	for _, el := range kports.Guided(br, by) {
		objects = append(objects, el.For(n.ID))
	}
	return objects
}

// deaf keeps the host from answering on a bridge for addresses that it has elsewhere (arp_ignore, ip-sysctl.rst). IPv6
// needs nothing of the kind: it is off there.
func deaf(bridge string) core.Sysctl {
	return core.Sysctl{Path: []string{"net", "ipv4", "conf", bridge, "arp_ignore"}, Value: "8"}
}

// gateways are the default gateways of an endpoint: those of the subnets its addresses are in. An internal network has
// none: the engine would install it. Where a container is the gateway the others have it and no other, in no family;
// that container itself has the host only if the network says so.
func gateways(n modes.Network, e modes.Endpoint) (gws []netip.Addr) {
	guide := guides(n)
	if len(guide) > 0 && !isGuide(n, e) {
		return slices.DeleteFunc(guide, func(g netip.Addr) bool { return !hasFamily(e, g) })
	}
	if n.Internal || len(guide) > 0 && !n.OptBool(exitOption) {
		return nil
	}
	for _, a := range e.Addrs {
		if at := subnetOf(n, a.Addr()); at >= 0 && n.Subnets[at].Gateway.IsValid() && (len(guide) == 0 || slices.Contains(guide, a.Addr())) {
			gws = append(gws, n.Subnets[at].Gateway.Addr())
		}
	}
	return gws
}

func hasFamily(e modes.Endpoint, a netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
}

// routes are the static routes of an endpoint: of the families it has addresses of, and not those that lead to it,
// which an engine could not make.
func routes(n modes.Network, e modes.Endpoint) []modes.Route {
	return slices.DeleteFunc(n.OptRoutes("routes"), func(r modes.Route) bool {
		return hasAddr(e, r.Via) || !hasFamily(e, r.Dst.Addr())
	})
}

// proxies are what the host answers for on the link that the network's IPv6 addresses are of.
func proxies(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	link := n.Opt("ndp_proxy")
	if link == "" {
		return nil
	}
	for _, a := range e.Addrs {
		if a.Addr().Is6() {
			objects = append(objects, bridge.ProxyNeigh{Link: link, Addr: a.Addr()})
		}
	}
	return objects
}
