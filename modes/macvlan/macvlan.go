// Package macvlan is the mode of containers that are members of the host's LAN, each with a hardware address of its
// own, by a link on the host's (drivers/net/macvlan.c).
package macvlan

import (
	"context"
	"errors"
	"fmt"
	"net"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/internal/parent"
)

const passthru = "passthru"

type mode struct{ parent.Mode }

// New makes the mode.
func New(e modes.Env) (modes.Mode, error) {
	return mode{parent.Mode{Kernel: e.Kernel, Kind: parent.Kind{
		Name:    "macvlan",
		Setting: func(n modes.Network) (mode, flag string) { return n.Opt("macvlan_mode"), "" },
		Share:   share, Settle: settle, MAC: mac, Member: member,
		Routed: func(modes.Network) bool { return false },
	}}}, nil
}

// Settle finds the parent.
func (m mode) Settle(_ context.Context, n modes.Network) (map[string]string, error) {
	return m.Mode.Settle(n)
}

// share: a parent that one link passes through takes no other.
func share(n, other modes.Network) error {
	if n.Opt("macvlan_mode") == passthru || other.Opt("macvlan_mode") == passthru {
		return errors.New("macvlan_mode=passthru has its parent for itself")
	}
	return nil
}

func settle(n modes.Network, name string, link core.LinkInfo) error {
	if link.Wireless && n.Opt("macvlan_mode") != passthru {
		return fmt.Errorf("%w: parent=%s: %s is wireless, and an access point takes frames from the one hardware address only that it knows; use -d netyard-ipvlan", modes.ErrOption, n.Opt("parent"), name)
	}
	return nil
}

// member: an address is asked for on a link beside the container's.
func member(n modes.Network) error {
	if n.Opt("macvlan_mode") == passthru {
		return errors.New("macvlan_mode=passthru has no room on its parent for a second link, by which to ask")
	}
	return nil
}

// mac: the kernel gives a link that passes through its parent's, and the parent the link's when that is set.
func mac(n modes.Network, e modes.Endpoint) net.HardwareAddr {
	if a, err := net.ParseMAC(e.MAC); err == nil {
		return a
	}
	if n.Opt("macvlan_mode") == passthru {
		return nil
	}
	return e.StableMAC()
}

// MAC is the same whenever the address comes back; passing through, it is the parent's.
func (m mode) MAC(n modes.Network, e modes.Endpoint) string {
	if n.Opt("macvlan_mode") == passthru {
		return ""
	}
	return e.StableMAC().String()
}
