package bridge

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/kernel/core"
	"netyard/modes"
)

// A refusal is why a network cannot have an option as it is.
type refusal struct {
	of   modes.Option
	when bool
	why  string
}

// first is the first refusal that holds.
func first(n modes.Network, all ...refusal) error {
	for _, r := range all {
		if r.when {
			return r.of.Refuse(n, "%s", r.why)
		}
	}
	return nil
}

// check refuses what no host could have.
func check(n modes.Network) error {
	if err := n.CheckMTU(modes.MTU.Of(n)); err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() && !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("gateway %s is not in subnet %s", s.Gateway.Addr(), s.Pool)
		}
	}
	for _, prefix := range []string{core.VethPrefix, core.PeerPrefix, core.ShaperPrefix} {
		if strings.HasPrefix(bridge.Of(n), prefix) {
			return bridge.Row().Refuse(n, "names that begin with %s are netyard's own", prefix)
		}
	}
	for _, v6 := range []bool{false, true} {
		if err := checkFamily(n, v6); err != nil {
			return err
		}
	}
	_, v6 := n.Families()
	set, nat := ndpProxy.Of(n) != "", gatewayMode6.Of(n) == gatewayNAT && modes.Masquerade.Of(n)
	err := first(n,
		refusal{ndpProxy.Row(), set && !v6, "the network has no IPv6 subnet"},
		refusal{ndpProxy.Row(), set && n.Internal, "nothing gets into an internal network"},
		refusal{ndpProxy.Row(), set && nat, "containers leave with the host's address; say gateway_mode_ipv6=routed too, or masquerade=false"},
	)
	if err != nil {
		return err
	}
	for _, r := range staticRoutes.Of(n) {
		if r.Via.IsValid() && !inSubnet(n, r.Via) {
			return staticRoutes.Row().Refuse(n, "%s is in no subnet of the network", r.Via)
		}
	}
	return checkGuides(n)
}

func checkFamily(n modes.Network, v6 bool) error {
	how, out := gatewayMode(v6), egress(v6)
	is, a := how.Of(n), out.Of(n)
	bound := slices.ContainsFunc(modes.Bind.Of(n), func(a netip.Addr) bool { return a.Is6() == v6 })
	return first(n,
		refusal{how.Row(), is == gatewayIsolated && !n.Internal, "only a network with --internal can be without the host"},
		refusal{modes.Bind.Row(), is == gatewayRouted && bound, "with " + how.Name + "=routed ports are published by the containers' own addresses"},
		refusal{out.Row(), a.IsLoopback() || a.IsMulticast(), "nothing can leave with that address"},
		refusal{out.Row(), a.IsValid() && n.Internal, "an internal network has no way out"},
		refusal{out.Row(), a.IsValid() && is != gatewayNAT, "with " + how.Name + "=" + is + " containers leave with their own addresses"},
		refusal{out.Row(), a.IsValid() && !modes.Masquerade.Of(n), "with masquerade=false containers leave with their own addresses"},
	)
}

func checkGuides(n modes.Network) error {
	guides, had := gatewayAddress.Of(n), map[bool]bool{}
	err := first(n,
		refusal{gatewayExit.Row(), gatewayExit.Of(n) && len(guides) == 0, "it is about the container that gateway_address names"},
		refusal{gatewayExit.Row(), gatewayExit.Of(n) && n.Internal, "an internal network has no way out"},
	)
	for _, a := range guides {
		if err != nil {
			return err
		}
		of, how := gatewayAddress.Row(), gatewayMode(a.Is6())
		err = first(n,
			refusal{of, !inSubnet(n, a), a.String() + " is in no subnet of the network"},
			refusal{of, isGateway(n, a), a.String() + " is the host's own address on the network"},
			refusal{of, had[a.Is6()], "a container can have one default route of a family only"},
			refusal{of, how.Of(n) == gatewayRouted, "with " + how.Name + "=routed containers answer by way of the host"},
			refusal{of, !icc.Of(n), "with icc=false containers do not reach it"},
		)
		had[a.Is6()] = true
	}
	return err
}

func inSubnet(n modes.Network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) })
}

func isGateway(n modes.Network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Gateway.Addr() == a })
}

// present refuses a network that relies on what the host does not have. Only where it is created: what is on record has
// to come up again whatever the host has lost since.
func present(f modes.Facts, n modes.Network) error {
	for _, o := range []modes.AddrOption{egress4, egress6} {
		a := o.Of(n)
		if !a.IsValid() {
			continue
		}
		if ok, err := f.HasAddr(a); err != nil || !ok {
			return cmp.Or(err, o.Row().Refuse(n, "it is not an address of this host"))
		}
	}
	if ndpProxy.Of(n) == "" {
		return nil
	}
	_, ok, err := f.FindLink(ndpProxy.Of(n))
	if err == nil && !ok {
		err = ndpProxy.Row().Refuse(n, "there is no such interface")
	}
	return err
}

// checkHostBridge refuses what cannot be had on a bridge of the host's owner, who sets it up and routes it.
func checkHostBridge(n modes.Network, link core.LinkInfo) error {
	other, _, ours := core.ParseAlias(link.Alias)
	_, sized := n.Options[modes.MTU.Name]
	err := first(n,
		refusal{bridge.Row(), ours, "it is the bridge of netyard's network " + modes.Short(other)},
		refusal{bridge.Row(), link.Kind != "bridge", "that link is not a bridge but a " + link.Kind},
		refusal{modes.MTU.Row(), sized && modes.MTU.Of(n) != link.MTU, fmt.Sprintf("the host's bridge %s has %d, which netyard does not change", name(n), link.MTU)},
	)
	for _, o := range []modes.BoolOption{modes.Masquerade, promisc} {
		if err == nil && n.Options[o.Name] == "true" {
			err = o.Row().Refuse(n, "the bridge %s is the host's, which netyard does not change", name(n))
		}
	}
	for _, o := range []modes.Option{gatewayMode4.Row(), gatewayMode6.Row(), egress4.Row(), egress6.Row(), gatewayAddress.Row(), ndpProxy.Row()} {
		if v := o.Of(n); err == nil && v != "" && v != gatewayNAT {
			err = o.Refuse(n, "netyard does not route the host's bridge %s", name(n))
		}
	}
	return err
}
