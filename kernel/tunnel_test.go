package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/sandbox"
)

func objectsOf(elements []nft.Element) (all []core.Object) {
	for _, e := range elements {
		all = append(all, e.For(blueNet))
	}
	return all
}

// TestEncryptedInClear: frames of an encrypted network neither leave by another link than the tunnel nor are accepted
// from one, whoever sends them. Frames of other networks are not affected. The test needs no kernel with WireGuard,
// since the rules need none.
func TestEncryptedInClear(t *testing.T) {
	t.Parallel()
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "over IPv4", true: "over IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			hosts := overlayOf(t, 2, v6)
			blue := join(t, hosts, blueNet, blueVNI, 20)
			green := join(t, hosts, greenNet, greenVNI, 30)
			count := onTheWire(t, hosts[0])
			closed := objectsOf(overlay.EncryptElements(vxlanPort, blueVNI))
			for i, o := range hosts { // first the sender, then the receiver
				must(t, o.Ensure(t.Context(), closed...))
				before := count()
				reach(t, blue[0], "10.20.2.2", false)
				reach(t, hosts[0].Host, "fd20::2:2", false)
				if after := count(); i == 0 && after != before {
					t.Errorf("frames left in clear: %s, then %s", before, after)
				}
				reach(t, blue[1], "10.20.1.2", false)
				reach(t, green[0], "10.30.2.2", true)
				if i == 0 {
					must(t, o.Remove(closed...))
					must(t, o.Ensure(t.Context(), objectsOf(overlay.CloseElements(vxlanPort, blueVNI))...))
					reach(t, blue[0], "10.20.2.2", true)
				}
			}
		})
	}
}

// TestEncryptedByTheTunnel: frames pass by the link of that name, and nothing else comes by it. When the link goes, the
// frames do not take another way.
func TestEncryptedByTheTunnel(t *testing.T) {
	t.Parallel()
	hosts := overlayOf(t, 2, true)
	a, b := hosts[0], hosts[1]
	a.Sh(t, "ip link add nyt-overlay type veth peer name tun0")
	a.Give(t, b.Host, "tun0")
	b.Sh(t, "ip link set tun0 name nyt-overlay")
	for _, o := range hosts {
		o.Sh(t, fmt.Sprintf("ip addr add fd99::%d/64 dev nyt-overlay nodad && ip link set nyt-overlay up && "+
			"ip -6 route add default via 2001:db8::%d", o.n, 3-o.n))
		other := netip.MustParseAddr(fmt.Sprintf("fd99::%d", 3-o.n))
		// Like WireGuard, the link needs no neighbour discovery.
		o.Sh(t, fmt.Sprintf("ip link set nyt-overlay address 02:00:00:00:99:%02x && "+
			"ip -6 neigh add %s lladdr 02:00:00:00:99:%02x dev nyt-overlay nud permanent", o.n, other, 3-o.n))
		o.vtep = netip.MustParseAddr(fmt.Sprintf("fd99::%d", o.n))
		must(t, o.Ensure(t.Context(), objectsOf(overlay.EncryptElements(vxlanPort, blueVNI))...))
	}
	blue := join(t, hosts, blueNet, blueVNI, 20)
	green := join(t, hosts, greenNet, greenVNI, 30) // not encrypted, so not by the tunnel
	count := onTheWire(t, a)
	reach(t, blue[0], "10.20.2.2", true)
	reach(t, blue[1], "fd20::1:2", true)
	reach(t, green[0], "10.30.2.2", false)
	reach(t, a.Host, "fd99::2", false)
	a.Sh(t, "ip link del nyt-overlay")
	reach(t, blue[0], "10.20.2.2", false)
	if got := count(); got != "packets 0" {
		t.Errorf("on the wire: %s", got)
	}
}

// TestClosedEarly: on a host that has just started, an overlay network is closed before anything else is known, and a
// ruleset that exists is left alone.
func TestClosedEarly(t *testing.T) {
	t.Parallel()
	for name, elements := range map[string][]nft.Element{
		"encrypted": overlay.EncryptElements(vxlanPort, blueVNI), "in clear": overlay.CloseElements(vxlanPort, blueVNI),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			h.LeaveTablesOpen()
			closed := objectsOf(elements)
			must(t, h.Ensure(t.Context(), nft.InterfaceIn(bridge.Bridges, "nyb-a")))
			if out := h.Sh(t, "nft list ruleset"); out != "" {
				t.Errorf("the ruleset was loaded too early:\n%s", out)
			}
			must(t, h.Ensure(t.Context(), closed...))
			out := h.Sh(t, "nft -a list table inet netyard")
			for _, want := range []string{"elements = { 0x1234 }", "chain vxlan_out", "nyb-a"} {
				if !strings.Contains(out, want) {
					t.Errorf("the network is not closed, %s is missing:\n%s", want, out)
				}
			}
			must(t, h.LoadFirewall())
			h.Reopen(t)
			h.LeaveTablesOpen()
			before := h.Sh(t, "nft -a list ruleset")
			must(t, h.Ensure(t.Context(), closed...))
			if after := h.Sh(t, "nft -a list ruleset"); after != before {
				t.Errorf("an existing ruleset was changed:\n%s", after)
			}
		})
	}
}

