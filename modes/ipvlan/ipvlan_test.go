package ipvlan_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/ipvlan"
	"netyard/modes/modetest"
)

const (
	netA = "aaaaaaaaaaaa1111"
	netB = "bbbbbbbbbbbb2222"
	one  = "e1e1e1e1e1e1e1"
	two  = "e2e2e2e2e2e2e2"
)

func options(pairs ...string) map[string]string {
	o := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		o[pairs[i]] = pairs[i+1]
	}
	return o
}

func TestContract(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan", "vlan")
	setup := func(t *testing.T, h *kerneltest.Host) {
		h.Peer(t, "eth0")
		h.Sh(t, "ip addr add 192.168.7.2/24 dev eth0 && ip addr add 2001:db8:7::2/64 dev eth0 nodad")
	}
	for name, opts := range map[string]map[string]string{
		"l2":              options("parent", "eth0"),
		"private":         options("parent", "eth0", "ipvlan_flag", "private", "mtu", "1400"),
		"l3s":             options("parent", "eth0", "ipvlan_mode", "l3s"),
		"no parent":       options(),
		"host access, l2": options("parent", "eth0", "host_access", "true"),
		"host access, l3": options("parent", "eth0", "ipvlan_mode", "l3", "host_access", "true"),
		"VLAN":            options("parent", "eth0.50", "ipvlan_mode", "l3s", "host_access", "true"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			modetest.Run(t, modetest.Case{
				New: ipvlan.New, Setup: setup,
				Network: modes.Network{ID: netA, Mode: "ipvlan", Options: opts, Subnets: []modes.Subnet{
					{Pool: netip.MustParsePrefix("192.168.7.0/24"), Gateway: netip.MustParsePrefix("192.168.7.1/24")},
					{Pool: netip.MustParsePrefix("2001:db8:7::/64")},
				}},
				Endpoint: modes.Endpoint{ID: one, NetworkID: netA, Addrs: []netip.Prefix{
					netip.MustParsePrefix("192.168.7.9/24"), netip.MustParsePrefix("2001:db8:7::9/64"),
				}},
			})
		})
	}
}

// TestMatrix checks who reaches whom in each mode and with each flag (Documentation/networking/ipvlan.rst). Routed
// networks have a subnet of their own, to which the LAN has a route.
func TestMatrix(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for _, mode := range []string{"l2", "l3", "l3s"} {
		for _, flag := range []string{"bridge", "private", "vepa"} {
			t.Run(mode+","+flag, func(t *testing.T) {
				t.Parallel()
				l := modetest.NewLAN(t, ipvlan.New)
				n := lanNetwork(l, netA, mode, options("parent", "eth0", "ipvlan_mode", mode, "ipvlan_flag", flag))
				c1, c2 := l.Run(n, one, at(mode, 11)...), l.Run(n, two, at(mode, 12)...)
				for what, to := range map[string]string{
					"LAN": modetest.OneAddr, "LAN, IPv6": modetest.OneAddr6, "router": modetest.RouterAddr,
				} {
					l.Reaches("container to "+what, c1.Host, to, true)
				}
				l.Reaches("LAN to container", l.One, addr(mode, 12, 0), true)
				l.Reaches("LAN to container, IPv6", l.One, addr(mode, 12, 1), true)
				l.Reaches("router to container", l.Router, addr(mode, 11, 0), true)
				// By way of the LAN's router, which has a route to them, or of the switch, which does not send back.
				siblings := flag == "bridge" || flag == "vepa" && mode != "l2"
				l.Reaches("container to container", c1.Host, addr(mode, 12, 0), siblings)
				l.Reaches("container to container, IPv6", c2.Host, addr(mode, 11, 1), siblings)
				l.Reaches("beyond", c1.Host, modetest.FarAddr, true)
				l.Reaches("beyond, IPv6", c1.Host, modetest.FarAddr6, true)
				if mode == "l2" {
					l.Reaches("host to container", l.Host, addr(mode, 12, 0), false)
				}
				heard := broadcasts(t, l, c1, addr(mode, 11, 0))
				if heard != (mode == "l2") {
					t.Errorf("the LAN hears a container's broadcast: %v, in mode %s", heard, mode)
				}
				l.Audit([]modes.Network{n}, c1, c2)
			})
		}
	}
}

// broadcasts says whether the LAN hears what a container sends to all: an ARP request in its name.
func broadcasts(t *testing.T, l *modetest.LAN, c modetest.Container, addr string) bool {
	t.Helper()
	const set = "nft add table netdev probe; " +
		"nft 'add chain netdev probe in { type filter hook ingress device eth0 priority 0; }'; " +
		"nft 'add rule netdev probe in arp saddr ip %s counter'"
	l.One.Sh(t, fmt.Sprintf(set, addr))
	c.Sh(t, "ip neigh flush all; ip route add 192.168.7.77 dev eth0; ping -c 1 -W 1 192.168.7.77 || true")
	return !strings.Contains(l.One.Sh(t, "nft list chain netdev probe in"), "packets 0")
}

