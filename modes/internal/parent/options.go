package parent

import (
	"slices"

	"netyard/modes"
)

// Options of both kinds.
var (
	// HostAccess gives the host a link of its own on the parent.
	HostAccess = modes.BoolOption{
		Name: "host_access", Default: "false",
		Fixed: "running containers have their routes from their engine; recreate the network",
		Help: "let host and containers reach each other, by a link of the host on the parent; " +
			"needs macvlan_mode=bridge or ipvlan_flag=bridge",
	}
	// HostPublish publishes ports on the host's addresses as well.
	HostPublish = modes.BoolOption{
		Name: "host_publish", Default: "false",
		Fixed: "the ports of running containers are published already; recreate the network",
		Help:  "publish ports on the host's addresses, too, as on a bridge network; needs host_access=true",
	}
	// Parent names the host's link to the LAN.
	Parent = modes.LinkOption{
		Name: "parent", CNI: "master",
		Fixed: "the links of running containers are on that parent; recreate the network",
		Help: "host link to the LAN; eth0.50 creates the link of VLAN 50 on eth0 if it is missing; " +
			"without a parent, containers only reach each other",
	}
)

// Options returns the rows of both kinds and those of one.
func Options(own ...modes.Option) []modes.Option {
	return slices.Concat(own, []modes.Option{
		HostAccess.Row(), HostPublish.Row(), Parent.Row(),
		modes.BigTCP.Row(), modes.Bind.Row(), modes.IfacePrefix.Row(), modes.MTU.Row(),
	})
}
