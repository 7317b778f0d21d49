package ipvlan_test

import (
	"net/netip"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/gso"
	"netyard/modes"
	"netyard/modes/ipvlan"
	"netyard/modes/modetest"
)

// TestPlans: what each option makes of a network and its endpoint.
func TestPlans(t *testing.T) {
	t.Parallel()
	type opts = map[string]string
	v4, both := []string{"192.168.7.0/24"}, []string{"192.168.7.0/24", "2001:db8:7::/64"}
	host := modetest.Facts{
		Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500)},
		Addr: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("192.168.7.9/24")}},
	}
	strict := host
	strict.Strict = "1"
	slow := host
	slow.Limit.Sizes = gso.Sizes{V4: gso.Small, V6: gso.Small}
	slow.Limit.Reason = "link eth0, on the way out, takes less"
	own := modetest.Published("tcp", "192.168.7.2", 8080, 80)
	own.Routed = true
	web := []modes.Port{own, modetest.Published("tcp", "0.0.0.0", 8080, 80)}
	on := func(pairs ...string) opts { return options(append(pairs, "parent", "eth0")...) }
	published := []string{"ipvlan_mode", "l3", "host_access", "true", "host_publish", "true"}
	modetest.Golden(t, "ipvlan", ipvlan.New(modes.Env{}), []modetest.Plan{
		{Name: "plain", Subnets: v4, Options: on(), Facts: host},
		{Name: "IPv6", Subnets: both, Options: on(), Facts: host},
		{Name: "internal", Subnets: v4, Options: on("ipvlan_mode", "l3"), Facts: host, Internal: true},
		{Name: "published", Subnets: v4, Options: on(), Facts: host, Ports: web[:1]},
		{Name: "no parent", Subnets: v4},
		{Name: "a VLAN", Subnets: v4, Options: opts{"parent": "eth0.50"}, Facts: host},
		{Name: "host_access", Subnets: both, Options: on("host_access", "true"), Facts: host},
		{Name: "host_publish", Subnets: v4, Options: on(published...), Facts: host, Ports: web},
		{Name: "bind", Subnets: v4, Options: on(append(published, "bind", "192.168.7.9")...), Facts: host},
		{Name: "big_tcp false", Subnets: v4, Options: on("big_tcp", "false"), Facts: host},
		{Name: "big_tcp true, refused", Subnets: v4, Options: on("big_tcp", "true"), Facts: slow},
		{Name: "iface_prefix", Subnets: v4, Options: on("iface_prefix", "lan"), Facts: host},
		{Name: "ipvlan_flag", Subnets: v4, Options: on("ipvlan_flag", "vepa"), Facts: host},
		{Name: "ipvlan_mode l3", Subnets: both, Options: on("ipvlan_mode", "l3"), Facts: host},
		{Name: "ipvlan_mode l3s", Subnets: v4, Options: on("ipvlan_mode", "l3s"), Facts: host, Ports: web[:1]},
		{Name: "mtu", Subnets: v4, Options: on("mtu", "1400"), Facts: host},
		{Name: "refused: strict reverse paths", Subnets: v4, Options: on("host_access", "true"), Facts: strict},
		{Name: "refused: answers would not come back", Subnets: v4, Options: on("host_access", "true", "host_publish", "true"), Facts: host},
	}...)
}
