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
		modes.Objection{Option: exit.Row(), When: exit.Of(n) && len(guides) == 0, Why: "it needs gateway_address"},
		modes.Objection{Option: exit.Row(), When: exit.Of(n) && n.Internal, Why: "an internal network has no way out"},
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
	const own = " containers leave with their own addresses"
	return n.Refuse(
		modes.Objection{Option: how.Row(), When: is == Isolated && !n.Internal, Why: "it needs --internal"},
		modes.Objection{
			Option: modes.Bind.Row(), When: is == Routed && bound,
			Why: "with " + how.Name + "=routed ports are published by the containers' own addresses",
		},
		modes.Objection{Option: out.Row(), When: a.IsLoopback() || a.IsMulticast(), Why: "it cannot be a source address"},
		modes.Objection{Option: out.Row(), When: a.IsValid() && n.Internal, Why: "an internal network has no way out"},
		modes.Objection{Option: out.Row(), When: a.IsValid() && is != NAT, Why: "with " + how.Name + "=" + is + own},
		modes.Objection{Option: out.Row(), When: a.IsValid() && !modes.Masquerade.Of(n), Why: "with masquerade=false" + own},
	)
}

func checkProxy(n modes.Network) error {
	if ndpProxy.Of(n) == "" {
		return nil
	}
	_, v6 := n.Families()
	return n.Refuse(
		modes.Objection{Option: ndpProxy.Row(), When: !v6, Why: "the network has no IPv6 subnet"},
		modes.Objection{Option: ndpProxy.Row(), When: n.Internal, Why: "nothing gets into an internal network"},
		modes.Objection{
			Option: ndpProxy.Row(), When: mode6.Of(n) == NAT && modes.Masquerade.Of(n),
			Why: "containers leave with the host's address; add gateway_mode_ipv6=routed or masquerade=false",
		},
	)
}

// checkGuide refuses an address of the container that the others go out by; another is one of that family before it.
func checkGuide(n modes.Network, a netip.Addr, another, reach bool) error {
	how, of := modeOf(a.Is6()), Address.Row()
	host := slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Gateway.Addr() == a })
	return n.Refuse(
		modes.Objection{Option: of, When: !n.Contains(a), Why: a.String() + " is in no subnet of the network"},
		modes.Objection{Option: of, When: host, Why: a.String() + " is the host's own address on the network"},
		modes.Objection{Option: of, When: another, Why: "a container can have only one default route per family"},
		modes.Objection{Option: of, When: how.Of(n) == Routed, Why: "with " + how.Name + "=routed, replies of containers pass the host"},
		modes.Objection{Option: of, When: !reach, Why: "with icc=false, containers do not reach it"},
	)
}

// Fits refuses a network that relies on what the host does not have, or whose subnets the host has addresses in. It is
// asked only where a network is created: what is on record has to come up again whatever the host has lost since.
func Fits(f modes.Facts, n modes.Network) error {
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
		if err := bridged.Free(f, s, br, ndpProxy.Of(n)); err != nil {
			return err
		}
	}
	return nil
}

// CheckHostBridge refuses what cannot be had on a bridge of the host's owner, who routes it.
func CheckHostBridge(n modes.Network, br string) error {
	for _, o := range []modes.Option{mode4.Row(), mode6.Row(), egress4.Row(), egress6.Row(), Address.Row(), ndpProxy.Row()} {
		if v := o.Of(n); v != "" && v != NAT {
			return o.Refuse(n, "netyard does not route the host's bridge %s", br)
		}
	}
	return nil
}