// TestSecret: no format prints a key.
func TestSecret(t *testing.T) {
	t.Parallel()
	s, err := overlay.NewSecret()
	must(t, err)
	w := overlay.WireGuard{Key: s, Port: 14789}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		said := fmt.Sprintf(format, s) + fmt.Sprintf(format, w)
		decimal, hex := fmt.Sprintf("%d %d", s[0], s[1]), fmt.Sprintf("%x", s[:4])
		if strings.Contains(said, decimal) || strings.Contains(said, hex) {
			t.Errorf("%s prints %s", format, said)
		}
	}
}

// A tunneled is a host with a WireGuard device.
type tunneled struct {
	*overlaid
	wg overlay.WireGuard
}

func (s tunneled) peer() overlay.WireGuardPeer {
	at := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", s.n)), 14789)
	return overlay.WireGuardPeer{Key: s.wg.Key.Public(), At: at, Addr: s.wg.Addr.Addr()}
}

// tunnels makes two hosts with keys and no device yet.
func tunnels(t *testing.T) (hosts []tunneled) {
	t.Helper()
	kerneltest.NeedsWireGuard(t)
	for _, o := range overlayOf(t, 2, false) {
		key, err := overlay.NewSecret()
		must(t, err)
		o.Sh(t, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1") // as on many hosts
		addr := netip.MustParsePrefix(fmt.Sprintf("fd99::%d/64", o.n))
		hosts = append(hosts, tunneled{o, overlay.WireGuard{Key: key, Port: 14789, MTU: 1440, Addr: addr}})
	}
	return hosts
}

// TestWireGuard: two hosts that are each other's peers reach each other. What somebody removed or changed is reported,
// and Ensure repairs it; a new key takes effect at once; Remove leaves nothing.
func TestWireGuard(t *testing.T) {
	t.Parallel()
	hosts := tunnels(t)
	a, b := hosts[0], hosts[1]
	before := a.Dump(t)
	peers := overlay.WireGuardPeers{All: []overlay.WireGuardPeer{b.peer()}}
	objects := []core.Object{a.wg, peers}
	for range 2 {
		must(t, a.Ensure(t.Context(), objects...))
		must(t, b.Ensure(t.Context(), b.wg, overlay.WireGuardPeers{All: []overlay.WireGuardPeer{a.peer()}}))
	}
	passes := func(when string) {
		t.Helper()
		if said := faults(t, a.Host, objects...); said != "" {
			t.Errorf("%s: %s", when, said)
		}
		if !answers(t, a, b) {
			t.Errorf("%s: the other host is not reached", when)
		}
	}
	passes("at first")
	for cmd, want := range map[string]string{
		"ip link del nyt-overlay":                             "WireGuard link nyt-overlay is missing",
		"ip link set nyt-overlay down":                        "is down",
		"ip link set nyt-overlay mtu 1300":                    "has MTU 1300 instead of 1440",
		"ip -6 addr flush dev nyt-overlay":                    "address fd99::1/64 on nyt-overlay is missing",
		"ip -6 route flush dev nyt-overlay":                   "route fd99::/64 on nyt-overlay is missing",
		"sysctl -qw net.ipv6.conf.nyt-overlay.disable_ipv6=1": "disable_ipv6",
		"ip link del nyt-overlay; ip link add nyt-overlay type dummy; ip link set nyt-overlay alias mine": "is not netyard's",
	} {
		a.Sh(t, cmd)
		if said := faults(t, a.Host, objects...); !strings.Contains(said, want) {
			t.Errorf("after %s: %q, want %q", cmd, said, want)
		}
		if strings.Contains(cmd, "dummy") {
			err := a.Ensure(t.Context(), objects...)
			if err == nil || !strings.Contains(err.Error(), "is not netyard's") {
				t.Errorf("over somebody else's link: %v", err)
			}
			must(t, a.Remove(objects...))
			a.Sh(t, "ip link del nyt-overlay")
		}
		must(t, a.Ensure(t.Context(), objects...))
		passes("after " + cmd)
	}
	fresh, err := overlay.NewSecret()
	must(t, err)
	a.wg.Key = fresh
	objects[0] = a.wg
	if said := faults(t, a.Host, objects...); !strings.Contains(said, "has another key") {
		t.Errorf("another key: %q", said)
	}
	must(t, a.Ensure(t.Context(), objects...))
	must(t, b.Ensure(t.Context(), overlay.WireGuardPeers{All: []overlay.WireGuardPeer{a.peer()}}))
	passes("with another key")
	objects[1] = overlay.WireGuardPeers{}
	if said := faults(t, a.Host, objects...); !strings.Contains(said, "1 missing, different or unwanted") {
		t.Errorf("an unwanted peer: %q", said)
	}
	must(t, a.Ensure(t.Context(), objects...))
	if said := faults(t, a.Host, objects...); said != "" || answers(t, a, b) {
		t.Errorf("the peer is still there: %s", said)
	}
	snap, err := a.Snapshot()
	must(t, err)
	if strays := snap.Strays(objects); len(strays) != 0 {
		t.Errorf("a device that is wanted is a stray: %v", strays)
	}
	strays := snap.Strays(nil)
	removed := func(s core.Stray) bool { return s.Text == "link nyt-overlay" && s.Remove() == nil }
	if !slices.ContainsFunc(strays, removed) {
		t.Errorf("an unwanted device is no stray: %v", strays)
	}
	must(t, a.Remove(objects...))
	if after := a.Dump(t); after != before {
		t.Errorf("left:\n%s\nwas:\n%s", after, before)
	}
}

// TestWireGuardMasqueraded: the admin's NAT on the underlay gives WireGuard's packets another source, and perhaps
// another port. The hosts reach each other all the same: WireGuard answers to where an authentic packet came from.
func TestWireGuardMasqueraded(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]string{"address": "masquerade", "address and port": "masquerade random"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := tunnels(t)
			for _, h := range hosts { // masquerading takes the first address
				h.Sh(t, fmt.Sprintf("ip addr flush dev eth0 scope global; ip addr add 192.0.2.10%d/24 dev eth0; "+
					"ip addr add 192.0.2.%[1]d/24 dev eth0", h.n))
				h.Sh(t, "nft 'table inet admin { chain out { type nat hook postrouting priority srcnat; oifname eth0 "+
					"meta l4proto udp "+to+"; }; }'")
			}
			a, b := hosts[0], hosts[1]
			must(t, a.Ensure(t.Context(), a.wg, overlay.WireGuardPeers{All: []overlay.WireGuardPeer{b.peer()}}))
			must(t, b.Ensure(t.Context(), b.wg, overlay.WireGuardPeers{All: []overlay.WireGuardPeer{a.peer()}}))
			for range 2 {
				if !answers(t, a, b) || !answers(t, b, a) {
					t.Error("the other host is not reached")
				}
			}
		})
	}
}

