package lab

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
)

// Addresses that nobody has: of RFC 5737 and RFC 3849.
const (
	defaultLAN  = "203.0.113.0/24"
	defaultLAN6 = "2001:db8:113::/64"
)

// A LAN is an Ethernet segment: a switch, and on it the outside, which is the gateway of whatever is plugged in. The
// outside has no route to any container, so a container is heard there only through NAT, or when it is on the LAN.
type LAN struct {
	// Outside is the node at the first address of the LAN.
	Outside *Node

	net, net6 netip.Prefix
	mu        sync.Mutex
	last      int // the number of the last node that was plugged in
}

// NewLAN makes a LAN, for several hosts to be on (see On). The prefixes, an IPv4 and an IPv6 one, are needed only for
// a second LAN in one test.
func NewLAN(t testing.TB, prefixes ...netip.Prefix) *LAN {
	t.Helper()
	needRoot(t)
	return newLAN(&reporter{tb: t}, prefixes...)
}

func newLAN(r *reporter, prefixes ...netip.Prefix) *LAN {
	t := r.TB()
	t.Helper()
	l := &LAN{net: netip.MustParsePrefix(defaultLAN), net6: netip.MustParsePrefix(defaultLAN6), last: 1}
	for _, p := range prefixes {
		if p.Addr().Is4() {
			l.net = p.Masked()
		} else {
			l.net6 = p.Masked()
		}
	}
	// The outside switches for others: its own firewall must not see those frames.
	l.Outside = newNode(r, nodeConfig{name: "outside", root: "/", bridgeNF: false})
	l.Outside.IP, l.Outside.IP6 = l.addrs(1)
	l.Outside.Sh(`ip link add lan address`, l.mac(1), `type bridge mcast_snooping 0
		echo 0 >/proc/sys/net/ipv6/conf/lan/accept_dad
		ip link set lan up
		ip addr add`, fmt.Sprintf("%s/%d", l.Outside.IP, l.net.Bits()), `dev lan
		ip addr add`, fmt.Sprintf("%s/%d", l.Outside.IP6, l.net6.Bits()), `dev lan`)
	return l
}

// Node plugs one more machine into the LAN: one without an engine, that has all programs of this machine.
func (l *LAN) Node(name string) *Node {
	t := l.Outside.report.TB()
	t.Helper()
	n := newNode(l.Outside.report, nodeConfig{name: name, root: "/", bridgeNF: true})
	l.Plug(n)
	return n
}

// Plug connects a node to the LAN with a new interface, eth0 first, and returns the interface's name. The node's first
// LAN is where its default routes go. The interface is there again after a power loss, with the same addresses.
func (l *LAN) Plug(n *Node) string {
	t := n.report.TB()
	t.Helper()
	l.mu.Lock()
	l.last++
	p := plug{lan: l, number: l.last, iface: fmt.Sprintf("eth%d", len(n.plugs))}
	l.mu.Unlock()
	if len(n.plugs) == 0 {
		n.IP, n.IP6 = l.addrs(p.number)
	}
	n.plugs = append(n.plugs, p)
	p.connect(t, n)
	return p.iface
}

// addrs are the addresses of the LAN's member of that number.
func (l *LAN) addrs(number int) (v4, v6 string) {
	nth := func(a netip.Addr) string {
		b := a.AsSlice()
		b[len(b)-1] += byte(number)
		addr, _ := netip.AddrFromSlice(b)
		return addr.String()
	}
	return nth(l.net.Addr()), nth(l.net6.Addr())
}

// mac is the hardware address that goes with the IPv4 address: the same after each boot, as a real card's.
func (l *LAN) mac(number int) string {
	b := l.net.Addr().As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], int(b[3])+number)
}

// A plug is a cable between a node and a LAN.
type plug struct {
	lan    *LAN
	number int
	iface  string
}

// port is the name of the cable's other end.
func (p plug) port() string { return fmt.Sprintf("port%d", p.number) }

func (p plug) connect(t testing.TB, n *Node) {
	t.Helper()
	out := p.lan.Outside
	v4, v6 := p.lan.addrs(p.number)
	p.disconnect() // the kernel may not yet have got round to it, after a power loss
	_, err := run("/bin/sh", []string{"-ec", fmt.Sprintf(
		"ip link add %s address %s netns %d type veth peer name %s netns %d",
		p.iface, p.lan.mac(p.number), n.initPID(), p.port(), out.initPID())}, nothing, startHere)
	if err != nil {
		t.Fatalf("lab: connect %s to the LAN: %v", n.Name, err)
	}
	out.Sh("ip link set", p.port(), "master lan up")
	n.Sh("echo 0 >/proc/sys/net/ipv6/conf/"+p.iface+"/accept_dad\n", // it would take a second, at each boot
		"ip link set", p.iface, "up &&",
		"ip addr add", fmt.Sprintf("%s/%d", v4, p.lan.net.Bits()), "brd + dev", p.iface, "&&",
		"ip addr add", fmt.Sprintf("%s/%d", v6, p.lan.net6.Bits()), "dev", p.iface)
	if p.iface == "eth0" {
		n.Sh("ip route add default via", out.IP, "&& ip -6 route add default via", out.IP6)
	}
}

func (p plug) disconnect() {
	if p.lan.Outside.On() {
		p.lan.Outside.TrySh("ip link del", p.port())
	}
}
