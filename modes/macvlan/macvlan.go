// Package macvlan is the mode of containers that are members of the host's LAN, each with a hardware address of its
// own, by a link on the host's (drivers/net/macvlan.c).
package macvlan

import (
	"context"
	"errors"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/internal/parent"
)

const passthru = "passthru"

var mode = modes.EnumOption{
	Name: "macvlan_mode", CNI: "mode", Values: []string{"bridge", passthru, "private", "vepa"}, Default: "bridge",
	Fixed: "the links of running containers are in that mode; recreate the network",
	Help: "how containers on the parent reach each other: directly (bridge), not at all (private), " +
		"or by the switch (vepa); passthru: one container has the parent alone",
}

type macvlan struct{ parent.Kind }

// New makes the mode.
func New(modes.Env) modes.Mode {
	return macvlan{parent.Kind{
		Name: "macvlan", MAC: mac, Share: share, Fit: fit, Member: member,
		Setting: func(n modes.Network) (setting, flag string) { return mode.Of(n), "" },
		Routed:  func(modes.Network) bool { return false },
	}}
}

func (macvlan) Options() []modes.Option {
	return parent.Options(mode.Row(), modes.PublishFrom.Row())
}

func (m macvlan) Settle(
	_ context.Context, f modes.Facts, n modes.Network, others []modes.Network,
) (map[string]string, error) {
	return m.Kind.Settle(f, n, others)
}

// mac returns the rule for hardware addresses: with passthru, parent and link have the same one, and setting one sets
// the other.
func mac(n modes.Network) modes.MACRule {
	if mode.Of(n) == passthru {
		return modes.MACAsIs
	}
	return modes.MACDerived
}

// share refuses a second network with passthru: a parent takes one passthru link, and no other beside it.
func share(n, other modes.Network) error {
	if mode.Of(n) == passthru || mode.Of(other) == passthru {
		return errors.New("macvlan_mode=passthru requires exclusive use of the parent")
	}
	return nil
}

func fit(_ modes.Facts, n modes.Network, name string, link core.LinkInfo) error {
	if link.Wireless && mode.Of(n) != passthru {
		return parent.Parent.Row().Refuse(n,
			"%s is wireless: an access point accepts frames from one hardware address only; use -d netyard-ipvlan",
			name)
	}
	return nil
}

// member refuses passthru, since netyard's DHCP client needs a second link on the parent.
func member(n modes.Network) error {
	if mode.Of(n) == passthru {
		return errors.New("macvlan_mode=passthru allows no second link on the parent, which DHCP needs")
	}
	return nil
}
