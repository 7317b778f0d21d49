package modes

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/xrash/smetrics"
)

// A Kind is the type of an option's value.
type Kind uint8

// The kinds of value an option can have.
const (
	String Kind = iota
	Bool
	Int
	Enum
	IfName
	Addr4
	Addr6
	Addrs   // addresses, with commas between them
	Routes  // static routes, with commas between them, see Route
	Sources // subnets and names of interfaces, with commas between them
	Ports   // ports and ranges of them, with commas between them; each may say its protocol
	Rate
)

// An Option is one line of the table: what can be said with -o NAME=VALUE.
type Option struct {
	Name   string
	Docker []string // the keys of Docker's built-in drivers that mean the same
	Modes  []string // the modes that know it; nil: every mode
	// Endpoint: it can also be said for one endpoint, which then goes before what its network says.
	Endpoint bool
	// Set: it can be changed while the network has endpoints, by Up and Attach again.
	Set bool
	// Fixed is why it cannot, of an option without Set.
	Fixed   string
	Kind    Kind
	Default string
	// Bare is what it means to say it without a value, as some of Docker's options are said; empty: it needs one.
	Bare   string
	Values []string // of an Enum
	Min    int      // of an Int
	Max    int      // of an Int, or of an IfName's letters; 0: as many as the kernel takes
	Help   string
}

// ErrOption is at the root of every refusal of an option.
var ErrOption = errors.New("bad option")

