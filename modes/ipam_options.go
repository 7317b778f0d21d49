package modes

import "sync"

// IPAMOptions returns the options of --ipam-opt NAME=VALUE for pools whose addresses come from the LAN's DHCP servers.
func IPAMOptions() []Option { return ipamTable() }

var ipamTable = sync.OnceValue(func() []Option {
	return []Option{
		{
			Name: "client_id", Kind: Enum, Values: []string{"name", "mac"}, Default: "name",
			Help: "identify a container to the DHCP server by name (if the engine tells it) or by MAC address",
		},
		{
			Name: "conflict", Kind: Enum, Values: []string{"decline", "ignore"}, Default: "decline",
			Help: "what to do when another machine has the offered address; decline: probe first (RFC 5227)",
		},
		{
			Name: "dhcp", Kind: Bool, Default: "false",
			Help: "get addresses from the LAN's DHCP server; implied by --ipam-driver netyard-dhcp",
		},
		{
			Name: "hostname", Kind: Bool, Default: "true",
			Help: "send the container's host name to the DHCP server, or its name if it has none",
		},
		{
			Name: "ipv6", Kind: Enum, Values: []string{"none", "slaac", "dhcp"}, Default: "none",
			Help: "IPv6 addresses of containers: none, SLAAC, or DHCPv6",
		},
		{
			Name: "on_lost", Kind: Enum, Values: []string{"readdress", "down"}, Default: "readdress",
			Help: "when a lease is refused or expires: get another address, or set the interface down",
		},
		{
			Name: "vendor_class", Kind: String,
			Help: "vendor class sent to the DHCP server (option 60)",
		},
	}
})

// ResolveIPAM resolves the options of --ipam-opt, as Table.Resolve does for -o.
func ResolveIPAM(given map[string]string) (map[string]string, error) {
	return resolve(ipamTable(), "dhcp", given)
}

// IPAMOpt returns the value of an option: what was given, or the table's default.
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
