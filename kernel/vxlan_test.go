package kernel_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/sandbox"
)

const (
	blueVNI, greenVNI = 0x1234, 0x5678
	vxlanPort         = 4789
	blueNet           = "aaaaaaaaaaaa1111"
	greenNet          = "bbbbbbbbbbbb2222"
)

// An overlaid is a host of an overlay.
type overlaid struct {
	*kerneltest.Host
	t    testing.TB
	n    int
	v6   bool
	vtep netip.Addr
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// overlayOf makes hosts on one LAN.
func overlayOf(t testing.TB, hosts int, v6 bool) (all []*overlaid) {
	t.Helper()
	lan := kerneltest.New(t)
	lan.Sh(t, "ip link add br0 type bridge mcast_snooping 0 && ip link set br0 up")
	for n := 1; n <= hosts; n++ {
		o := &overlaid{Host: lan.Peer(t, fmt.Sprint("p", n)), t: t, n: n, v6: v6}
		o.vtep = netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
		if v6 {
			o.vtep = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n))
		}
		lan.Sh(t, fmt.Sprintf("ip link set p%d master br0", n))
		o.Sh(t, fmt.Sprintf("ip addr add %s/%d dev eth0 nodad 2>/dev/null || ip addr add %s/24 dev eth0",
			o.vtep, o.vtep.BitLen()-8, o.vtep))
		o.LeaveTablesOpen()
		must(t, o.LoadFirewall())
		all = append(all, o)
	}
	return all
}