// Options is the table of network options, by name.
func Options() []Option {
	return []Option{
		{
			Name: "antispoof", Modes: []string{"bridge"}, Endpoint: true, Set: true, Kind: Bool, Default: "true",
			Help: "containers send only from the addresses they were given, and play no DHCP server",
		},
		{
			Name: "bind", Docker: []string{"com.docker.network.bridge.host_binding_ipv4"}, Modes: []string{"bridge", "ipvlan", "macvlan"}, Kind: Addrs,
			Fixed: "the ports of running containers are on their addresses already; make the network anew",
			Help:  "addresses of the host that ports are published on for which -p names none; all of them unless said otherwise",
		},
		{
			Name: "bridge", Docker: []string{"com.docker.network.bridge.name"}, Modes: []string{"bridge"}, Kind: IfName,
			Fixed: "endpoints are plugged into that bridge; make the network anew",
			Help:  "name of the bridge; one that exists already and is not netyard's is attached to and never altered or deleted",
		},
		{
			Name: "device", Modes: []string{"host"}, Kind: IfName,
			Fixed: "the container that runs has that card; make the network anew",
			Help:  "a whole network card of the host that the one container of the network gets, and the host gets back",
		},
		{
			Name: "egress_ipv4", Docker: []string{"com.docker.network.host_ipv4"}, Modes: []string{"bridge"}, Kind: Addr4,
			Fixed: "flows that are known keep the address they left with; make the network anew",
			Help:  "address of the host that containers leave with, instead of that of the interface they leave by",
		},
		{
			Name: "egress_ipv6", Docker: []string{"com.docker.network.host_ipv6"}, Modes: []string{"bridge"}, Kind: Addr6,
			Fixed: "flows that are known keep the address they left with; make the network anew",
			Help:  "the same for IPv6",
		},
		{
			Name: "egress_rate", Modes: []string{"bridge"}, Endpoint: true, Set: true, Kind: Rate,
			Help: "most that each container sends, as tc(8) writes it: 10mbit; goes before rate",
		},
		{
			Name: "encrypted", Modes: []string{"overlay"}, Kind: Bool, Bare: "true",
			Fixed: "what is between the hosts is all of one kind; make the network anew",
			Help:  "what is between the hosts is inside WireGuard, or is not at all; the first of the hosts says it",
		},
		{
			Name: "exclude", Modes: []string{"host"}, Set: true, Kind: Ports,
			Help: "ports that the host does not share with the containers, such as 22,8000-8100/udp",
		},
		{
			Name: "gateway_address", Modes: []string{"bridge"}, Kind: Addrs,
			Fixed: "running containers have their default route already; make the network anew",
			Help:  "addresses of the container that the others go out by; nothing goes out past it. It needs --ipam-driver netyard, and the container --ip",
		},
		{
			Name: "gateway_exit", Modes: []string{"bridge"}, Kind: Bool, Default: "false",
			Fixed: "that container has its default route already; make the network anew",
			Help:  "that container goes out by this network itself; without it, it needs another network for that",
		},
		{
			Name: "gateway_mode_ipv4", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv4"}, Modes: []string{"bridge"}, Kind: Enum,
			Values: []string{GatewayNAT, GatewayRouted, GatewayIsolated}, Default: GatewayNAT,
			Fixed: "the published ports of running containers are as they are; make the network anew",
			Help:  "nat: containers have the host's address outside. routed: their own, and -p opens their own ports. isolated: the host has no address on the bridge; with --internal only",
		},
		{
			Name: "gateway_mode_ipv6", Docker: []string{"com.docker.network.bridge.gateway_mode_ipv6"}, Modes: []string{"bridge"}, Kind: Enum,
			Values: []string{GatewayNAT, GatewayRouted, GatewayIsolated}, Default: GatewayNAT,
			Fixed: "the published ports of running containers are as they are; make the network anew",
			Help:  "the same for IPv6",
		},
		{
			Name: "host_access", Modes: []string{"ipvlan", "macvlan"}, Kind: Bool, Default: "false",
			Fixed: "running containers have their routes from their engine; make the network anew",
			Help:  "the host and the containers reach each other, by a link of the host's own on the parent; only of macvlan_mode=bridge and ipvlan_flag=bridge",
		},
		{
			Name: "host_publish", Modes: []string{"ipvlan", "macvlan"}, Kind: Bool, Default: "false",
			Fixed: "the published ports of running containers are as they are; make the network anew",
			Help:  "ports that containers publish are ports of the host's addresses, too, as on a bridge network; needs host_access=true",
		},
		{
			Name: "icc", Docker: []string{"com.docker.network.bridge.enable_icc"}, Modes: []string{"bridge"}, Set: true, Kind: Bool, Default: "true",
			Help: "containers of the network reach each other",
		},
		{
			Name: "iface_prefix", Docker: []string{"com.docker.network.container_iface_prefix", "com.docker.network.container_interface_prefix"}, Modes: []string{"bridge", "host", "ipvlan", "macvlan", "overlay"}, Kind: IfName, Default: "eth", Max: 13, // and two digits
			Fixed: "running containers have their interfaces' names from their engine; make the network anew",
			Help:  "beginning of the interface's name inside the container",
		},
		{
			Name: "include", Modes: []string{"host"}, Set: true, Kind: Ports,
			Help: "the only ports that the host shares with the containers; all of them unless said otherwise",
		},
		{
			Name: "ingress_rate", Modes: []string{"bridge"}, Endpoint: true, Set: true, Kind: Rate,
			Help: "most that each container gets, as tc(8) writes it: 10mbit; goes before rate",
		},
		{
			Name: "inhibit_ipv4", Docker: []string{"com.docker.network.bridge.inhibit_ipv4"}, Modes: []string{"bridge"}, Set: true, Kind: Bool, Default: "false",
			Help: "do not put the IPv4 gateway's address on the bridge",
		},
		{
			Name: "ipvlan_flag", Modes: []string{"ipvlan"}, Kind: Enum, Values: []string{"bridge", "private", "vepa"}, Default: "bridge",
			Fixed: "it is the parent's, and so that of all networks on it; make them anew",
			Help:  "containers on the parent reach each other (bridge), do not (private), or by way of the switch (vepa)",
		},
		{
			Name: "ipvlan_mode", Modes: []string{"ipvlan"}, Kind: Enum, Values: []string{"l2", "l3", "l3s"}, Default: "l2",
			Fixed: "it is the parent's, and so that of all networks on it; make them anew",
			Help:  "containers are members of the LAN (l2), or behind the host, which routes for them (l3, and l3s through its firewall)",
		},
		{
			Name: "macvlan_mode", Modes: []string{"macvlan"}, Kind: Enum, Values: []string{"bridge", "passthru", "private", "vepa"}, Default: "bridge",
			Fixed: "running containers' links are in that mode already; make the network anew",
			Help:  "containers on the parent reach each other (bridge), do not (private), or by way of the switch (vepa); passthru: one container has the parent for itself",
		},
		{
			Name: "masquerade", Docker: []string{"com.docker.network.bridge.enable_ip_masquerade"}, Modes: []string{"bridge", "overlay"}, Set: true, Kind: Bool, Default: "true",
			Help: "traffic that leaves the host takes the host's address (NAT), IPv4 and IPv6",
		},
		{
			Name: "mode", Kind: Enum, Values: []string{"bridge", "host", "ipvlan", "macvlan", "none", "overlay"}, Default: "bridge",
			Fixed: "it is another kind of network; make the network anew",
			Help:  "the network's mode; for the driver name netyard, the others say it in their name",
		},
		{
			Name: "mtu", Docker: []string{"com.docker.network.driver.mtu", "com.docker.network.mtu"}, Modes: []string{"bridge", "host", "ipvlan", "macvlan", "overlay"}, Kind: Int, Default: "1500", Min: 68, Max: 65535,
			Fixed: "running containers' interfaces have it already; make the network anew",
			Help:  "largest packet on the network, bytes (at least 1280 with IPv6, RFC 8200); of macvlan and ipvlan the parent's unless said, of overlay what fits between the hosts",
		},
		{
			Name: "ndp_proxy", Modes: []string{"bridge"}, Set: true, Kind: IfName,
			Help: "interface of the host on which it answers for its containers' IPv6 addresses, which are of that link's subnet",
		},
		{
			Name: "overlay", Modes: []string{"overlay"}, Kind: String,
			Fixed: "it is another network; make the network anew",
			Help:  "name of the network in the cluster, on all of its hosts; the first of them says the subnets",
		},
		{
			Name: "parent", Modes: []string{"ipvlan", "macvlan"}, Kind: IfName,
			Fixed: "running containers' links are on that parent; make the network anew",
			Help:  "the host's link to the LAN; eth0.50 makes the link of VLAN 50 on eth0 if it is not there; without a parent containers only reach each other",
		},
		{
			Name: "promisc", Modes: []string{"bridge"}, Kind: Bool, Default: "false",
			Help: "the host listens to all frames on the bridge, also to those for others",
		},
		{
			Name: "publish_from", Modes: []string{"bridge", "macvlan"}, Set: true, Kind: Sources,
			Help: "who reaches published ports: subnets, or interfaces that packets come in by; everybody unless said otherwise. The host itself always does",
		},
		{
			Name: "rate", Modes: []string{"bridge"}, Endpoint: true, Set: true, Kind: Rate,
			Help: "most that each container sends, and most that it gets, as tc(8) writes it: 10mbit; 0 or unlimited takes a limit away",
		},
		{
			Name: "routes", Modes: []string{"bridge"}, Kind: Routes,
			Fixed: "running containers have their routes already; make the network anew",
			Help:  "static routes inside the containers: SUBNET@NEXTHOP, or SUBNET for one that is on the link, with commas between them",
		},
		{
			Name: "strict", Modes: []string{"host"}, Kind: Bool, Default: "false",
			Fixed: "it says whether the network is made at all",
			Help:  "refuse what is not the host's own network namespace, which no driver can give: docker run --network host",
		},
	}
}

