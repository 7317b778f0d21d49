package kernel_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/lan"
)

// drifts changes each property as the commands say. It wants the fault to be reported, and Ensure to repair it.
func drifts(t *testing.T, h *kerneltest.Host, objects []core.Object, cases map[string]string) {
	t.Helper()
	must(t, h.Ensure(t.Context(), objects...))
	if said := faults(t, h, objects...); said != "" {
		t.Fatalf("at first: %s", said)
	}
	for cmd, want := range cases {
		h.Sh(t, cmd)
		if said := faults(t, h, objects...); !strings.Contains(said, want) {
			t.Errorf("after %s: %q, want %q", cmd, said, want)
		}
		must(t, h.Ensure(t.Context(), objects...))
		if said := faults(t, h, objects...); said != "" {
			t.Errorf("after %s it is not repaired: %s", cmd, said)
		}
	}
}

// TestBridgeDrift: each property of a bridge and of its ports that somebody changed is reported and repaired.
func TestBridgeDrift(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	must(t, h.LoadFirewall())
	mac, inner := net.HardwareAddr{2, 0, 0, 0, 0, 0x10}, net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	drifts(t, h, []core.Object{
		bridge.Bridge{Name: "nyb-a", Alias: core.Alias("a", ""), MTU: 1450, MAC: mac},
		bridge.Veth{
			Name: "nyv-a", Peer: "nyp-a", Alias: core.Alias("a", "e"), Master: "nyb-a", MTU: 1450, MAC: inner,
			Isolated: true,
		},
		bridge.StaticPort{Link: "nyv-a", MAC: inner},
		bridge.Veth{
			Name: "nyv-b", Peer: "nyp-b", Alias: core.Alias("a", "f"), Master: "nyb-a", MTU: 1450, Hairpin: true,
		},
	}, map[string]string{
		"ip link set nyb-a address 02:00:00:00:00:99":                       "bridge nyb-a has MAC 02:00:00:00:00:99 instead of 02:00:00:00:00:10",
		"ip link set nyb-a mtu 1400":                                        "bridge nyb-a has MTU 1400 instead of 1450",
		"ip link set nyb-a down":                                            "bridge nyb-a is down",
		"sysctl -qw net.ipv4.conf.nyb-a.accept_redirects=1":                 "accept_redirects",
		"sysctl -qw net.ipv6.conf.nyb-a.accept_ra=1":                        "accept_ra",
		"ip link set nyv-a address 02:00:00:00:00:99":                       "link nyv-a has MAC 02:00:00:00:00:99 instead of",
		"ip link set nyv-a mtu 1400":                                        "link nyv-a has MTU 1400 instead of 1450",
		"ip link set nyv-a down":                                            "link nyv-a is down",
		"ip link set nyv-a arp on":                                          "link nyv-a has ARP on",
		"sysctl -qw net.ipv6.conf.nyv-a.disable_ipv6=0":                     "net.ipv6.conf.nyv-a.disable_ipv6=1: it is 0",
		"bridge link set dev nyv-a isolated off":                            "link nyv-a is not isolated",
		"bridge link set dev nyv-b isolated on":                             "link nyv-b is isolated",
		"bridge link set dev nyv-b hairpin off":                             "link nyv-b has hairpin mode off",
		"bridge link set dev nyv-a learning on":                             "static port nyv-a learns addresses",
		"bridge link set dev nyv-a flood on":                                "static port nyv-a receives unknown unicast",
		"bridge link set dev nyv-a guard off":                               "static port nyv-a has BPDU guard off",
		"bridge fdb del " + inner.String() + " dev nyv-a master":            "static port nyv-a has no static forwarding entry",
		"bridge fdb replace " + inner.String() + " dev nyv-a master static": "static port nyv-a has no static forwarding entry",
	})
}