// bridge returns the objects of a network with a VNI, with the host's own address and the gateway's. subnet is 20 for
// 10.20.0.0/16 and fd20::/64.
func (o *overlaid) bridge(id string, vni uint32, subnet int) (objects []core.Object) {
	br, x := core.Name(core.BridgePrefix, id), core.Name(core.VXLANPrefix, id)
	alias, mtu := core.Alias(id, ""), 1450
	if o.v6 {
		mtu = 1430
	}
	mac, _ := net.ParseMAC(hostMAC(o.n))
	return []core.Object{
		bridge.Bridge{Name: br, Alias: alias, MTU: mtu, MAC: mac, IPv6: true},
		core.Addr{Link: br, Alias: alias, Prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.255.%d/16", subnet, o.n))},
		core.Addr{Link: br, Alias: alias, Prefix: netip.MustParsePrefix(fmt.Sprintf("fd%d::ff:%d/64", subnet, o.n))},
		overlay.Anycast{Link: br, Alias: alias, Addr: netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", subnet))},
		overlay.Anycast{Link: br, Alias: alias, Addr: netip.MustParseAddr(fmt.Sprintf("fd%d::1", subnet))},
		overlay.VXLAN{Name: x, Alias: alias, Master: br, VNI: vni, Local: o.vtep, Port: vxlanPort, MTU: mtu},
		nft.InterfaceIn(bridge.Bridges, br).For(id), nft.InterfaceIn(bridge.Own, br, br).For(id),
		nft.InterfaceIn(bridge.Reachable, br, br).For(id),
	}
}

func hostMAC(n int) string { return fmt.Sprintf("02:00:00:00:ff:%02x", n) }

// container starts a container; its addresses are those of subnet that end with the numbers of host and container.
func (o *overlaid) container(id string, subnet, number int) *kerneltest.Host {
	o.t.Helper()
	eid := fmt.Sprintf("%d%d%d", subnet, o.n, number) + strings.Repeat("e", 12)
	mac, _ := net.ParseMAC(containerMAC(o.n, number))
	mtu := 1450
	if o.v6 {
		mtu = 1430
	}
	v := bridge.Veth{
		Name: core.Name(core.VethPrefix, eid), Peer: core.Name(core.PeerPrefix, eid), Alias: core.Alias(id, eid),
		Master: core.Name(core.BridgePrefix, id), MTU: mtu, MAC: mac,
	}
	v4, v6 := containerAddrs(subnet, o.n, number)
	guard := bridge.PortGuard{Port: v.Name, MAC: mac, Addrs: []netip.Addr{v4, v6}}
	port := bridge.StaticPort{Link: v.Name, MAC: mac}
	must(o.t, o.Ensure(o.t.Context(), append([]core.Object{v, port}, guard.Objects()...)...))
	if said := faults(o.t, o.Host, v, port); said != "" {
		o.t.Error(said)
	}
	c := kerneltest.New(o.t)
	c.Take(o.t, o.Host, v.Peer, fmt.Sprintf("ip addr add %s/16 dev eth0 && ip addr add %s/64 dev eth0 nodad", v4, v6),
		fmt.Sprintf("ip route add default via 10.%d.0.1", subnet))
	return c
}

func containerMAC(host, number int) string { return fmt.Sprintf("02:42:00:00:%02x:%02x", host, number) }

func containerAddrs(subnet, host, number int) (v4, v6 netip.Addr) {
	return netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", subnet, host, number)),
		netip.MustParseAddr(fmt.Sprintf("fd%d::%d:%d", subnet, host, number))
}

// peersOf returns a host's own addresses and those of its first container, as peers for the other hosts.
func (o *overlaid) peersOf(subnet int) (all []overlay.Peer) {
	add := func(addr, mac string) {
		hw, _ := net.ParseMAC(mac)
		all = append(all, overlay.Peer{Addr: netip.MustParseAddr(addr), MAC: hw, VTEP: o.vtep})
	}
	v4, v6 := containerAddrs(subnet, o.n, 2)
	add(v4.String(), containerMAC(o.n, 2))
	add(v6.String(), containerMAC(o.n, 2))
	add(fmt.Sprintf("10.%d.255.%d", subnet, o.n), hostMAC(o.n))
	add(fmt.Sprintf("fd%d::ff:%d", subnet, o.n), hostMAC(o.n))
	return all
}

// join makes a network on all hosts, which have each other as peers, with a container on each.
func join(t testing.TB, hosts []*overlaid, id string, vni uint32, subnet int) (containers []*kerneltest.Host) {
	t.Helper()
	for _, o := range hosts {
		objects := o.bridge(id, vni, subnet)
		peers := overlay.Peers{Link: core.Name(core.VXLANPrefix, id)}
		var vteps []netip.Addr
		for _, other := range hosts {
			if other != o {
				peers.All = append(peers.All, other.peersOf(subnet)...)
				vteps = append(vteps, other.vtep)
			}
		}
		objects = append(objects, peers)
		for _, el := range overlay.VTEPElements(vxlanPort, vni, vteps) {
			objects = append(objects, el.For(id))
		}
		for range 2 { // twice is once
			must(t, o.Ensure(t.Context(), objects...))
		}
		if said := faults(t, o.Host, objects...); said != "" {
			t.Errorf("host %d: %s", o.n, said)
		}
		containers = append(containers, o.container(id, subnet, 2))
	}
	return containers
}

// onTheWire counts the VXLAN packets that a host sends.
func onTheWire(t *testing.T, o *overlaid) func() string {
	t.Helper()
	o.Sh(t, "nft add table netdev count; "+
		"nft 'add chain netdev count out { type filter hook egress device eth0 priority 0; }'; "+
		"nft 'add rule netdev count out udp dport 4789 counter'")
	return func() string { return o.Sh(t, "nft list chain netdev count out | grep -o 'packets [0-9]*'") }
}

func reach(t *testing.T, from *kerneltest.Host, to string, want bool) {
	t.Helper()
	if got := from.Pings(to, want); got != want {
		t.Errorf("ping %s: %v, want %v", to, got, want)
	}
}

// TestVXLAN: containers and hosts of a network reach each other over the underlay, IPv4 and IPv6, and those of another
// network do not. Only frames for known peers are on the wire.
func TestVXLAN(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			hosts := overlayOf(t, 3, v6)
			blue := join(t, hosts, blueNet, blueVNI, 20)
			green := join(t, hosts[:2], greenNet, greenVNI, 30)
			for i, c := range blue {
				for j := range blue {
					v4, v6 := containerAddrs(20, j+1, 2)
					if i != j {
						reach(t, c, v4.String(), true)
						reach(t, c, v6.String(), true)
						reach(t, hosts[i].Host, v4.String(), true) // from its own address, not the gateway's
						reach(t, hosts[i].Host, v6.String(), true)
					}
				}
			}
			reach(t, blue[0], "10.20.255.3", true)
			reach(t, blue[0], "10.20.0.1", true)
			reach(t, green[0], "10.30.2.2", true)
			green[0].Sh(t, "ip route add 10.20.0.0/16 via 10.30.0.1")
			reach(t, green[0], "10.20.2.2", false)
			reach(t, green[0], "10.20.1.2", false)
			full := fmt.Sprint("ping -c1 -W2 -M do -s ", map[bool]int{false: 1450, true: 1430}[v6]-28, " 10.20.2.2")
			blue[0].Sh(t, "for i in 1 2 3 4 5; do "+full+" && exit; done; exit 1")
			unknownStays(t, hosts, blue)
			if t.Failed() {
				t.Log(hosts[0].Sh(t, "ip addr; bridge fdb show dev nyx-aaaaaaaaaaa; "+
					"ip neigh show dev nyx-aaaaaaaaaaa; nft list ruleset"))
			}
		})
	}
}

