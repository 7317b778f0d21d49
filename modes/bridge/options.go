package bridge

import "netyard/modes"

// The values of gateway_mode_ipv4 and gateway_mode_ipv6.
const gatewayNAT, gatewayRouted, gatewayIsolated = "nat", "routed", "isolated"

var (
	antispoof = modes.BoolOption{
		Name: "antispoof", Endpoint: true, Set: true, Default: "true",
		Help: "containers send only from the addresses they were given, and play no DHCP server",
	}
	bridge = modes.LinkOption{
		Name: "bridge", Docker: []string{"com.docker.network.bridge.name"},
		Fixed: "endpoints are plugged into that bridge; make the network anew",
		Help:  "name of the bridge; one that exists already and is not netyard's is attached to and never altered or deleted",
	}
	egress4 = modes.AddrOption{
		Name: "egress_ipv4", Docker: []string{"com.docker.network.host_ipv4"}, Kind: modes.Addr4,
		Fixed: "flows that are known keep the address they left with; make the network anew",
		Help:  "address of the host that containers leave with, instead of that of the interface they leave by",
	}
	egress6 = modes.AddrOption{
		Name: "egress_ipv6", Docker: []string{"com.docker.network.host_ipv6"}, Kind: modes.Addr6, Fixed: egress4.Fixed, Help: "the same for IPv6",
	}
	gatewayAddress = modes.AddrsOption{
		Name:  "gateway_address",
		Fixed: "running containers have their default route already; make the network anew",
		Help:  "addresses of the container that the others go out by; nothing goes out past it. It needs --ipam-driver netyard, and the container --ip",
	}
	gatewayExit = modes.BoolOption{
		Name: "gateway_exit", Default: "false",
		Fixed: "that container has its default route already; make the network anew",
		Help:  "that container goes out by this network itself; without it, it needs another network for that",
	}
	gatewayMode4 = modes.EnumOption{
		Name: "gateway_mode_ipv4", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv4"},
		Values: []string{gatewayNAT, gatewayRouted, gatewayIsolated}, Default: gatewayNAT,
		Fixed: "the published ports of running containers are as they are; make the network anew",
		Help:  "nat: containers have the host's address outside. routed: their own, and -p opens their own ports. isolated: the host has no address on the bridge; with --internal only",
	}
	gatewayMode6 = modes.EnumOption{
		Name: "gateway_mode_ipv6", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv6"},
		Values: gatewayMode4.Values, Default: gatewayNAT, Fixed: gatewayMode4.Fixed, Help: "the same for IPv6",
	}
	icc = modes.BoolOption{
		Name: "icc", Docker: []string{"com.docker.network.bridge.enable_icc"}, Set: true, Default: "true",
		Help: "containers of the network reach each other",
	}
	inhibit4 = modes.BoolOption{
		Name: "inhibit_ipv4", Docker: []string{"com.docker.network.bridge.inhibit_ipv4"}, Set: true, Default: "false",
		Help: "do not put the IPv4 gateway's address on the bridge",
	}
	ndpProxy = modes.LinkOption{
		Name: "ndp_proxy", Set: true,
		Help: "interface of the host on which it answers for its containers' IPv6 addresses, which are of that link's subnet",
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
	return []modes.Option{
		antispoof.Row(), bridge.Row(), egress4.Row(), egress6.Row(), gatewayAddress.Row(), gatewayExit.Row(), gatewayMode4.Row(),
		gatewayMode6.Row(), icc.Row(), inhibit4.Row(), ndpProxy.Row(), promisc.Row(), staticRoutes.Row(), modes.Bind.Row(), modes.BothRate.Row(),
		modes.EgressRate.Row(), modes.IfacePrefix.Row(), modes.IngressRate.Row(), modes.MTU.Row(), modes.Masquerade.Row(), modes.PublishFrom.Row(),
	}
}

// gatewayMode is the option for a family.
func gatewayMode(v6 bool) modes.EnumOption {
	if v6 {
		return gatewayMode6
	}
	return gatewayMode4
}

// egress is the option for a family.
func egress(v6 bool) modes.AddrOption {
	if v6 {
		return egress6
	}
	return egress4
}
