package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"netyard/kernel/beside"
	kbridge "netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/sandbox"
	"netyard/modes"
)

// minIPv6MTU is the least an IPv6 link must carry (RFC 8200, section 5).
const minIPv6MTU = 1280

// checkLink refuses what the private link between host and containers cannot be.
func checkLink(n modes.Network) error {
	if len(n.Subnets) == 0 {
		return errors.New("mode host needs a subnet for the private link to its containers, whose addresses nobody else sees: leave --ipam-driver null out")
	}
	for _, s := range n.Subnets {
		if !s.Gateway.IsValid() || !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("subnet %s has no gateway: mode host needs an address of the host in it", s.Pool)
		}
		if s.Pool.Addr().Is6() && n.OptInt("mtu") < minIPv6MTU {
			return fmt.Errorf("%w: mtu=%d: IPv6 needs at least %d", modes.ErrOption, n.OptInt("mtu"), minIPv6MTU)
		}
	}
	return nil
}

func bridgeOf(n modes.Network) string { return core.Name(core.BridgePrefix, n.ID) }

// linkObjects are the private link: a bridge that only the host and the network's containers are on, and what makes its
// packets leave with the host's address. The containers reach each other on it, as programs of one host do.
func linkObjects(n modes.Network) []core.Object {
	br := bridgeOf(n)
	bridge := kbridge.Bridge{Name: br, Alias: core.Alias(n.ID, ""), MTU: n.OptInt("mtu"), MAC: modes.LocalMAC(n.ID)}
	var rest []core.Object
	for _, s := range n.Subnets {
		nat := kbridge.NAT4
		if s.Pool.Addr().Is6() {
			nat, bridge.IPv6 = kbridge.NAT6, true
		}
		rest = append(rest, core.Addr{Link: br, Alias: bridge.Alias, Prefix: s.Gateway}, nft.SubnetIn(nat, s.Pool).For(n.ID))
	}
	return append(append([]core.Object{bridge}, rest...), nft.InterfaceIn(kbridge.Bridges, br).For(n.ID),
		nft.InterfaceIn(kbridge.Own, br, br).For(n.ID), nft.InterfaceIn(kbridge.Talk, br, br).For(n.ID))
}

// forwarding comes with the first endpoint, not with the network: at boot an engine that starts after netyard and finds
// it on would not guard its own networks (moby, FORWARD policy DROP).
func forwarding(n modes.Network) (objects []core.Object) {
	for _, v6 := range []bool{false, true} {
		if slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Addr().Is6() == v6 }) {
			objects = append(objects, beside.Forwarding{IPv6: v6})
		}
	}
	return objects
}

// veth may send back what came from it: a container reaches what it listens on by the host's address, too.
func veth(n modes.Network, e modes.Endpoint) kbridge.Veth {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		mac = modes.LocalMAC(e.ID)
	}
	return kbridge.Veth{
		Name: core.Name(core.VethPrefix, e.ID), Peer: core.Name(core.PeerPrefix, e.ID), Alias: core.Alias(n.ID, e.ID),
		Master: bridgeOf(n), MTU: n.OptInt("mtu"), MAC: mac, Hairpin: true,
	}
}

// guard binds an endpoint to the addresses it was given: it is closed for a port that nothing is known of.
func guard(n modes.Network, e modes.Endpoint) []core.Object {
	v := veth(n, e)
	return e.Guard(v.Name, v.MAC).Objects()
}

// Shares: all networks of the mode but those that hand out a card.
func (mode) Shares(n modes.Network) bool { return device(n) == "" }

// Shared are the sockets that the host's clients are to reach: bound to all addresses, or to the one that the endpoint
// has. What is bound to loopback, to an address of another network or to an interface is private. A port is not joined
// with its neighbours to a range: when one of them closes, the others must not be gone for a moment.
func (mode) Shared(n modes.Network, e modes.Endpoint, ls []sandbox.Listener) (shared []modes.Port) {
	include, exclude := n.OptPorts("include"), n.OptPorts("exclude")
	in := func(ranges []modes.PortRange, l sandbox.Listener) bool {
		return slices.ContainsFunc(ranges, func(r modes.PortRange) bool { return r.Has(l.Proto, l.Port) })
	}
	seen := map[modes.Port]bool{}
	for _, l := range ls {
		if l.Bound || in(exclude, l) || len(include) > 0 && !in(include, l) || l.Fleeting && len(include) == 0 {
			continue
		}
		for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			own := e.Address(all.Is4())
			if !own.IsValid() || !l.Both && l.Addr != all && l.Addr != own {
				continue
			}
			p := modes.Port{Proto: l.Proto, HostIP: all, HostPort: l.Port, ContainerPort: l.Port, Count: 1}
			if !seen[p] {
				seen[p] = true
				shared = append(shared, p)
			}
		}
	}
	return shared
}

// gateways are the default gateways of an endpoint: those of the subnets its addresses are in. An internal network has
// none.
func gateways(n modes.Network, e modes.Endpoint) (gws []netip.Addr) {
	if n.Internal {
		return nil
	}
	for _, a := range e.Addrs {
		for _, s := range n.Subnets {
			if s.Pool.Contains(a.Addr()) && s.Gateway.IsValid() {
				gws = append(gws, s.Gateway.Addr())
				break
			}
		}
	}
	return gws
}