// Resolve turns what the user typed into canonical option names for a mode. It refuses, by name and before anything is
// touched, what is unknown (naming the nearest known one), ill-typed, of another mode, or said twice with two values.
func Resolve(mode string, given map[string]string) (map[string]string, error) {
	return resolve(Options(), mode, given)
}

// ResolveEndpoint is Resolve for what was said for one endpoint: docker network connect --driver-opt, and driver_opts
// of compose.
func ResolveEndpoint(mode string, given map[string]string) (map[string]string, error) {
	table, err := ofEndpoints(mode, given)
	if err != nil {
		return nil, err
	}
	opts, err := resolve(table, mode, given)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return opts, nil
}

// ofEndpoints are the options that can be said for one endpoint; given those of a network, it says so.
func ofEndpoints(mode string, given map[string]string) ([]Option, error) {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if o, err := find(Options(), mode, key); err == nil && !o.Endpoint {
			return nil, fmt.Errorf("%w: %s is said for a network, not for one endpoint", ErrOption, key)
		}
	}
	return slices.DeleteFunc(Options(), func(o Option) bool { return !o.Endpoint }), nil
}

func resolve(table []Option, mode string, given map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(given))
	from := make(map[string]string, len(given))
	for _, key := range slices.Sorted(maps.Keys(given)) {
		o, err := find(table, mode, key)
		if err != nil {
			return nil, err
		}
		v, err := o.parse(key, given[key])
		if err != nil {
			return nil, err
		}
		if old, ok := out[o.Name]; ok && old != v {
			return nil, fmt.Errorf("%w: %s=%s contradicts %s=%s", ErrOption, key, given[key], from[o.Name], given[from[o.Name]])
		}
		out[o.Name], from[o.Name] = v, key
	}
	return out, nil
}

