package modes

import (
	"fmt"

	"netyard/kernel/gso"
)

// Auto is the value of an option that netyard decides by what the host can do.
const Auto = "auto"

// Options of several modes. Options of one mode are in its folder.
var (
	// BigTCP says whether TCP may use segments of more than 64 KiB on the network's links.
	BigTCP = EnumOption{
		Name: "big_tcp", Set: true, Default: Auto, Values: []string{Auto, "false", "true"},
		Help: "let TCP send segments of more than 64 KiB (BIG TCP) between containers: " +
			"auto where every link takes them by which packets leave the network; " +
			"true refuses a network where one does not",
	}
	// Bind names the host's addresses on which ports are published.
	Bind = AddrsOption{
		Name: "bind", Docker: []string{"com.docker.network.bridge.host_binding_ipv4"},
		Fixed: "the ports of running containers are published on these addresses; recreate the network",
		Help:  "host addresses for published ports that name none; default: all",
	}
	// IfacePrefix is the prefix of the names of links inside containers.
	IfacePrefix = LinkOption{
		Name: "iface_prefix",
		Docker: []string{
			"com.docker.network.container_iface_prefix", "com.docker.network.container_interface_prefix",
		},
		Default: "eth", Max: 13, // and two digits
		Fixed: "running containers have their interface names already; recreate the network",
		Help:  "prefix of the interface name inside the container",
	}
	// Masquerade gives outgoing traffic the host's address.
	Masquerade = BoolOption{
		Name: "masquerade", Docker: []string{"com.docker.network.bridge.enable_ip_masquerade"},
		Set: true, Default: "true",
		Help: "outgoing traffic takes the host's address (NAT), IPv4 and IPv6",
	}
	// MTU is the largest packet that the network's links carry, bytes.
	MTU = IntOption{
		Name: "mtu", Docker: []string{"com.docker.network.driver.mtu", "com.docker.network.mtu"},
		Default: "1500", Min: 68, Max: 65535,
		Fixed: "the interfaces of running containers have it already; recreate the network",
		Help: "largest packet, bytes (at least 1280 with IPv6, RFC 8200); " +
			"default of macvlan and ipvlan: the parent's, of overlay: what fits between the hosts",
	}
	// PublishFrom names the clients that reach published ports.
	PublishFrom = SourcesOption{
		Name: "publish_from", Set: true,
		Help: "who can connect to published ports: source subnets or incoming interfaces; default: everybody. " +
			"The host always can",
	}
)

// MinIPv6MTU is the least an IPv6 link must carry, bytes (RFC 8200, section 5).
const MinIPv6MTU = 1280

// CheckMTU refuses an MTU that is too small for a network's IPv6; 0: the network takes the MTU of another link.
func (n Network) CheckMTU(mtu int) error {
	if _, v6 := n.Families(); v6 && mtu != 0 && mtu < MinIPv6MTU {
		return MTURefusal(mtu, "IPv6 needs at least %d", MinIPv6MTU)
	}
	return nil
}

// MTURefusal returns an error that says why an MTU is refused.
func MTURefusal(mtu int, why string, args ...any) error {
	return Refuse("%s=%d: %s", MTU.Name, mtu, fmt.Sprintf(why, args...))
}

// CheckBigTCP refuses segments of more than 64 KiB that the host cannot have, if they were asked for.
func CheckBigTCP(f Facts, n Network, want gso.Want) error {
	if BigTCP.Of(n) != "true" {
		return nil
	}
	limit, err := f.SegmentLimit(want)
	if err != nil || limit.Big() {
		return err
	}
	return BigTCP.Row().Refuse(n, "%s", limit.Reason)
}
