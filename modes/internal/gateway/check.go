package gateway

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/modes/internal/bridged"
)

// Check refuses options that contradict each other. reach says whether containers of the network reach each other.
func Check(n modes.Network, reach bool) error {
	for _, v6 := range []bool{false, true} {
		if err := checkFamily(n, v6); err != nil {
			return err
		}
	}
	if err := checkProxy(n); err != nil {
		return err
	}
	guides := Address.Of(n)
	err := n.Refuse(
		exit.Row().If(exit.Of(n) && len(guides) == 0, "it needs gateway_address"),
		exit.Row().If(exit.Of(n) && n.Internal, "an internal network has no way out"),
	)
	had := map[bool]bool{}
	for _, a := range guides {
		if err == nil {
			err = checkGuide(n, a, had[a.Is6()], reach)
		}
		had[a.Is6()] = true
	}
	return err
}

func checkFamily(n modes.Network, v6 bool) error {
	how, out := modeOf(v6), egress(v6)
	is, a := how.Of(n), out.Of(n)
	bound := slices.ContainsFunc(modes.Bind.Of(n), func(a netip.Addr) bool { return a.Is6() == v6 })
	return n.Refuse(
		how.Row().If(is == Isolated && !n.Internal, "it needs --internal"),
		modes.Bind.Row().If(is == Routed && bound,
			"with %s=routed, ports are published on the containers' own addresses", how.Name),
		out.Row().If(a.IsLoopback() || a.IsMulticast(), "it cannot be a source address"),
		out.Row().If(a.IsValid() && n.Internal, "an internal network has no way out"),
		out.Row().If(a.IsValid() && is != NAT, "with %s=%s containers leave with their own addresses", how.Name, is),
		out.Row().If(a.IsValid() && !modes.Masquerade.Of(n),
			"with masquerade=false containers leave with their own addresses"),
	)
}

func checkProxy(n modes.Network) error {
	if ndpProxy.Of(n) == "" {
		return nil
	}
	_, v6 := n.Families()
	return n.Refuse(
		ndpProxy.Row().If(!v6, "the network has no IPv6 subnet"),
		ndpProxy.Row().If(n.Internal, "nothing gets into an internal network"),
		ndpProxy.Row().If(mode6.Of(n) == NAT && modes.Masquerade.Of(n),
			"containers leave with the host's address; add gateway_mode_ipv6=routed or masquerade=false"),
	)
}

// checkGuide refuses an address of the gateway container; another: it has one of that family already.
func checkGuide(n modes.Network, a netip.Addr, another, reach bool) error {
	how, of := modeOf(a.Is6()), Address.Row()
	host := slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Gateway.Addr() == a })
	return n.Refuse(
		of.If(!n.Contains(a), "%s is in no subnet of the network", a),
		of.If(host, "%s is the host's own address on the network", a),
		of.If(another, "a container can have only one default route per family"),
		of.If(how.Of(n) == Routed, "with %s=routed, replies of containers pass the host", how.Name),
		of.If(!reach, "with icc=false, containers do not reach it"),
	)
}

// CheckHost refuses a network that needs an address or link that the host lacks. It is asked only when a network is
// created: a recorded network has to come up whatever the host has lost since.
func CheckHost(f modes.Facts, n modes.Network) error {
	for _, o := range []modes.AddrOption{egress4, egress6} {
		a := o.Of(n)
		if !a.IsValid() {
			continue
		}
		if ok, err := f.HasAddr(a); err != nil || !ok {
			return orElse(err, o.Row().Refuse(n, "it is not an address of this host"))
		}
	}
	if link := ndpProxy.Of(n); link != "" {
		if _, ok, err := f.FindLink(link); err != nil || !ok {
			return orElse(err, ndpProxy.Row().Refuse(n, "there is no such interface"))
		}
	}
	return nil
}

func orElse(err, refusal error) error {
	if err != nil {
		return err
	}
	return refusal
}

// Free refuses subnets that the host has addresses in, on another link than the bridge.
func Free(f modes.Facts, n modes.Network, br string) error {
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() || IsolatedAt(n, s) {
			continue
		}
		if err := bridged.CheckFree(f, s, br, ndpProxy.Of(n)); err != nil {
			return err
		}
	}
	return nil
}

// CheckHostBridge refuses options that netyard cannot honour on a bridge of the host, which it does not route.
func CheckHostBridge(n modes.Network, br string) error {
	all := []modes.Option{mode4.Row(), mode6.Row(), egress4.Row(), egress6.Row(), Address.Row(), ndpProxy.Row()}
	for _, o := range all {
		if v := o.Of(n); v != "" && v != NAT {
			return o.Refuse(n, "netyard does not route the host's bridge %s", br)
		}
	}
	return nil
}
