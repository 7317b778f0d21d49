package lab

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
)

// These are addresses for documentation (RFC 5737, RFC 3849), which no real host has.
const (
	defaultLAN  = "203.0.113.0/24"
	defaultLAN6 = "2001:db8:113::/64"
)

// A LAN is an Ethernet segment: a switch, and the outside node, which is the gateway of all nodes that are plugged in.
// The outside has no route to any container, so it reaches a container only through NAT, or on the LAN itself.
type LAN struct {
	// Outside is the node at the first address of the LAN.
	Outside *Node

	net, net6 netip.Prefix
	mu        sync.Mutex
	last      int // the number of the last node that was plugged in
}

// NewLAN makes a LAN for several hosts (see On). The prefixes, an IPv4 and an IPv6 one, are needed only for a second
// LAN in one test.
func NewLAN(t testing.TB, prefixes ...netip.Prefix) *LAN {
	t.Helper()
	NeedRoot(t)
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
	// The outside only switches frames between others; its own firewall must not see them.
	l.Outside = newNode(r, nodeConfig{name: "outside", root: "/", bridgeNF: false})
	l.Outside.IP, l.Outside.IP6 = l.addrs(1)
	l.Outside.Sh(`ip link add lan address`, l.mac(1), `type bridge mcast_snooping 0
		echo 0 >/proc/sys/net/ipv6/conf/lan/accept_dad
		ip link set lan up
		ip addr add`, fmt.Sprintf("%s/%d", l.Outside.IP, l.net.Bits()), `dev lan
		ip addr add`, fmt.Sprintf("%s/%d", l.Outside.IP6, l.net6.Bits()), `dev lan`)
	return l
}

// Node makes another node on the LAN: it has no engine, and all programs of this machine.
func (l *LAN) Node(name string) *Node {
	t := l.Outside.report.TB()
	t.Helper()
	n := newNode(l.Outside.report, nodeConfig{name: name, root: "/", bridgeNF: true})
	l.Plug(n)
	return n
}

// Plug connects a node to the LAN by a new interface, eth0 first, and returns the interface's name. The default routes
// of a node lead to its first LAN. After a power loss the interface is made again, with the same addresses.
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

// addrs returns the addresses of the node with a number on the LAN.
func (l *LAN) addrs(number int) (v4, v6 string) {
	nth := func(a netip.Addr) string {
		b := a.AsSlice()
		b[len(b)-1] += byte(number)
		addr, _ := netip.AddrFromSlice(b)
		return addr.String()
	}
	return nth(l.net.Addr()), nth(l.net6.Addr())
}

// mac returns a MAC address derived from the IPv4 address, so that it is the same after each boot, as a real card's.
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

// port returns the name of the cable's other end.
func (p plug) port() string { return fmt.Sprintf("port%d", p.number) }

func (p plug) connect(t testing.TB, n *Node) {
	t.Helper()
	out := p.lan.Outside
	v4, v6 := p.lan.addrs(p.number)
	p.disconnect() // after a power loss the kernel may not have removed it yet
	_, err := run("/bin/sh", []string{"-ec", fmt.Sprintf(
		"ip link add %s address %s netns %d type veth peer name %s netns %d",
		p.iface, p.lan.mac(p.number), n.initPID(), p.port(), out.initPID())}, nothing, startHere)
	if err != nil {
		t.Fatalf("lab: connect %s to the LAN: %v", n.Name, err)
	}
	out.Sh("ip link set", p.port(), "master lan up")
	n.Sh("echo 0 >/proc/sys/net/ipv6/conf/"+p.iface+"/accept_dad\n", // duplicate address detection takes a second
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

// Cable connects two nodes by a veth pair whose ends both have this name, and these addresses if they are not empty.
func Cable(t testing.TB, a, b *Node, name string, addrs ...string) {
	t.Helper()
	link := fmt.Sprintf("ip link add %s netns %d type veth peer name %[1]s netns %[3]d", name, a.initPID(), b.initPID())
	_, err := run("/bin/sh", []string{"-ec", link}, nothing, startHere)
	if err != nil {
		t.Fatalf("lab: connect %s and %s: %v", a.Name, b.Name, err)
	}
	for i, n := range []*Node{a, b} {
		n.Sh("ip link set", name, "up")
		if i < len(addrs) && addrs[i] != "" {
			n.Sh("ip addr add", addrs[i], "dev", name)
		}
	}
}