// lanNetwork brings up a network of LAN addresses, or a routed one with subnets of its own to which the LAN has routes.
func lanNetwork(l *modetest.LAN, id, mode string, opts map[string]string) modes.Network {
	n := l.Network(id, "ipvlan", opts)
	if mode != "l2" {
		n.Subnets = []modes.Subnet{
			{Pool: netip.MustParsePrefix("10.9.0.0/24")},
			{Pool: netip.MustParsePrefix("2001:db8:9::/64")},
		}
		for _, h := range []*kerneltest.Host{l.One, l.Router} {
			h.Sh(l.TB, "ip route replace 10.9.0.0/24 via "+modetest.HostAddr+"; ip route replace 2001:db8:9::/64 via "+
				modetest.HostAddr6)
		}
	}
	return l.Up(n)
}

// at returns the addresses of the container of that number.
func at(mode string, number int) []string {
	return []string{addr(mode, number, 0) + "/24", addr(mode, number, 1) + "/64"}
}

func addr(mode string, number, family int) string {
	if mode == "l2" {
		return []string{fmt.Sprintf("192.168.7.%d", number), fmt.Sprintf("2001:db8:7::%d", number)}[family]
	}
	return []string{fmt.Sprintf("10.9.0.%d", number), fmt.Sprintf("2001:db8:9::%d", number)}[family]
}

// TestConntrack: what an l3s container sends and gets goes through the firewall of the host's namespace, so that it can
// be tracked and filtered there; an l3 container's does not come in by it.
func TestConntrack(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for mode, sees := range map[string]bool{"l3": false, "l3s": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, ipvlan.New)
			n := lanNetwork(l, netA, mode, options("parent", "eth0", "ipvlan_mode", mode))
			c1 := l.Run(n, one, at(mode, 11)...)
			l.Host.Sh(t, "nft add table inet probe; "+
				"nft 'add chain inet probe in { type filter hook input priority 0; }'; "+
				"nft 'add rule inet probe in ct state established ip daddr 10.9.0.11 counter'")
			l.Reaches("container to LAN", c1.Host, modetest.OneAddr, true)
			if got := !strings.Contains(l.Host.Sh(t, "nft list chain inet probe in"), "packets 0"); got != sees {
				t.Errorf("the host's firewall sees a container's answers as those of a known connection: %v", got)
			}
		})
	}
}

// TestHostAccess: the host and the containers reach each other at all their addresses, and nothing of it is left.
func TestHostAccess(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, ipvlan.New)
			before := modetest.Settled(t, l.Host)
			n := lanNetwork(l, netA, mode, options("parent", "eth0", "ipvlan_mode", mode, "host_access", "true"))
			c1, c2 := l.Run(n, one, at(mode, 11)...), l.Run(n, two, at(mode, 12)...)
			both := func(when string) {
				t.Helper()
				for family, host := range []string{modetest.HostAddr, modetest.HostAddr6} {
					l.Reaches(when+"host to container", l.Host, addr(mode, 11, family), true)
					l.Reaches(when+"host to container", l.Host, addr(mode, 12, family), true)
					l.Reaches(when+"container to host", c1.Host, host, true)
					l.Reaches(when+"container to host", c2.Host, host, true)
					l.Reaches(when+"LAN to host", l.One, host, true)
					l.Reaches(when+"LAN to container", l.One, addr(mode, 11, family), true)
				}
				l.Reaches(when+"container to LAN", c1.Host, modetest.OneAddr, true)
				l.Reaches(when+"container to container", c1.Host, addr(mode, 12, 0), true)
			}
			both("")
			l.Host.Sh(t, "ip neigh flush all")
			c1.Sh(t, "ip neigh flush all")
			l.One.Sh(t, "ip neigh flush all")
			both("asked anew: ")
			l.Host.Sh(t, "ip link set eth0 down && ip link set eth0 up && ip addr add "+modetest.HostAddr6+
				"/64 dev eth0 nodad; ip route add default via "+modetest.RouterAddr+"; ip route add default via "+
				modetest.RouterAddr6)
			both("after a flap: ")
			l.Stop(c1)
			l.Stop(c2)
			if err := l.Mode.Down(n); err != nil {
				t.Fatal(err)
			}
			if got := modetest.Settled(t, l.Host); got != before {
				t.Errorf("something is left:\n%s", cmp.Diff(before, got))
			}
		})
	}
}

