package modes

import "sync"

// IPAMOptions is the table of what can be said with --ipam-opt NAME=VALUE of pools that the LAN's DHCP servers give
// addresses from.
func IPAMOptions() []Option { return ipamTable() }

var ipamTable = sync.OnceValue(func() []Option {
	return []Option{
		{
			Name: "client_id", Kind: Enum, Values: []string{"name", "mac"}, Default: "name",
			Help: "who a container is to the DHCP server: its name, where the engine tells it, or its hardware address",
		},
		{
			Name: "conflict", Kind: Enum, Values: []string{"decline", "ignore"}, Default: "decline",
			Help: "what becomes of an address that somebody on the LAN has already; " +
				"decline asks the LAN first (RFC 5227)",
		},
		{
			Name: "dhcp", Kind: Bool, Default: "false",
			Help: "addresses come from the LAN's DHCP server; the IPAM driver netyard-dhcp needs no asking",
		},
		{
			Name: "hostname", Kind: Bool, Default: "true",
			Help: "the DHCP server is told the container's host name, or its name if it has none of its own",
		},
		{
			Name: "ipv6", Kind: Enum, Values: []string{"none", "slaac", "dhcp"}, Default: "none",
			Help: "which IPv6 addresses containers have: none, those they make themselves of what routers advertise, " +
				"or a DHCPv6 server's",
		},
		{
			Name: "on_lost", Kind: Enum, Values: []string{"readdress", "down"}, Default: "readdress",
			Help: "what becomes of a container whose lease is refused or runs out: it gets another address, " +
				"or its interface is taken down",
		},
		{
			Name: "vendor_class", Kind: String,
			Help: "what kind of client a container is (option 60); servers can be set up to look at it",
		},
	}
})

// ResolveIPAM is Resolve for --ipam-opt.
func ResolveIPAM(given map[string]string) (map[string]string, error) {
	return resolve(ipamTable(), "dhcp", given)
}

// IPAMOpt is the value of an option: what was given, or the table's default.
func IPAMOpt(opts map[string]string, name string) string {
	if v, ok := opts[name]; ok {
		return v
	}
	for _, o := range ipamTable() {
		if o.Name == name {
			return o.Default
		}
	}
	return ""
}
