// Package ipvlan is the mode of containers that share the hardware address of the host's link to the LAN: as members of
// that LAN (l2), or behind the host, which routes for them (l3, l3s). The kernel tells them apart by their IP addresses
// (Documentation/networking/ipvlan.rst).
package ipvlan

import (
	"context"
	"errors"
	"fmt"
	"net"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/modes"
	"netyard/modes/internal/parent"
)

const l2 = "l2"

type mode struct{ parent.Mode }

// New makes the mode.
func New(e modes.Env) (modes.Mode, error) {
	return mode{parent.Mode{Kernel: e.Kernel, Kind: parent.Kind{
		Name:    "ipvlan",
		Setting: func(n modes.Network) (mode, flag string) { return n.Opt("ipvlan_mode"), n.Opt("ipvlan_flag") },
		Share:   share,
		Settle:  func(n modes.Network, name string, _ core.LinkInfo) error { return settle(e.Kernel, n, name) },
		MAC:     func(modes.Network, modes.Endpoint) net.HardwareAddr { return nil },
		Member:  member,
		Routed:  routed,
		ByInput: func(n modes.Network) bool { return n.Opt("ipvlan_mode") == "l3s" },
		Returns: returns,
	}}}, nil
}

// returns: with l2 the answers come in by the parent, where they are one of many things that are forwarded, and
// Docker's FORWARD drops them.
func returns(n modes.Network) error {
	if routed(n) {
		return nil
	}
	return errors.New("with ipvlan_mode=l2 the containers' answers do not come in by the host's own link on the parent; use l3, l3s or macvlan")
}

func routed(n modes.Network) bool { return n.Opt("ipvlan_mode") != l2 }

// member: no broadcast gets from behind the host to a DHCP server, nor back.
func member(n modes.Network) error {
	if routed(n) {
		return fmt.Errorf("ipvlan_mode=%s is behind the host, which routes no DHCP; use ipvlan_mode=l2", n.Opt("ipvlan_mode"))
	}
	return nil
}

// Gatewayless: behind the host there is no neighbour that could be a gateway.
func (mode) Gatewayless(n modes.Network) (v4, v6 bool) { return routed(n), routed(n) }

// Settle finds the parent.
func (m mode) Settle(_ context.Context, n modes.Network) (map[string]string, error) {
	return m.Mode.Settle(n)
}

// share: mode and flag are the parent's, not the link's: a second network that said others would change the first one's
// without a word (ipvlan_link_new, drivers/net/ipvlan/ipvlan_main.c).
func share(n, other modes.Network) error {
	for _, option := range []string{"ipvlan_mode", "ipvlan_flag"} {
		if has := other.Opt(option); n.Opt(option) != has {
			return fmt.Errorf("its %s=%s is that of all networks on one parent", option, has)
		}
	}
	return nil
}

// settle refuses what would be dropped on its way: a container's packet to the host's own address comes in by the
// parent, and the answer leaves by the host's own link.
func settle(k *kernel.Kernel, n modes.Network, name string) error {
	if !n.OptBool("host_access") || routed(n) || name != n.Opt("parent") {
		return nil
	}
	strictness, err := lan.ReversePath(k.Handle, name)
	if err == nil && strictness == "1" {
		err = fmt.Errorf("%w: host_access=true: net.ipv4.conf.%s.rp_filter is 1, which would drop what containers send to the host; set it to 2, or use ipvlan_mode=l3", modes.ErrOption, name)
	}
	return err
}
