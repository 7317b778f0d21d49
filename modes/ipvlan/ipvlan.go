// Package ipvlan is the mode of containers that share the hardware address of the host's link to the LAN: as members of
// that LAN (l2), or behind the host, which routes for them (l3, l3s). The kernel tells them apart by their IP addresses
// (Documentation/networking/ipvlan.rst).
package ipvlan

import (
	"context"
	"errors"
	"fmt"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/internal/parent"
)

const l2 = "l2"

var (
	flag = modes.EnumOption{
		Name: "ipvlan_flag", Values: []string{"bridge", "private", "vepa"}, Default: "bridge",
		Fixed: "it is a setting of the parent, for all networks on it; recreate them",
		Help: "how containers on the parent reach each other: directly (bridge), not at all (private), " +
			"or by the switch (vepa)",
	}
	mode = modes.EnumOption{
		Name: "ipvlan_mode", CNI: "mode", Values: []string{l2, "l3", "l3s"}, Default: l2,
		Fixed: "it is a setting of the parent, for all networks on it; recreate them",
		Help:  "containers are members of the LAN (l2), or routed by the host (l3; l3s: through its firewall)",
	}
)

type ipvlan struct{ parent.Kind }

// New makes the mode.
func New(modes.Env) modes.Mode {
	return ipvlan{parent.Kind{
		Name: "ipvlan", Share: share, Fit: fit, Member: member, Routed: routed, Returns: returns,
		MAC:     func(modes.Network) modes.MACRule { return modes.MACNone },
		Setting: func(n modes.Network) (setting, flags string) { return mode.Of(n), flag.Of(n) },
		ByInput: func(n modes.Network) bool { return mode.Of(n) == "l3s" },
	}}
}

func (ipvlan) Options() []modes.Option { return parent.Options(flag.Row(), mode.Row()) }

func (m ipvlan) Settle(
	_ context.Context, f modes.Facts, n modes.Network, others []modes.Network,
) (map[string]string, error) {
	return m.Kind.Settle(f, n, others)
}

// routed says whether the host routes for the network.
func routed(n modes.Network) bool { return mode.Of(n) != l2 }

// returns refuses l2, with which replies arrive on the parent, where Docker's FORWARD policy drops them.
func returns(n modes.Network) error {
	if routed(n) {
		return nil
	}
	return errors.New("with ipvlan_mode=l2 replies of containers do not pass the host's own link on the parent; " +
		"use l3, l3s or macvlan")
}

// member refuses a routed network, since the host does not route the broadcasts of DHCP.
func member(n modes.Network) error {
	if routed(n) {
		return fmt.Errorf("ipvlan_mode=%s is routed by the host, and DHCP is not routed; use ipvlan_mode=l2",
			mode.Of(n))
	}
	return nil
}

// share refuses a network whose mode or flag differs: they are settings of the parent, and a second network with others
// would silently change those of the first (ipvlan_link_new, drivers/net/ipvlan/ipvlan_main.c).
func share(n, other modes.Network) error {
	for _, o := range []modes.EnumOption{mode, flag} {
		if has := o.Of(other); o.Of(n) != has {
			return fmt.Errorf("its %s=%s is shared by all networks on one parent", o.Name, has)
		}
	}
	return nil
}

// fit refuses a host that would drop packets from containers to its own address: they arrive on the parent, and the
// reply leaves by the host's own link.
func fit(f modes.Facts, n modes.Network, name string, _ core.LinkInfo) error {
	if !parent.HostAccess.Of(n) || routed(n) || name != parent.Parent.Of(n) {
		return nil
	}
	strictness, err := f.ReversePath(name)
	if err == nil && strictness == "1" {
		err = parent.HostAccess.Row().Refuse(n,
			"net.ipv4.conf.%s.rp_filter is 1, which drops packets from containers to the host; "+
				"set it to 2, or use ipvlan_mode=l3",
			name)
	}
	return err
}