// TestParents: several networks on one parent and on VLANs of it, and one without.
func TestParents(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan", "vlan")
	l := modetest.NewLAN(t, ipvlan.New)
	l.One.Sh(t, "ip link add link eth0 name eth0.50 type vlan id 50 && ip link set eth0.50 up && "+
		"ip addr add 192.168.50.3/24 dev eth0.50")
	before := modetest.Settled(t, l.Host)
	a, b := l.Up(l.Network(netA, "ipvlan", options("parent", "eth0"))),
		l.Up(l.Network(netB, "ipvlan", options("parent", "eth0")))
	v := l.Up(modes.Network{
		ID: "cc", Mode: "ipvlan", Options: options("parent", "eth0.50", "ipvlan_mode", "l2"),
		Subnets: []modes.Subnet{{Pool: netip.MustParsePrefix("192.168.50.0/24")}},
	})
	alone := l.Up(modes.Network{
		ID: "dd", Mode: "ipvlan", Subnets: []modes.Subnet{{Pool: netip.MustParsePrefix("10.9.0.0/24")}},
	})
	a1, b1 := l.Run(a, one, "192.168.7.11/24"), l.Run(b, two, "192.168.7.12/24")
	v1 := l.Run(v, "e3e3e3e3e3e3e3", "192.168.50.11/24")
	i1, i2 := l.Run(alone, "e4e4e4e4e4e4e4", "10.9.0.2/24"), l.Run(alone, "e5e5e5e5e5e5e5", "10.9.0.3/24")
	l.Reaches("on the first", a1.Host, modetest.OneAddr, true)
	l.Reaches("on the second", b1.Host, modetest.OneAddr, true)
	l.Reaches("from one network to the other", a1.Host, "192.168.7.12", true)
	l.Reaches("on a VLAN", v1.Host, "192.168.50.3", true)
	l.Reaches("without a parent, to a neighbour", i1.Host, "10.9.0.3", true)
	l.Audit([]modes.Network{a, b, v, alone}, a1, b1, v1, i1, i2)
	for _, c := range []modetest.Container{a1, b1, v1, i1, i2} {
		l.Stop(c)
	}
	for _, n := range []modes.Network{a, b, v, alone} {
		if err := l.Mode.Down(n); err != nil {
			t.Fatal(err)
		}
	}
	if got := modetest.Settled(t, l.Host); got != before {
		t.Errorf("something is left:\n%s", cmp.Diff(before, got))
	}
}

// TestNoIPVLAN: on a kernel that has none the network is refused, in words.
func TestNoIPVLAN(t *testing.T) {
	t.Parallel()
	l := modetest.NewLAN(t, ipvlan.New)
	_, err := l.Mode.Settle(t.Context(), l.Network(netA, "ipvlan", options("parent", "eth0")))
	if l.Host.HasKind("ipvlan") != (err == nil) ||
		err != nil && !strings.Contains(err.Error(), "this kernel has no ipvlan") {
		t.Errorf("the kernel has ipvlan: %v; the network: %v", l.Host.HasKind("ipvlan"), err)
	}
}

// TestShare: what networks on one parent have in common.
func TestShare(t *testing.T) {
	t.Parallel()
	host := modetest.Facts{
		Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500), "eth1": modetest.Ethernet(1500)},
	}
	of := func(pairs ...string) modes.Network { return modetest.Network(netB, "ipvlan", options(pairs...)) }
	first := modetest.Network(netA, "ipvlan", options("parent", "eth0", "ipvlan_mode", "l3"))
	lan := modes.Network{ID: "cc", Name: "lan", Mode: "macvlan", Options: options("parent", "eth1")}
	for want, n := range map[string]modes.Network{
		"": of("parent", "eth0", "ipvlan_mode", "l3"),
		"network aaaaaaaaaaaa is on parent eth0, and its ipvlan_mode=l3 is shared by all networks on one parent":       of("parent", "eth0"),
		"network aaaaaaaaaaaa is on parent eth0, and its ipvlan_flag=bridge is shared by all networks on one parent":   of("parent", "eth0", "ipvlan_mode", "l3", "ipvlan_flag", "vepa"),
		"parent=eth1: network lan uses it in mode macvlan, and a link cannot be the parent of both macvlan and ipvlan": of("parent", "eth1"),
	} {
		_, err := ipvlan.New(modes.Env{}).Settle(t.Context(), host, n, []modes.Network{first, lan, n})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestReversePath: a host that would drop what containers send it says so beforehand.
func TestReversePath(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	l := modetest.NewLAN(t, ipvlan.New)
	l.Host.Sh(t, "sysctl -qw net.ipv4.conf.all.rp_filter=1")
	settle := l.Mode.Settle
	_, err := settle(t.Context(), l.Network(netA, "ipvlan", options("parent", "eth0", "host_access", "true")))
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.conf.eth0.rp_filter is 1") {
		t.Errorf("host access with strict reverse paths: %v", err)
	}
	l.Host.Sh(t, "sysctl -qw net.ipv4.conf.eth0.rp_filter=2")
	if _, err := settle(t.Context(),
		l.Network(netA, "ipvlan", options("parent", "eth0", "host_access", "true"))); err != nil {
		t.Error(err)
	}
}

// TestParentDown shows that containers are made while their parent is down, and are on the LAN when it is up.
func TestParentDown(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "ipvlan")
	for _, mode := range []string{"l2", "l3s"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := modetest.NewLAN(t, ipvlan.New)
			l.Host.Sh(t, "ip link set eth0 down")
			n := lanNetwork(l, netA, mode, options("parent", "eth0", "ipvlan_mode", mode))
			c1 := l.Run(n, one, at(mode, 11)...)
			l.Reaches("parent down", c1.Host, modetest.OneAddr, false)
			l.Host.Sh(t, "ip link set eth0 up")
			l.Reaches("parent up", c1.Host, modetest.OneAddr, true)
			l.Audit([]modes.Network{n}, c1)
		})
	}
}
