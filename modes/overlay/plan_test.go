package overlay_test

import (
	"slices"
	"testing"

	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/modes/overlay"
)

// TestPlans: what each option makes of a network and its endpoint.
func TestPlans(t *testing.T) {
	t.Parallel()
	type opts = map[string]string
	v4, both := []string{"10.20.0.0/16"}, []string{"10.20.0.0/16", "fd20::/64"}
	blue := func(pairs ...string) opts {
		all := opts{"overlay": "blue"}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = pairs[i+1]
		}
		return all
	}
	fenced := func(e *modes.Endpoint) { e.Fenced = "its address is another host's" }
	modetest.Golden(t, "overlay", overlay.New(modes.Env{Fabric: cell{alone: alone{1500}}}), []modetest.Plan{
		{Name: "plain", Subnets: v4, Options: blue()},
		{Name: "IPv6", Subnets: []string{"fd20::/64"}, Options: blue()},
		{Name: "both", Subnets: both, Options: blue()},
		{Name: "internal", Subnets: v4, Options: blue(), Internal: true},
		{Name: "published", Subnets: v4, Options: blue(), Ports: []modes.Port{modetest.Published("tcp", "0.0.0.0", 8080, 80)}},
		{Name: "fenced", Subnets: v4, Options: blue(), Change: fenced},
		{Name: "made in the sandbox", Subnets: v4, Options: blue(), Change: func(e *modes.Endpoint) { e.Into, e.IfName = 7, "eth0" }},
		{Name: "encrypted", Subnets: v4, Options: blue("encrypted", "true")},
		{Name: "iface_prefix", Subnets: v4, Options: blue("iface_prefix", "lan")},
		{Name: "masquerade", Subnets: v4, Options: blue("masquerade", "false")},
		{Name: "mtu", Subnets: v4, Options: blue("mtu", "1400")},
		{Name: "refused: no name", Subnets: v4},
		{Name: "refused: the link carries less", Subnets: v4, Options: blue("mtu", "1451")},
	}...)
}

// TestPlanWithoutCluster: what keeps a network closed is wanted on a host that is in no cluster any more.
func TestPlanWithoutCluster(t *testing.T) {
	t.Parallel()
	n := network(netA, "blue", nil)
	n.Settled = map[string]string{"overlay_id": "x", "vni": "4660", "mtu": "1450"}
	var got []string
	for _, o := range overlay.New(modes.Env{}).Objects(n) {
		got = append(got, modetest.Text(o))
	}
	want := []string{
		"element vxlan_ports { 4789 }", "element vnis { 0x1234 }",
		"element vxlan_ports_bridged { 4789 }", "element vnis_bridged { 0x1234 }",
		"bridge nyb-aaaaaaaaaaa alias netyard:" + netA, "vxlan nyx-aaaaaaaaaaa alias netyard:" + netA,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