// TestWireGuardAsksAgain: a peer that did not answer a handshake gets a new one before WireGuard retries, and one that
// did is left alone.
func TestWireGuardAsksAgain(t *testing.T) {
	t.Parallel()
	hosts := tunnels(t)
	a, b := hosts[0], hosts[1]
	peers := overlay.WireGuardPeers{All: []overlay.WireGuardPeer{b.peer()}}
	must(t, a.Ensure(t.Context(), a.wg, peers))
	must(t, b.Ensure(t.Context(), b.wg, overlay.WireGuardPeers{All: []overlay.WireGuardPeer{a.peer()}}))
	b.Sh(t, "nft add table inet block; nft 'add chain inet block in { type filter hook input priority -10; }'; "+
		"nft add rule inet block in udp dport 14789 counter drop")
	start := time.Now()
	got := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the other host has got %d packets", n), func() bool {
			m := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(b.Sh(t, "nft list table inet block"))
			have, err := strconv.Atoi(m[1])
			return err == nil && have >= n
		})
	}
	a.Pings("fd99::2", false)
	got(1)
	before := a.WireGuardPeer(t)
	must(t, overlay.RetryHandshakes(a.Handle, peers.All, start))
	// The counter starts at 0 when the peer is added anew.
	if now := a.WireGuardPeer(t); now.TransmitBytes > before.TransmitBytes {
		t.Errorf("the peer that did not answer was not reset: %+v, and before %+v", now, before)
	}
	got(2)
	b.Sh(t, "nft delete table inet block")

	handshake := func(since time.Time) wgtypes.Peer {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if p := a.WireGuardPeer(t); p.LastHandshakeTime.After(since) {
				return p
			}
		}
		t.Fatal("no handshake")
		return wgtypes.Peer{}
	}
	must(t, overlay.RetryHandshakes(a.Handle, peers.All, start))
	first := handshake(start)
	must(t, overlay.RetryHandshakes(a.Handle, peers.All, start))
	must(t, overlay.RetryHandshakes(a.Handle, nil, time.Now()))
	now := a.WireGuardPeer(t)
	if now.ReceiveBytes < first.ReceiveBytes || !now.LastHandshakeTime.Equal(first.LastHandshakeTime) {
		t.Errorf("a peer with a handshake, or not asked for, was reset: %+v, and before %+v", now, first)
	}
	must(t, overlay.RetryHandshakes(a.Handle, peers.All, time.Now()))
	handshake(first.LastHandshakeTime)
	if said := faults(t, a.Host, a.wg, peers); said != "" {
		t.Errorf("after another handshake: %s", said)
	}
}