// unknownStays checks that frames for unknown addresses stay on the host.
func unknownStays(t *testing.T, hosts []*overlaid, blue []*kerneltest.Host) {
	t.Helper()
	count := onTheWire(t, hosts[0])
	me := kerneltest.Station{V4: netip.MustParseAddr("10.20.1.2"), V6: netip.MustParseAddr("fd20::1:2")}
	me.MAC, _ = net.ParseMAC(containerMAC(1, 2))
	unknown := kerneltest.Station{
		V4: netip.MustParseAddr("10.20.9.9"), V6: netip.MustParseAddr("fd20::9:9"),
		MAC: net.HardwareAddr{2, 0x42, 9, 9, 9, 9},
	}
	frames := kerneltest.Honest(me, unknown) // unicast to an unknown address, and broadcast
	must(t, blue[0].Do(func() error { return kerneltest.SendFrames("eth0", frames) }))
	for _, cmd := range []string{
		"ping -c2 -i0.2 -W1 10.20.9.9", "ping -c2 -i0.2 -W1 fd20::9:9", "ping -b -c2 -i0.2 -W1 10.20.255.255",
		"ping -c2 -i0.2 -W1 ff02::1%eth0", "ping -c2 -i0.2 -W1 224.0.0.1",
	} {
		_, _ = blue[0].TrySh(cmd)
	}
	if got := count(); got != "packets 0" {
		t.Errorf("frames for unknown addresses on the wire: %s", got)
	}
	reach(t, blue[0], "10.20.2.2", true)
	if got := count(); got == "packets 0" {
		t.Error("the counter does not count")
	}
}

// vxlanFrame is the payload that an injector sends: a frame to a container, inside VXLAN.
func vxlanFrame(vni uint32, inner []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8), inner...)
}

// TestVXLANInjection: frames from a host that is no member, or for a network that the host is not on, do not arrive.
func TestVXLANInjection(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			hosts := overlayOf(t, 4, v6) // the fourth is no member; the third is on green only
			blue := join(t, hosts[:2], blueNet, blueVNI, 20)
			join(t, []*overlaid{hosts[0], hosts[2]}, greenNet, greenVNI, 30)
			for _, o := range hosts[1:] { // they can send anything, as machines without netyard
				must(t, o.UnloadFirewall())
			}
			victim := kerneltest.Station{V4: netip.MustParseAddr("10.20.1.2"), V6: netip.MustParseAddr("fd20::1:2")}
			me := kerneltest.Station{V4: netip.MustParseAddr("10.20.2.2"), V6: netip.MustParseAddr("fd20::2:2")}
			victim.MAC, _ = net.ParseMAC(containerMAC(1, 2))
			me.MAC, _ = net.ParseMAC(containerMAC(2, 2))
			frames := kerneltest.Honest(me, victim)[:1]
			for name, c := range map[string]struct {
				from *overlaid
				vni  uint32
				many int
				want int
			}{
				"a member":                      {hosts[1], blueVNI, 200, 200},
				"no member":                     {hosts[3], blueVNI, 1000, 0},
				"a member of another network":   {hosts[2], blueVNI, 1000, 0},
				"a member, with an unknown VNI": {hosts[1], 0x9999, 1000, 0},
			} {
				var capture *kerneltest.Capture
				must(t, blue[0].Do(func() (err error) { capture, err = kerneltest.NewCapture("eth0"); return err }))
				must(t, c.from.Do(func() error {
					conn, err := net.Dial("udp", netip.AddrPortFrom(hosts[0].vtep, vxlanPort).String())
					if err != nil {
						return err
					}
					defer conn.Close()
					for range c.many {
						if _, err := conn.Write(vxlanFrame(c.vni, frames[0].Raw)); err != nil {
							return err
						}
						time.Sleep(100 * time.Microsecond) // or queues overflow
					}
					return nil
				}))
				got := 0
				for deadline := 20; deadline > 0 && (c.want == 0 && deadline > 15 || got < c.want); deadline-- {
					_ = capture.Got(frames, 50*time.Millisecond)
					got = capture.Count(frames[0])
				}
				if err := capture.Close(); err != nil {
					t.Error(err)
				}
				if c.want == 0 && got != 0 || c.want > 0 && got == 0 {
					t.Errorf("%s: %d of %d arrived", name, got, c.many)
				}
			}
		})
	}
}

