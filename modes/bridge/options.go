package bridge

import (
	"netyard/modes"
	"netyard/modes/internal/gateway"
)

var (
	antispoof = modes.BoolOption{
		Name: "antispoof", Endpoint: true, Set: true, Default: "true",
		Help: "drop packets of containers from addresses that are not theirs, and their DHCP server replies",
	}
	bridge = modes.LinkOption{
		Name: "bridge", Docker: []string{"com.docker.network.bridge.name"}, CNI: "bridge",
		Fixed: "endpoints are attached to that bridge; recreate the network",
		Help:  "name of the bridge; an existing bridge of the host is used, and never changed or deleted",
	}
	hairpin = modes.BoolOption{
		Name: "hairpin", Endpoint: true, Set: true, Default: "false",
		Help: "let frames return to the container they came from, " +
			"for programs other than netyard that publish its ports",
	}
	icc = modes.BoolOption{
		Name: "icc", Docker: []string{"com.docker.network.bridge.enable_icc"}, Set: true, Default: "true",
		Help: "let containers of the network reach each other",
	}
	inhibit4 = modes.BoolOption{
		Name: "inhibit_ipv4", Docker: []string{"com.docker.network.bridge.inhibit_ipv4"}, Set: true, Default: "false",
		Help: "do not put the IPv4 gateway's address on the bridge",
	}
	promisc = modes.BoolOption{
		Name: "promisc", Default: "false",
		Help: "set the bridge to promiscuous mode",
	}
	staticRoutes = modes.RoutesOption{
		Name:  "routes",
		Fixed: "running containers have their routes already; recreate the network",
		Help: "static routes inside the containers, separated by commas: SUBNET@NEXTHOP, " +
			"or SUBNET for one on the link",
	}
	trusted = modes.LinksOption{
		Name: "trusted_interfaces", Docker: []string{"com.docker.network.bridge.trusted_host_interfaces"}, Set: true,
		Help: "host interfaces by which clients reach published ports at the containers' own addresses as well, " +
			"separated by commas or colons; default: none",
	}
)

func (mode) Options() []modes.Option {
	return append(gateway.Options(),
		antispoof.Row(), bridge.Row(), hairpin.Row(), icc.Row(), inhibit4.Row(), promisc.Row(), staticRoutes.Row(),
		trusted.Row(),
		modes.BigTCP.Row(), modes.Bind.Row(), modes.BothRate.Row(), modes.EgressRate.Row(), modes.IfacePrefix.Row(),
		modes.IngressRate.Row(), modes.MTU.Row(), modes.PublishFrom.Row())
}
