// Package bridged has what the modes share whose containers are attached to a bridge.
package bridged

import (
	"fmt"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/modes"
)

// Name returns the name of a network's bridge, if none was given.
func Name(n modes.Network) string { return core.Name(core.BridgePrefix, n.ID) }

// CheckFree refuses a subnet that overlaps one of the host's on another link than the bridge, since both routes would
// match. It may lie inside the subnets of the links in within.
func CheckFree(f modes.Facts, s modes.Subnet, bridge string, within ...string) error {
	link, other, err := f.OverlappingLink(s.Pool, bridge, within...)
	if err == nil && link != "" {
		err = fmt.Errorf("subnet %s overlaps %s on the host's link %s", s.Pool, other, link)
	}
	return err
}

// Peer returns the name of the inner end of an endpoint's veth pair until it is moved in; one that is created in the
// sandbox has its final name.
func Peer(e modes.Endpoint) string {
	if e.Into > 0 {
		return e.IfName
	}
	return core.Name(core.PeerPrefix, e.ID)
}

// Veth returns the veth pair of an endpoint, with one end on a bridge.
func Veth(n modes.Network, e modes.Endpoint, master string, mtu int) bridge.Veth {
	return bridge.Veth{
		Name: core.Name(core.VethPrefix, e.ID), Peer: Peer(e), PeerNS: e.Into, Alias: core.Alias(n.ID, e.ID),
		Master: master, MTU: mtu, MAC: e.HardwareAddr(),
	}
}

// Port returns a veth pair and its guard. The bridge learns no addresses from the port.
func Port(e modes.Endpoint, v bridge.Veth) []core.Object {
	guard := e.Guard(v.Name, v.MAC).Objects()
	if v.Fenced { // no port of the bridge
		return append([]core.Object{v}, guard...)
	}
	return append([]core.Object{v, bridge.StaticPort{Link: v.Name, MAC: v.MAC}}, guard...)
}

// Forwarding returns the forwarding settings of a network's families. Endpoints want them, and not the network: an
// engine that starts after netyard and finds forwarding on would not protect its own networks (moby, FORWARD policy
// DROP).
func Forwarding(n modes.Network) (objects []core.Object) {
	v4, v6 := n.Families()
	if v4 {
		objects = append(objects, beside.Forwarding{})
	}
	if v6 {
		objects = append(objects, beside.Forwarding{IPv6: true})
	}
	return objects
}

// A Zone says what the firewall allows on a bridge.
type Zone struct {
	Bridge string
	// Internal: nothing leaves it, and nothing comes in.
	Internal bool
	// ICC: its containers reach each other.
	ICC bool
}

// Objects returns the elements of firewall sets for the bridge.
func (z Zone) Objects(n modes.Network) []core.Object {
	all := []nft.Element{nft.InterfaceIn(bridge.Bridges, z.Bridge), nft.InterfaceIn(bridge.Own, z.Bridge, z.Bridge)}
	if z.Internal {
		all = append(all, nft.InterfaceIn(bridge.Internal, z.Bridge))
	}
	if z.ICC {
		all = append(all, nft.InterfaceIn(bridge.Reachable, z.Bridge, z.Bridge))
	}
	return Owned(n, all...)
}

// NAT returns the elements that give traffic from a subnet the address of the link by which it leaves.
func NAT(n modes.Network, s modes.Subnet) []core.Object {
	set := bridge.NAT4
	if s.Pool.Addr().Is6() {
		set = bridge.NAT6
	}
	return Owned(n, nft.SubnetIn(set, s.Pool))
}

// Owned returns elements as objects of a network.
func Owned(n modes.Network, elements ...nft.Element) (objects []core.Object) {
	for _, e := range elements {
		objects = append(objects, e.For(n.ID))
	}
	return objects
}
