package bridge_test

import (
	"net/netip"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/gso"
	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/modetest"
)

// TestPlans: what each option makes of a network and its endpoint.
func TestPlans(t *testing.T) {
	t.Parallel()
	type opts = map[string]string
	v4, both := []string{"10.9.0.0/24"}, []string{"10.9.0.0/24", "fd09::/64"}
	host := modetest.Facts{
		Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500), "lan0": {Kind: "bridge", MTU: 1400}},
		Addr: map[string][]netip.Prefix{
			"eth0": {netip.MustParsePrefix("203.0.113.2/24"), netip.MustParsePrefix("2001:db8::2/64")},
		},
	}
	slow := host
	slow.Limit.Sizes = gso.Sizes{V4: gso.Small, V6: gso.Small}
	slow.Limit.Reason = "link eth0, on the way out, takes less"
	web := []modes.Port{modetest.Published("tcp", "0.0.0.0", 8080, 80), modetest.Published("udp", "::", 53, 53)}
	own := func(addr string, port, to uint16) modes.Port {
		p := modetest.Published("tcp", addr, port, to)
		p.Routed = true
		return p
	}
	modetest.Golden(t, "bridge", bridge.New(modes.Env{}), []modetest.Plan{
		{Name: "plain", Subnets: v4},
		{Name: "IPv6", Subnets: []string{"fd09::/64"}},
		{Name: "both", Subnets: both},
		{Name: "internal", Subnets: both, Internal: true},
		{Name: "published", Subnets: both, Ports: web},
		{Name: "published on an internal network", Subnets: v4, Internal: true, Ports: []modes.Port{own("10.9.0.2", 8080, 80)}},
		{Name: "made in the sandbox", Subnets: v4, Change: func(e *modes.Endpoint) { e.Into, e.IfName = 7, "eth0" }},
		{Name: "antispoof", Subnets: v4, Options: opts{"antispoof": "false"}},
		{Name: "antispoof of an endpoint", Subnets: v4, Said: opts{"antispoof": "false"}},
		{Name: "bind", Subnets: v4, Options: opts{"bind": "203.0.113.2"}},
		{Name: "bridge", Subnets: v4, Options: opts{"bridge": "web0"}},
		{Name: "bridge of the host's owner", Subnets: v4, Options: opts{"bridge": "lan0"}, Facts: host},
		{Name: "published on a bridge of the host's owner", Subnets: v4, Options: opts{"bridge": "lan0"}, Facts: host, Ports: []modes.Port{own("10.9.0.2", 8080, 80)}},
		{Name: "egress", Subnets: both, Options: opts{"egress_ipv4": "203.0.113.2", "egress_ipv6": "2001:db8::2"}, Facts: host},
		{Name: "gateway_address", Subnets: both, Options: opts{"gateway_address": "10.9.0.53,fd09::53"}},
		{Name: "gateway_exit, for the gateway", Subnets: v4, Options: opts{"gateway_address": "10.9.0.53", "gateway_exit": "true"}, Addrs: []string{"10.9.0.53/24"}},
		{Name: "gateway_mode routed", Subnets: both, Options: opts{"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}, Ports: []modes.Port{own("10.9.0.2", 80, 80)}},
		{Name: "gateway_mode isolated", Subnets: both, Options: opts{"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}, Internal: true},
		{Name: "icc", Subnets: v4, Options: opts{"icc": "false"}},
		{Name: "big_tcp false", Subnets: v4, Options: opts{"big_tcp": "false"}},
		{Name: "big_tcp true, refused", Subnets: v4, Options: opts{"big_tcp": "true"}, Facts: slow},
		{Name: "big_tcp true, internal", Subnets: v4, Options: opts{"big_tcp": "true"}, Facts: slow, Internal: true},
		{Name: "big_tcp true, on a bridge of the host's owner", Subnets: v4, Options: opts{"big_tcp": "true", "bridge": "lan0"}, Facts: host},
		{Name: "iface_prefix", Subnets: v4, Options: opts{"iface_prefix": "lan"}},
		{Name: "inhibit_ipv4", Subnets: v4, Options: opts{"inhibit_ipv4": "true"}},
		{Name: "masquerade", Subnets: both, Options: opts{"masquerade": "false"}},
		{Name: "mtu", Subnets: v4, Options: opts{"mtu": "1400"}},
		{Name: "ndp_proxy", Subnets: []string{"2001:db8:0:0:9::/80"}, Options: opts{"ndp_proxy": "eth0", "gateway_mode_ipv6": "routed"}, Facts: host},
		{Name: "hairpin", Subnets: v4, Options: opts{"hairpin": "true"}},
		{Name: "hairpin of an endpoint", Subnets: v4, Said: opts{"hairpin": "true"}},
		{Name: "promisc", Subnets: v4, Options: opts{"promisc": "true"}},
		{Name: "publish_from", Subnets: v4, Options: opts{"publish_from": "192.0.2.0/24,eth0"}, Ports: web[:1]},
		{Name: "rate", Subnets: v4, Options: opts{"rate": "10mbit"}},
		{Name: "rates of each direction", Subnets: v4, Options: opts{"ingress_rate": "10mbit", "egress_rate": "20mbit"}, Said: opts{"egress_rate": "1mbit"}},
		{Name: "routes", Subnets: v4, Options: opts{"routes": "10.7.0.0/16@10.9.0.7,10.6.0.0/16"}},
		{Name: "routes, for the next hop", Subnets: v4, Options: opts{"routes": "10.7.0.0/16@10.9.0.7"}, Addrs: []string{"10.9.0.7/24"}},
		{Name: "trusted_interfaces", Subnets: both, Options: opts{"trusted_interfaces": "wg0,eth0"}, Ports: append(web, modetest.Published("tcp", "127.0.0.1", 8081, 81))},
		{Name: "refused: the host has the subnet", Subnets: []string{"203.0.113.0/24"}, Facts: host},
		{Name: "refused: isolated and not internal", Subnets: v4, Options: opts{"gateway_mode_ipv4": "isolated"}},
	}...)
}

// TestTakenBridge: the error about a bridge of another network names that network, and how to remove it.
func TestTakenBridge(t *testing.T) {
	t.Parallel()
	host := modetest.Facts{Link: map[string]core.LinkInfo{"web0": {Kind: "bridge", Alias: core.Alias(netA, "")}}}
	n := network(netB, map[string]string{"bridge": "web0"})
	for want, other := range map[string]modes.Network{
		"network aaaaaaaaaaaa": {ID: netA},
		"network old; if nothing needs that network, remove it: netyard network rm old": {
			ID: netA, Name: "old", Engine: "netyard",
		},
	} {
		_, err := bridge.New(modes.Env{}).Settle(t.Context(), host, n, []modes.Network{{ID: "other", Name: "x"}, other})
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}