// answers reports whether b receives what a sends through the tunnel, which lets in only frames of encrypted networks.
func answers(t *testing.T, a, b tunneled) bool {
	t.Helper()
	vteps := overlay.VTEPElements(vxlanPort, blueVNI, []netip.Addr{a.wg.Addr.Addr()})
	elements := objectsOf(append(overlay.EncryptElements(vxlanPort, blueVNI), vteps...))
	must(t, b.Ensure(t.Context(), elements...))
	defer func() { must(t, b.Remove(elements...)) }()
	var l net.PacketConn
	must(t, b.Do(func() (err error) {
		l, err = net.ListenPacket("udp", netip.AddrPortFrom(b.wg.Addr.Addr(), vxlanPort).String())
		return err
	}))
	defer l.Close()
	for range 30 {
		must(t, a.Do(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(b.wg.Addr.Addr(), vxlanPort).String())
			if err != nil {
				return err
			}
			_, err = c.Write(vxlanFrame(blueVNI, []byte("a frame")))
			_ = err // without a peer it is refused, with any error
			return c.Close()
		}))
		_ = l.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		if _, _, err := l.ReadFrom(make([]byte, 100)); err == nil {
			return true
		}
	}
	return false
}

// TestWireGuardPort: a port in use is refused by its number, and nothing of the device stays.
func TestWireGuardPort(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsWireGuard(t)
	h := kerneltest.New(t)
	key, err := overlay.NewSecret()
	must(t, err)
	var l net.PacketConn
	must(t, h.Do(func() (err error) { l, err = net.ListenPacket("udp4", ":14789"); return err }))
	w := overlay.WireGuard{Key: key, Port: 14789, MTU: 1440, Addr: netip.MustParsePrefix("fd99::1/64")}
	inUse := fmt.Sprintf("(pid %d); set overlay.wireguard_port to another", os.Getpid())
	if err := h.Ensure(t.Context(), w); err == nil || !strings.Contains(err.Error(), inUse) {
		t.Errorf("a port in use: %v", err)
	}
	w.Port = 14790
	must(t, h.Ensure(t.Context(), w))
	w.Port = 14789 // now for a device that is up
	if err := h.Ensure(t.Context(), w); err == nil || !strings.Contains(err.Error(), inUse) {
		t.Errorf("a port in use: %v", err)
	}
	must(t, l.Close())
	kerneltest.Released(t, func() ([]sandbox.Listener, error) { return sandbox.Listeners(h.Handle, "udp") }, 14789)
	must(t, h.Ensure(t.Context(), w))
	must(t, h.Remove(w))
}

// TestNoWireGuard: on a kernel without WireGuard, Encrypts says so and leaves nothing.
func TestNoWireGuard(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	before := h.Dump(t)
	if err := overlay.CheckWireGuard(h.Handle); err == nil {
		t.Log("this kernel has WireGuard")
	} else {
		if !strings.Contains(err.Error(), "this kernel has no WireGuard") {
			t.Errorf("%v", err)
		}
		w := overlay.WireGuard{Port: 14789, MTU: 1440, Addr: netip.MustParsePrefix("fd99::1/64")}
		if said := fmt.Sprint(h.Ensure(t.Context(), w)); !strings.Contains(said, "this kernel has no WireGuard") {
			t.Errorf("a device all the same: %s", said)
		}
	}
	if after := h.Dump(t); after != before {
		t.Errorf("Encrypts left something:\n%s", after)
	}
}