// TestVXLANDrift: what somebody removed or changed is reported, and Ensure repairs it.
func TestVXLANDrift(t *testing.T) {
	t.Parallel()
	hosts := overlayOf(t, 2, false)
	join(t, hosts, blueNet, blueVNI, 20)
	o := hosts[0]
	objects := append(o.bridge(blueNet, blueVNI, 20), overlay.Peers{Link: "nyx-aaaaaaaaaaa", All: hosts[1].peersOf(20)})
	for cmd, want := range map[string]string{
		"ip link del nyx-aaaaaaaaaaa":                                                                                              "VXLAN link nyx-aaaaaaaaaaa is missing",
		"ip link set nyx-aaaaaaaaaaa nomaster":                                                                                     "is not a port of bridge nyb-aaaaaaaaaaa",
		"ip link set nyx-aaaaaaaaaaa down":                                                                                         "is down",
		"ip link set nyx-aaaaaaaaaaa mtu 1300":                                                                                     "has MTU 1300 instead of 1450",
		"bridge link set dev nyx-aaaaaaaaaaa learning on":                                                                          "learns addresses",
		"bridge link set dev nyx-aaaaaaaaaaa flood off":                                                                            "does not receive unknown unicast",
		"ip link set nyb-aaaaaaaaaaa type bridge mcast_snooping 1":                                                                 "has multicast snooping on",
		"sysctl -qw net.ipv6.conf.nyx-aaaaaaaaaaa.addr_gen_mode=0":                                                                 "addr_gen_mode",
		"ip link set nyb-aaaaaaaaaaa address 02:00:00:00:00:99":                                                                    "bridge nyb-aaaaaaaaaaa has MAC 02:00:00:00:00:99 instead of 02:00:00:00:ff:01",
		"sysctl -qw net.ipv6.conf.nyx-aaaaaaaaaaa.disable_ipv6=1":                                                                  "disable_ipv6",
		"bridge fdb del " + containerMAC(2, 2) + " dev nyx-aaaaaaaaaaa":                                                            "2 missing or different",
		"bridge fdb replace " + containerMAC(2, 2) + " dev nyx-aaaaaaaaaaa dst 192.0.2.9":                                          "2 missing or different",
		"ip neigh del 10.20.2.2 dev nyx-aaaaaaaaaaa":                                                                               "1 missing or different, including 10.20.2.2",
		"ip neigh flush dev nyx-aaaaaaaaaaa nud permanent":                                                                         "4 missing or different",
		"bridge fdb add 02:00:00:00:00:99 dev nyx-aaaaaaaaaaa dst 192.0.2.9":                                                       "1 entries of no peer",
		"ip neigh add 10.20.9.9 lladdr 02:00:00:00:00:99 dev nyx-aaaaaaaaaaa":                                                      "1 entries of no peer",
		"ip addr del 10.20.0.1/32 dev nyb-aaaaaaaaaaa":                                                                             "gateway address 10.20.0.1 on nyb-aaaaaaaaaaa is missing",
		"ip -6 addr change fd20::1/128 dev nyb-aaaaaaaaaaa preferred_lft forever":                                                  "is not deprecated: the host may use it as source",
		"ip link del nyx-aaaaaaaaaaa && ip link add nyx-aaaaaaaaaaa type vxlan id 7 dstport 4789 local 192.0.2.1 nolearning proxy": "carry|has another alias",
	} {
		o.Sh(t, cmd)
		said := faults(t, o.Host, objects...)
		if !strings.Contains(said, strings.TrimPrefix(want, "carry|")) {
			t.Errorf("after %s: %q, want %q", cmd, said, want)
		}
		must(t, o.Ensure(t.Context(), objects...))
		if said := faults(t, o.Host, objects...); said != "" {
			t.Errorf("after %s it is not repaired: %s", cmd, said)
		}
	}
	must(t, o.Remove(objects...))
	must(t, o.Remove(objects...))
	if out, err := o.TrySh("ip link show nyx-aaaaaaaaaaa"); err == nil {
		t.Errorf("the device still exists: %s", out)
	}
	o.Sh(t, "ip link add nyx-aaaaaaaaaaa type bridge && ip link set nyx-aaaaaaaaaaa alias mine")
	must(t, o.Ensure(t.Context(), objects[0]))
	if err := o.Ensure(t.Context(), objects[5]); err == nil || !strings.Contains(err.Error(), "is not netyard's") {
		t.Errorf("over somebody else's link: %v", err)
	}
}