func find(table []Option, mode, key string) (Option, error) {
	var known []string
	for _, o := range table {
		names := append([]string{o.Name}, o.Docker...)
		of := o.Modes == nil || slices.Contains(o.Modes, mode)
		if slices.Contains(names, key) {
			if !of {
				return o, fmt.Errorf("%w: %s is not an option of mode %s, but of %s", ErrOption, key, mode, strings.Join(o.Modes, ", "))
			}
			return o, nil
		}
		if of {
			known = append(known, names...)
		}
	}
	if near := nearest(key, known); near != "" {
		return Option{}, fmt.Errorf("%w: unknown option %s for mode %s; did you mean %s?", ErrOption, key, mode, near)
	}
	return Option{}, fmt.Errorf("%w: unknown option %s for mode %s", ErrOption, key, mode)
}

// parse checks a value and brings it to its one spelling.
func (o Option) parse(key, v string) (string, error) {
	bad := func(want string) error { return fmt.Errorf("%w: %s=%s: want %s", ErrOption, key, v, want) }
	if v == "" && o.Bare != "" {
		v = o.Bare
	}
	switch o.Kind {
	case Bool:
		b, err := strconv.ParseBool(v)
		if err != nil {
			return "", bad("true or false")
		}
		return strconv.FormatBool(b), nil
	case Int:
		i, err := strconv.Atoi(v)
		if err != nil || i < o.Min || i > o.Max {
			return "", bad(fmt.Sprintf("a number from %d to %d", o.Min, o.Max))
		}
		return strconv.Itoa(i), nil
	case Enum:
		if !slices.Contains(o.Values, v) {
			return "", bad("one of " + strings.Join(o.Values, ", "))
		}
	case IfName:
		most := o.Max
		if most == 0 {
			most = maxIfName
		}
		if !ValidIfName(v) || len(v) > most {
			return "", bad(fmt.Sprintf("an interface name: 1 to %d letters, digits, dots, dashes or underscores", most))
		}
	case Addr4, Addr6:
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" || a.Is4() != (o.Kind == Addr4) || a.Is4In6() || a.IsUnspecified() {
			return "", bad(map[Kind]string{Addr4: "an IPv4 address", Addr6: "an IPv6 address"}[o.Kind])
		}
		return a.String(), nil
	case Routes:
		return parseList(v, bad("subnets, each with @ and the next hop or alone if it is on the link, with commas between them"), func(one string) (string, bool) {
			r, ok := parseRoute(one)
			return r.String(), ok
		})
	case Addrs:
		return parseList(v, bad("addresses of the host, with commas between them"), func(one string) (string, bool) {
			a, err := netip.ParseAddr(one)
			return a.String(), err == nil && a.Zone() == ""
		})
	case Ports:
		return parseList(v, bad("ports from 1 to 65535 or ranges of them, with commas between them, such as 80,443/tcp,8000-8100/udp"), func(one string) (string, bool) {
			r, ok := parsePorts(one)
			return r.String(), ok
		})
	case Sources:
		return parseList(v, bad("subnets or names of interfaces, with commas between them"), source)
	case Rate:
		r, err := ParseRate(v)
		if err != nil {
			return "", fmt.Errorf("%w: %s=%s: %w", ErrOption, key, v, err)
		}
		return r.String(), nil
	case String:
	}
	return v, nil
}

