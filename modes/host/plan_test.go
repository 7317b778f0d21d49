package host_test

import (
	"net/netip"
	"testing"

	"netyard/kernel/device"
	"netyard/modes"
	"netyard/modes/host"
	"netyard/modes/modetest"
)

// TestPlans: what each option makes of a network and its endpoint.
func TestPlans(t *testing.T) {
	t.Parallel()
	type opts = map[string]string
	v4, both := []string{"10.9.0.0/24"}, []string{"10.9.0.0/24", "fd09::/64"}
	card := device.State{MAC: "02:00:00:00:00:07", MTU: 1500, Up: true}
	facts := modetest.Facts{
		Card: map[string]device.State{"nic0": card},
		Addr: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("203.0.113.2/24")}},
	}
	took := func(e *modes.Endpoint) {
		e.Sandbox = "/run/netns/c1"
		e.Kept, _ = modes.NoteDevice(card)
	}
	modetest.Golden(t, "host", host.New(modes.Env{}), []modetest.Plan{
		{Name: "plain", Subnets: v4},
		{Name: "IPv6", Subnets: []string{"fd09::/64"}},
		{Name: "both", Subnets: both},
		{Name: "shared ports", Subnets: both, Ports: []modes.Port{shared("tcp", "0.0.0.0", 80), shared("udp", "::", 53)}},
		{Name: "plugged in by CNI", Subnets: v4, Change: func(e *modes.Endpoint) { e.Into, e.IfName = 7, "eth0" }},
		{Name: "device", Options: opts{"device": "nic0"}, Facts: facts, Change: took},
		{Name: "include and exclude", Subnets: v4, Options: opts{"include": "80,8000-8100/udp", "exclude": "8080"}},
		{Name: "iface_prefix", Subnets: v4, Options: opts{"iface_prefix": "lan"}},
		{Name: "mtu", Subnets: v4, Options: opts{"mtu": "1400"}},
		{Name: "refused: strict", Subnets: v4, Options: opts{"strict": "true"}},
		{Name: "refused: internal", Subnets: v4, Internal: true},
		{Name: "refused: no such device", Options: opts{"device": "nic1"}, Facts: facts},
		{Name: "refused: the host has the subnet", Subnets: []string{"203.0.113.0/24"}, Facts: facts},
	}...)
}
