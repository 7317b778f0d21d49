package bridge

import (
	"netyard/modes"
	"netyard/modes/internal/gateway"
)

var (
	antispoof = modes.BoolOption{
		Name: "antispoof", Endpoint: true, Set: true, Default: "true",
		Help: "containers send only from the addresses they were given, and play no DHCP server",
	}
	bridge = modes.LinkOption{
		Name: "bridge", Docker: []string{"com.docker.network.bridge.name"}, CNI: "bridge",
		Fixed: "endpoints are plugged into that bridge; make the network anew",
		Help:  "name of the bridge; one that exists already and is not netyard's is attached to and never altered or deleted",
	}
	icc = modes.BoolOption{
		Name: "icc", Docker: []string{"com.docker.network.bridge.enable_icc"}, Set: true, Default: "true",
		Help: "containers of the network reach each other",
	}
	inhibit4 = modes.BoolOption{
		Name: "inhibit_ipv4", Docker: []string{"com.docker.network.bridge.inhibit_ipv4"}, Set: true, Default: "false",
		Help: "do not put the IPv4 gateway's address on the bridge",
	}
	promisc = modes.BoolOption{
		Name: "promisc", Default: "false",
		Help: "the host listens to all frames on the bridge, also to those for others",
	}
	staticRoutes = modes.RoutesOption{
		Name:  "routes",
		Fixed: "running containers have their routes already; make the network anew",
		Help:  "static routes inside the containers: SUBNET@NEXTHOP, or SUBNET for one that is on the link, with commas between them",
	}
)

func (mode) Options() []modes.Option {
	return append(gateway.Options(),
		antispoof.Row(), bridge.Row(), icc.Row(), inhibit4.Row(), promisc.Row(), staticRoutes.Row(), modes.Bind.Row(), modes.BothRate.Row(),
		modes.EgressRate.Row(), modes.IfacePrefix.Row(), modes.IngressRate.Row(), modes.MTU.Row(), modes.PublishFrom.Row())
}