// parseList brings each of the things between commas to its one spelling.
func parseList(v string, bad error, parse func(string) (string, bool)) (string, error) {
	var out []string
	for one := range strings.SplitSeq(v, ",") {
		text, ok := parse(strings.TrimSpace(one))
		if !ok {
			return "", bad
		}
		out = append(out, text)
	}
	return strings.Join(out, ","), nil
}

// source reads a subnet, an address, or the name of an interface.
func source(v string) (string, bool) {
	if p, err := netip.ParsePrefix(v); err == nil {
		return p.Masked().String(), true
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()).String(), true
	}
	return v, ValidIfName(v) && !strings.Contains(v, "/")
}

// OptAddrs is Opt for Addrs.
func (n Network) OptAddrs(name string) (all []netip.Addr) {
	for one := range strings.SplitSeq(n.Opt(name), ",") {
		if a, err := netip.ParseAddr(one); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// OptSources is Opt for Sources. What is in another one of them is left out: the kernel's sets of ranges take no two
// that overlap.
func (n Network) OptSources(name string) (subnets []netip.Prefix, interfaces []string) {
	for one := range strings.SplitSeq(n.Opt(name), ",") {
		if p, err := netip.ParsePrefix(one); err == nil {
			subnets = append(subnets, p)
		} else if one != "" && !slices.Contains(interfaces, one) {
			interfaces = append(interfaces, one)
		}
	}
	slices.SortStableFunc(subnets, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // wide ones first
	var apart []netip.Prefix
	for _, p := range subnets {
		if !slices.ContainsFunc(apart, p.Overlaps) {
			apart = append(apart, p)
		}
	}
	return apart, interfaces
}

const maxIfName = 15

// ValidIfName says whether the kernel and every tool take name for an interface (dev_valid_name, net/core/dev.c, and
// stricter).
func ValidIfName(name string) bool {
	if name == "" || len(name) > maxIfName || name == "." || name == ".." || name == "all" || name == "default" {
		return false
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return name[0] != '-'
}

// Opt is the value of an option of the network: what it was changed to, what was given, or the table's default.
func (n Network) Opt(name string) string {
	if v, ok := n.Changed[name]; ok {
		return v
	}
	if v, ok := n.Options[name]; ok {
		return v
	}
	return optionOf(name).Default
}

// EndpointOpt is the value of an option for one endpoint: its own, or else the network's.
func (n Network) EndpointOpt(e Endpoint, name string) string {
	if v, ok := e.Options[name]; ok {
		return v
	}
	return n.Opt(name)
}

// OptBool is Opt for a Bool.
func (n Network) OptBool(name string) bool { return n.Opt(name) == "true" }

// OptInt is Opt for an Int.
func (n Network) OptInt(name string) int {
	i, _ := strconv.Atoi(n.Opt(name)) // Resolve let only numbers in
	return i
}

// nearest is the known name that a typing error most likely meant; empty when none is close.
func nearest(key string, known []string) string {
	best, dist := "", len(key)/3+2
	for _, k := range known {
		if d := smetrics.WagnerFischer(key, k, 1, 1, 1); d < dist {
			best, dist = k, d
		}
	}
	return best
}
