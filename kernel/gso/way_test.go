package gso_test

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/gso"
)

// attrs returns the attributes of a link that takes segments of a size and could take others.
func attrs(index int, name string, size, most uint32) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name, a.GSOMaxSize, a.GSOIPv4MaxSize, a.TSOMaxSize = index, name, size, size, most
	return a
}

// route returns a route by text; "default" is one.
func route(t *testing.T, dst string) netlink.Route {
	t.Helper()
	r := netlink.Route{Type: unix.RTN_UNICAST}
	if dst == "default" {
		return r
	}
	_, prefix, err := net.ParseCIDR(dst)
	if err != nil {
		t.Fatal(err)
	}
	r.Dst = prefix
	return r
}

// TestWay: the smallest link decides by which packets leave the host. What stays on the host, and netyard's own links,
// do not count.
func TestWay(t *testing.T) {
	t.Parallel()
	const small, some, most = gso.Small, 131072, 524280
	port := func(l netlink.Link, of int) netlink.Link {
		l.Attrs().MasterIndex = of
		return l
	}
	on := func(l netlink.Link, parent int) netlink.Link {
		l.Attrs().ParentIndex = parent
		return l
	}
	device := func(i int, name string, size uint32) netlink.Link {
		return &netlink.Device{LinkAttrs: attrs(i, name, size, most)}
	}
	lo := device(1, "lo", small)
	lo.Attrs().Flags |= net.FlagLoopback
	own := &netlink.Bridge{LinkAttrs: attrs(90, "nyb-000000000001", small, small)}
	own.Alias = "netyard:a"
	oneFamily := device(2, "eth0", gso.Big)
	oneFamily.Attrs().GSOIPv4MaxSize = small
	old := device(2, "eth0", small)
	old.Attrs().GSOIPv4MaxSize, old.Attrs().TSOMaxSize = 0, 0
	routed := gso.Want{Big: true, Routed: true}
	for _, c := range []struct {
		name   string
		links  []netlink.Link
		routes map[int][]string
		want   gso.Want
		v4, v6 uint32
		reason string
	}{
		{"no way out", []netlink.Link{lo}, map[int][]string{1: {"127.0.0.0/8"}}, routed, gso.Big, gso.Big, ""},
		{"a small one", []netlink.Link{device(2, "eth0", small)}, map[int][]string{2: {"default"}}, routed, small, small, "ip link set dev eth0 gso_max_size 262144 gso_ipv4_max_size 262144"},
		{"one that cannot be larger", []netlink.Link{&netlink.Tuntap{LinkAttrs: attrs(2, "tun0", small, small)}}, map[int][]string{2: {"10.8.0.0/24"}}, routed, small, small, "link tun0, on the way out, takes segments of 65536 bytes"},
		{"a large one", []netlink.Link{device(2, "eth0", most)}, map[int][]string{2: {"default"}}, routed, gso.Big, gso.Big, ""},
		{"something between", []netlink.Link{device(2, "eth0", some)}, map[int][]string{2: {"default"}}, routed, some, some, "link eth0, on the way out, takes segments of 131072 bytes"},
		{"of one family", []netlink.Link{oneFamily}, map[int][]string{2: {"default"}}, routed, small, gso.Big, "65536 bytes (IPv4) and 262144 (IPv6)"},
		{"the smaller of two", []netlink.Link{device(2, "eth0", most), device(3, "eth1", some)}, map[int][]string{2: {"default"}, 3: {"10.1.0.0/16"}}, routed, some, some, "eth1"},
		{"small, and nothing leaves", []netlink.Link{device(2, "eth0", small)}, map[int][]string{2: {"default"}}, gso.Want{Big: true}, gso.Big, gso.Big, ""},
		{"not wanted", []netlink.Link{device(2, "eth0", most)}, map[int][]string{2: {"default"}}, gso.Want{}, small, small, "not wanted"},
		{"an old kernel", []netlink.Link{old}, nil, gso.Want{Big: true}, small, small, "Linux 6.3"},
		{"without a route", []netlink.Link{device(2, "eth0", small)}, nil, routed, gso.Big, gso.Big, ""},
		{"of the link alone", []netlink.Link{device(2, "eth0", small)}, map[int][]string{2: {"fe80::/64", "ff00::/8"}}, routed, gso.Big, gso.Big, ""},
		{"below a VLAN", []netlink.Link{device(2, "eth0", some), on(&netlink.Vlan{LinkAttrs: attrs(3, "eth0.5", most, most)}, 2)}, map[int][]string{3: {"default"}}, routed, some, some, "eth0"},
		{"a port of a bond", []netlink.Link{device(2, "eth0", some), device(3, "eth1", most), port(device(4, "eth2", small), 9), &netlink.Bond{LinkAttrs: attrs(9, "bond0", most, most)}}, map[int][]string{9: {"default"}}, routed, small, small, "eth2"},
		{"a port of a bridge", []netlink.Link{port(device(2, "eth0", some), 9), &netlink.Bridge{LinkAttrs: attrs(9, "lan0", most, most)}}, map[int][]string{9: {"10.1.0.0/16"}}, routed, some, some, "eth0"},
		{"a bridge of containers", []netlink.Link{port(&netlink.Veth{LinkAttrs: attrs(2, "veth1", small, most)}, 9), &netlink.Bridge{LinkAttrs: attrs(9, "docker0", small, most)}}, map[int][]string{9: {"172.17.0.0/16"}}, routed, gso.Big, gso.Big, ""},
		{"a bridge to a router", []netlink.Link{port(&netlink.Veth{LinkAttrs: attrs(2, "veth1", small, most)}, 9), &netlink.Bridge{LinkAttrs: attrs(9, "br0", most, most)}}, map[int][]string{9: {"default"}}, routed, small, small, "veth1"},
		{"a container of others", []netlink.Link{&netlink.Veth{LinkAttrs: attrs(2, "cali1", small, most)}}, map[int][]string{2: {"10.1.0.7/32"}}, routed, gso.Big, gso.Big, ""},
		{"a subnet behind a veth", []netlink.Link{&netlink.Veth{LinkAttrs: attrs(2, "eth0", small, most)}}, map[int][]string{2: {"10.1.0.0/24"}}, routed, small, small, "eth0"},
		{"a tunnel to one address", []netlink.Link{&netlink.Wireguard{LinkAttrs: attrs(2, "wg0", small, small)}}, map[int][]string{2: {"10.1.0.7/32"}}, routed, small, small, "wg0"},
		{"netyard's own bridge", []netlink.Link{own}, map[int][]string{90: {"10.9.0.0/24"}}, routed, gso.Big, gso.Big, ""},
		{"a parent", []netlink.Link{device(2, "eth0", some), device(3, "eth1", small)}, map[int][]string{3: {"default"}}, gso.Want{Big: true, Link: "eth0"}, some, some, "eth0"},
		{"the host's bridge", []netlink.Link{port(device(2, "eth0", most), 9), &netlink.Bridge{LinkAttrs: attrs(9, "lan0", most, most)}, device(3, "eth1", some)}, map[int][]string{3: {"default"}}, gso.Want{Big: true, Routed: true, Link: "lan0"}, some, some, "eth1"},
		{"a parent that is gone", nil, nil, gso.Want{Big: true, Link: "eth0"}, small, small, "link eth0 does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			routes := map[int][]netlink.Route{}
			for i, all := range c.routes {
				for _, dst := range all {
					routes[i] = append(routes[i], route(t, dst))
				}
			}
			got := gso.NewWay(c.links, routes).Limit(c.want)
			told := strings.Contains(got.Reason, c.reason) && (got.Reason == "") == (c.reason == "")
			if got.V4 != c.v4 || got.V6 != c.v6 || !told {
				t.Errorf("%s, since %q; want %d and %d, since %q", got.Sizes, got.Reason, c.v4, c.v6, c.reason)
			}
		})
	}
}

// TestSeveralHops: each hop of a route is a way out.
func TestSeveralHops(t *testing.T) {
	t.Parallel()
	const some, most = 131072, 524280
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: attrs(2, "eth0", most, most)},
		&netlink.Device{LinkAttrs: attrs(3, "eth1", some, most)},
	}
	both := netlink.Route{Type: unix.RTN_UNICAST, MultiPath: []*netlink.NexthopInfo{{LinkIndex: 2}, {LinkIndex: 3}}}
	got := gso.NewWay(links, map[int][]netlink.Route{0: {both}}).Limit(gso.Want{Big: true, Routed: true})
	if got.V4 != some || got.V6 != some {
		t.Errorf("%s, want %d", got.Sizes, some)
	}
}
