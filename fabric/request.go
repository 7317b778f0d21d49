package fabric

import (
	"context"
	"fmt"
	"net/netip"

	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/kernel/core"
)

// The methods of this file are what requests of engines call. None waits for the kernel, except for a Grant that makes
// this host a member of a network again, see join.

// Grant gives an endpoint an address: a spare one, at once, or else one that it claims in etcd. A repeated request gets
// the same address.
func (a *Agent) Grant(ctx context.Context, w address.Wish) (netip.Addr, error) {
	n := a.network(w.Network)
	if n == nil {
		return netip.Addr{}, fmt.Errorf("network %s is not on this host", w.Network)
	}
	if err := a.leaving.gate.enter(ctx, n.ID); err != nil { // it is back before it was left
		return netip.Addr{}, err
	}
	defer a.leaving.gate.exit(n.ID)
	return n.addrs.Grant(ctx, w)
}

// CheckRoom returns why no address of a family could be granted now.
func (a *Agent) CheckRoom(network string, v6 bool) error {
	n := a.network(network)
	if n == nil {
		return fmt.Errorf("network %s is not on this host", network)
	}
	return n.addrs.Room(v6)
}

// HostOf returns the name of the other host that has a container with a MAC address on a network; empty: none has, as
// far as this host knows.
func (a *Agent) HostOf(network string, mac record.MAC) string {
	n := a.network(network)
	if n == nil {
		return ""
	}
	return n.plane.HostOf(mac)
}

// Publish records the MAC and the names of an endpoint and its addresses, and has them written to etcd, where the other
// hosts see them.
func (a *Agent) Publish(
	network string, addrs []netip.Addr, endpoint string, mac record.MAC, name string, aliases []string,
) error {
	return a.addresses.Publish(network, addrs, endpoint, mac, name, aliases)
}

// Rename changes the names of a published endpoint.
func (a *Agent) Rename(network, endpoint, name string, aliases []string) error {
	return a.addresses.Rename(network, endpoint, name, aliases)
}

// Withdraw undoes Publish: an endpoint is not reached by its addresses any more. They stay granted until Release.
func (a *Agent) Withdraw(network, endpoint string) error {
	return a.addresses.Withdraw(network, endpoint)
}

// Release returns a granted address.
func (a *Agent) Release(network string, addr netip.Addr) error {
	return a.addresses.Release(network, addr)
}

// Lookup returns the addresses that a name has for a client, see nametable.Tables.
func (a *Agent) Lookup(network string, asker netip.Addr, name string) []netip.Addr {
	return a.names.Lookup(network, asker, name)
}

// NameOf returns the name of an address, see nametable.Tables.
func (a *Agent) NameOf(network string, asker, addr netip.Addr) (name string, ours bool) {
	return a.names.NameOf(network, asker, addr)
}

// Objects returns what a network's link and the firewall should have now, to be compared with the kernel.
func (a *Agent) Objects(id string) []core.Object {
	n := a.network(id)
	if n == nil {
		return nil
	}
	objects := n.plane.Objects()
	if n.Encrypted {
		objects = append(objects, a.tunnel.Device(), a.tunnelPeers())
	}
	return objects
}