// TestUnderlay: the MTU of a routed host, which has its address on lo, is that of its way to the others.
func TestUnderlay(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Peer(t, "eth0")
	h.Peer(t, "eth1")
	h.Sh(t, "ip addr add 192.0.2.1/32 dev lo && ip addr add 2001:db8::1/128 dev lo && ip link set lo up")
	a, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	is := func(a netip.Addr, link string, mtu int) {
		t.Helper()
		got, err := overlay.UnderlayOf(h.Handle, a)
		if err != nil || got.Link != link || got.MTU != mtu || (got.MAC == "") != (link == "lo") {
			t.Errorf("%+v, %v; want %s, %d", got, err, link, mtu)
		}
	}
	is(a, "lo", 1500)
	h.Sh(t, "ip addr add 10.1.0.2/24 dev eth0 && ip addr add 10.2.0.2/24 dev eth1 && ip link set eth0 mtu 9000")
	is(netip.MustParseAddr("10.1.0.2"), "eth0", 9000)
	h.Sh(t, "ip route add default via 10.1.0.1")
	is(a, "eth0", 9000)
	h.Sh(t, "ip link set eth1 mtu 1400 && "+
		"ip route add 192.0.2.0/24 nexthop via 10.1.0.1 dev eth0 nexthop via 10.2.0.1 dev eth1")
	is(a, "eth1", 1400)
	h.Sh(t, "ip route add 198.51.100.0/24 via inet6 fe80::1 dev eth0 mtu 1300")
	is(a, "eth0", 1300)
	is(six, "lo", 1500)
	h.Sh(t, "ip -6 addr add 2001:db8:1::2/64 dev eth0 nodad && ip -6 route add default via 2001:db8:1::1")
	is(six, "eth0", 9000)
}

// TestVXLANPort: if the port is taken, the error names the port, the program or link that has it, and the option.
func TestVXLANPort(t *testing.T) {
	t.Parallel()
	o := overlayOf(t, 1, false)[0]
	objects := o.bridge(blueNet, blueVNI, 20)
	refused := func(holder string) {
		t.Helper()
		err := o.Ensure(t.Context(), objects...)
		want := "UDP port 4789 is in use by " + holder +
			"; end that, or set overlay.port to another, the same on all hosts: address already in use"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		must(t, o.Remove(objects...))
	}
	for _, at := range []string{"0.0.0.0:4789", "192.0.2.1:4789"} {
		var l net.PacketConn
		must(t, o.Do(func() (err error) { l, err = net.ListenPacket("udp4", at); return err }))
		refused(fmt.Sprintf("process kernel.test (pid %d)", os.Getpid()))
		must(t, l.Close())
		kerneltest.Released(t, func() ([]sandbox.Listener, error) { return sandbox.Listeners(o.Handle, "udp") }, 4789)
	}
	o.Sh(t, "ip link add flannel type vxlan external dstport 4789 && ip link set flannel up")
	refused("VXLAN link flannel")
	o.Sh(t, "ip link del flannel")
	if overlay.CheckWireGuard(o.Handle) == nil {
		w := overlay.WireGuard{Port: 4789, MTU: 1440, Addr: netip.MustParsePrefix("fd99::1/64")}
		must(t, o.Ensure(t.Context(), w))
		refused("a link of this kernel, such as a VXLAN or a WireGuard link")
		must(t, o.Remove(w))
	}
	must(t, o.Ensure(t.Context(), objects...))
}

