package gateway

import "netyard/modes"

// The values of gateway_mode_ipv4 and gateway_mode_ipv6.
const (
	NAT      = "nat"
	Routed   = "routed"
	Isolated = "isolated"
)

var (
	egress4 = modes.AddrOption{
		Name: "egress_ipv4", Docker: []string{"com.docker.network.host_ipv4"}, Kind: modes.Addr4,
		Fixed: "flows that are known keep the address they left with; make the network anew",
		Help:  "address of the host that containers leave with, instead of that of the interface they leave by",
	}
	egress6 = modes.AddrOption{
		Name: "egress_ipv6", Docker: []string{"com.docker.network.host_ipv6"}, Kind: modes.Addr6, Fixed: egress4.Fixed,
		Help: "the same for IPv6",
	}
	exit = modes.BoolOption{
		Name: "gateway_exit", Default: "false",
		Fixed: "that container has its default route already; make the network anew",
		Help:  "that container goes out by this network itself; without it, it needs another network for that",
	}
	// Address names the container that the others go out by.
	Address = modes.AddrsOption{
		Name:  "gateway_address",
		Fixed: "running containers have their default route already; make the network anew",
		Help:  "addresses of the container that the others go out by; nothing goes out past it. It needs --ipam-driver netyard, and the container --ip",
	}
	mode4 = modes.EnumOption{
		Name: "gateway_mode_ipv4", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv4"},
		Values: []string{NAT, Routed, Isolated}, Default: NAT,
		Fixed: "the published ports of running containers are as they are; make the network anew",
		Help:  "nat: containers have the host's address outside. routed: their own, and -p opens their own ports. isolated: the host has no address on the bridge; with --internal only",
	}
	mode6 = modes.EnumOption{
		Name: "gateway_mode_ipv6", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv6"},
		Values: mode4.Values, Default: NAT, Fixed: mode4.Fixed, Help: "the same for IPv6",
	}
	ndpProxy = modes.LinkOption{
		Name: "ndp_proxy", Set: true,
		Help: "interface of the host on which it answers for its containers' IPv6 addresses, which are of that link's subnet",
	}
)

// Options are the rows of the table that are about gateways.
func Options() []modes.Option {
	return []modes.Option{
		egress4.Row(), egress6.Row(), Address.Row(), exit.Row(), mode4.Row(), mode6.Row(), ndpProxy.Row(), modes.Masquerade.Row(),
	}
}

// modeOf is the option for a family.
func modeOf(v6 bool) modes.EnumOption {
	if v6 {
		return mode6
	}
	return mode4
}

// egress is the option for a family.
func egress(v6 bool) modes.AddrOption {
	if v6 {
		return egress6
	}
	return egress4
}