// TestLANDrift is TestBridgeDrift for what netyard makes on a parent.
func TestLANDrift(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "macvlan")
	h := kerneltest.New(t)
	h.Peer(t, "eth0")
	must(t, h.LoadFirewall())
	h.Sh(t, "ip addr add 192.0.2.2/24 dev eth0 && ip addr add 2001:db8::2/64 dev eth0 nodad")
	shim := lan.ShimOn(lan.Parent{Name: "eth0"}, "macvlan", "bridge", "a")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	drifts(t, h, []core.Object{
		lan.IsolatedParent{Name: "nyi-a", Alias: core.Alias("b", "")},
		shim,
		lan.HostRoute{Shim: shim, Dst: netip.MustParseAddr("192.0.2.9"), MAC: mac},
		lan.HostRoute{Shim: shim, Dst: netip.MustParseAddr("2001:db8::9"), MAC: mac},
	}, map[string]string{
		"ip link set nyi-a down":                                                        "link nyi-a is down",
		"sysctl -qw net.ipv6.conf.nyi-a.disable_ipv6=0":                                 "net.ipv6.conf.nyi-a.disable_ipv6=1: it is 0",
		"sysctl -qw net.ipv4.conf." + shim.Name + ".rp_filter=0":                        "rp_filter",
		"ip link set " + shim.Name + " type macvlan mode vepa":                          "has mode vepa instead of bridge",
		"ip route del 192.0.2.9 dev " + shim.Name:                                       "route 192.0.2.9 on " + shim.Name + " is missing",
		"ip route change 192.0.2.9 dev " + shim.Name + " proto 78 scope link":           "route 192.0.2.9 on " + shim.Name + " has not the source address 192.0.2.2",
		"ip neigh del 192.0.2.9 dev " + shim.Name:                                       "neighbour 192.0.2.9 on " + shim.Name,
		"ip neigh replace 192.0.2.9 lladdr 02:00:00:00:00:99 dev " + shim.Name:          "neighbour 192.0.2.9 on " + shim.Name,
		"ip -6 neigh replace 2001:db8::9 lladdr 02:00:00:00:00:99 dev " + shim.Name:     "neighbour 2001:db8::9 on " + shim.Name,
		"ip -6 neigh del proxy 2001:db8::2 dev " + shim.Name:                            "NDP proxy 2001:db8::2 on",
		"ip addr add 2001:db8::3/64 dev eth0 nodad && ip link set " + shim.Name + " up": "NDP proxy 2001:db8::3 on",
	})
}

// TestAliasDrift: a link whose name only netyard gives gets its alias back, whatever somebody has set. One with the
// alias of another object of netyard's, or with a name that anybody could give, stays as it is.
func TestAliasDrift(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	must(t, h.LoadFirewall())
	const br, port, shaper, island = "nyb-00000000001", "nyv-00000000001", "nyi-00000000001", "nyd-00000000001"
	objects := []core.Object{
		bridge.Bridge{Name: br, Alias: core.Alias("a", ""), MTU: 1500, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x10}},
		bridge.Veth{Name: port, Peer: "nyp-00000000001", Alias: core.Alias("a", "e"), Master: br, MTU: 1500},
		bridge.Limits{
			Link: port, Shaper: shaper, Alias: core.Alias("a", "e"), MTU: 1500, Ingress: 1e6, Egress: 1e6,
		},
		lan.IsolatedParent{Name: island, Alias: core.Alias("b", "")},
	}
	cases := map[string]string{}
	for _, link := range []string{br, port, shaper, island} {
		for _, alias := range []string{"mine", "''"} {
			cases["ip link set "+link+" alias "+alias] = link + " has another alias"
		}
	}
	drifts(t, h, objects, cases)
	h.Sh(t, "ip link set "+island+" alias "+core.Alias("c", ""))
	if err := h.Ensure(t.Context(), objects[3]); err == nil || !strings.Contains(err.Error(), "is not netyard's") {
		t.Errorf("a link of another network: %v", err)
	}
	h.Sh(t, "ip link add web0 type bridge && ip link set web0 alias mine")
	other := bridge.Bridge{Name: "web0", Alias: core.Alias("a", ""), MTU: 1500}
	if err := h.Ensure(t.Context(), other); err == nil || !strings.Contains(err.Error(), "is not netyard's") {
		t.Errorf("a bridge of the host's: %v", err)
	}
}