// TestVXLANStray: a device that no network wants is reported as a stray and removed.
func TestVXLANStray(t *testing.T) {
	t.Parallel()
	hosts := overlayOf(t, 1, false)
	o := hosts[0]
	objects := o.bridge(blueNet, blueVNI, 20)
	must(t, o.Ensure(t.Context(), objects...))
	for _, want := range []int{0, 1} {
		known := objects
		if want == 1 {
			known = slices.Concat(objects[:5], objects[6:])
		}
		snap, err := o.Snapshot()
		must(t, err)
		strays := snap.Strays(known)
		if len(strays) != want {
			t.Errorf("strays %v, want %d", strays, want)
		}
		for _, s := range strays {
			must(t, s.Remove())
		}
	}
	if out, err := o.TrySh("ip link show nyx-aaaaaaaaaaa"); err == nil {
		t.Errorf("the device still exists: %s", out)
	}
}

// TestPeers: many peers are set at once, and then changed; the device has all of them and no others.
func TestPeers(t *testing.T) {
	t.Parallel()
	hosts := overlayOf(t, 1, false)
	o := hosts[0]
	const link = "nyx-aaaaaaaaaaa"
	must(t, o.Ensure(t.Context(), o.bridge(blueNet, blueVNI, 20)...))
	const many = 10000
	peer := func(i, host int) overlay.Peer {
		return overlay.Peer{
			Addr: netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)}),
			MAC:  net.HardwareAddr{2, 0x42, 0, byte(i >> 16), byte(i >> 8), byte(i)},
			VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(host)}),
		}
	}
	all := overlay.Peers{Link: link}
	for i := range many {
		all.All = append(all.All, peer(i, 2+i%2))
	}
	right := func(when string) {
		t.Helper()
		if said := faults(t, o.Host, all); said != "" {
			t.Errorf("%s: %s", when, said)
		}
	}
	start := time.Now()
	must(t, o.Ensure(t.Context(), all))
	fresh := time.Since(start)
	right("after all were set")
	start = time.Now()
	must(t, o.Ensure(t.Context(), all))
	t.Logf("%d peers set in %s, compared in %s", many, fresh, time.Since(start))

	moved, gone := peer(5, 77), peer(6, 2)
	all.All[5] = moved
	all.All = append(all.All[:6:6], all.All[7:]...)
	addrs, macs := []netip.Addr{gone.Addr}, []net.HardwareAddr{gone.MAC}
	for _, when := range []string{"after a change", "after the same change again"} {
		must(t, overlay.ChangePeers(t.Context(), o.Handle, link, []overlay.Peer{moved}, addrs, macs))
		right(when)
	}

	some := overlay.Peers{Link: link, All: all.All[:10], Partial: true}
	if said := faults(t, o.Host, some); said != "" {
		t.Errorf("a partial list of peers: %s", said)
	}
	must(t, o.Ensure(t.Context(), some))
	right("after a partial list")

	bad := overlay.Peer{
		Addr: peer(many, 2).Addr, MAC: net.HardwareAddr{1, 0, 0x5e, 0, 0, 1},
		VTEP: netip.MustParseAddr("2001:db8::1"), // of the other family
	}
	good := peer(many+1, 2)
	err := overlay.ChangePeers(t.Context(), o.Handle, link, []overlay.Peer{bad, good}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), bad.MAC.String()) {
		t.Errorf("a peer that the kernel refuses: %v", err)
	}
	out := o.Sh(t, "bridge fdb show dev "+link)
	if !strings.Contains(out, good.MAC.String()) || bytes.Contains([]byte(out), []byte("2001:db8")) {
		t.Errorf("the other peers are not set:\n%s", out)
	}
	err = overlay.ChangePeers(t.Context(), o.Handle, "nyx-bbbbbbbbbbb", []overlay.Peer{good}, nil, nil)
	if err == nil {
		t.Error("peers of a missing device were set")
	}
}
