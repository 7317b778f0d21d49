package modes

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Contains says whether an address is in a subnet of the network.
func (n Network) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Pool.Contains(a) })
}

// RemoveCommand returns the command that removes the network: its engine's, which is netyard where it has none.
func (n Network) RemoveCommand() string { return n.Engine + " network rm " + cmp.Or(n.Name, n.ID) }

// Has says whether an address of a subnet is its gateway or an auxiliary one, and so no endpoint's.
func (s Subnet) Has(a netip.Addr) bool {
	for _, p := range s.Aux {
		if p.Addr() == a {
			return true
		}
	}
	return s.Gateway.Addr() == a
}

// Has says whether an endpoint has an address.
func (e Endpoint) Has(a netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// CheckGateways refuses a gateway outside of its subnet.
func (n Network) CheckGateways() error {
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() && !s.Pool.Contains(s.Gateway.Addr()) {
			return fmt.Errorf("gateway %s is not in subnet %s", s.Gateway.Addr(), s.Pool)
		}
	}
	return nil
}

// Gateways returns the default gateways of an endpoint: those of the subnets of its addresses. An internal network has
// none, since the engine would install it.
func (n Network) Gateways(e Endpoint) (gws []netip.Addr) {
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

// StableMAC derives a MAC from the endpoint's address, so that neighbours' caches stay valid when another container
// gets the address.
func (e Endpoint) StableMAC() net.HardwareAddr {
	if a := e.Address(true); a.IsValid() {
		return append(net.HardwareAddr{0x02, 0x42}, a.AsSlice()...)
	}
	return LocalMAC(e.ID)
}

// LocalMAC derives a locally administered unicast address from an ID (IEEE 802, 48-bit).
func LocalMAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}
