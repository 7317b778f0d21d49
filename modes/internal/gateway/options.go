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
		Fixed: "existing connections keep their source address; recreate the network",
		Help:  "source address of outgoing traffic; default: that of the outgoing interface",
	}
	egress6 = modes.AddrOption{
		Name: "egress_ipv6", Docker: []string{"com.docker.network.host_ipv6"}, Kind: modes.Addr6, Fixed: egress4.Fixed,
		Help: "the same for IPv6",
	}
	exit = modes.BoolOption{
		Name: "gateway_exit", Default: "false",
		Fixed: "that container has its default route already; recreate the network",
		Help:  "the gateway container leaves by this network itself; otherwise it needs another network for that",
	}
	// Address names the gateway container.
	Address = modes.AddrsOption{
		Name:  "gateway_address",
		Fixed: "running containers have their default route already; recreate the network",
		Help: "addresses of the container that is the gateway of the others, and their only way out. " +
			"Needs --ipam-driver netyard, and --ip for the container",
	}
	mode4 = modes.EnumOption{
		Name: "gateway_mode_ipv4", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv4"},
		Values: []string{NAT, Routed, Isolated}, Default: NAT,
		Fixed: "the ports of running containers are published already; recreate the network",
		Help: "nat: containers leave with the host's address. routed: with their own, and -p opens their own ports. " +
			"isolated: the host has no address on the bridge; needs --internal",
	}
	mode6 = modes.EnumOption{
		Name: "gateway_mode_ipv6", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv6"},
		Values: mode4.Values, Default: NAT, Fixed: mode4.Fixed, Help: "the same for IPv6",
	}
	ndpProxy = modes.LinkOption{
		Name: "ndp_proxy", Set: true,
		Help: "host interface on which the host answers neighbour solicitations for its containers, " +
			"whose addresses are in that link's subnet",
	}
)

// Options returns the rows of the table that are about gateways.
func Options() []modes.Option {
	return []modes.Option{
		egress4.Row(), egress6.Row(), Address.Row(), exit.Row(), mode4.Row(), mode6.Row(), ndpProxy.Row(),
		modes.Masquerade.Row(),
	}
}

// modeOf returns the gateway mode option of a family.
func modeOf(v6 bool) modes.EnumOption {
	if v6 {
		return mode6
	}
	return mode4
}

// egress returns the source address option of a family.
func egress(v6 bool) modes.AddrOption {
	if v6 {
		return egress6
	}
	return egress4
}
