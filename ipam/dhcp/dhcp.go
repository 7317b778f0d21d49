// Package dhcp is a DHCP client as far as it is a protocol: what is said to a server, what is made of its answers, and
// when it is time to say something again. How messages travel is a Transport's business, and what becomes of a lease
// its caller's.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	// ErrNoServer says that nobody answered in time.
	ErrNoServer = errors.New("no DHCP server answered")
	// ErrRefused says that the server answered, with a DHCPNAK: the address is not the client's.
	ErrRefused = errors.New("the DHCP server refused")
	// ErrConflict says that somebody on the link has the address that the server offered.
	ErrConflict = errors.New("somebody else uses the address")
	// ErrOtherAddress says that the server has another address for the client than the one that it must have.
	ErrOtherAddress = errors.New("the DHCP server does not give that address")
)

// A Transport carries the messages of one client on one link.
type Transport interface {
	// Broadcast sends a message to every server, from the client's address if it has one.
	Broadcast(msg []byte) error
	// Unicast sends a message from one address to a server's.
	Unicast(msg []byte, from, to netip.Addr) error
	// Receive waits for the next message to a client, whoever's it is, and says which hardware address it came from,
	// nil when that cannot be told. It ends with ctx.
	Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error)
	// InUse says who on the link has an address (RFC 5227); nil when nobody answers. It is not asked by who has it.
	InUse(ctx context.Context, a netip.Addr) (net.HardwareAddr, error)
}

// An Identity is who a client says it is. A server knows a client by its ID; MAC is where the answers go.
type Identity struct {
	MAC net.HardwareAddr
	// ID is option 61 with its type in front; empty: the server takes the hardware address for it.
	ID []byte
	// Hostname is option 12, VendorClass option 60; empty: not said.
	Hostname, VendorClass string
}

// A Route is one of option 121 (RFC 3442); an unspecified Via means that Dst is on the link.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	Via netip.Addr   `json:"via"`
}

// A Lease is what a server grants.
type Lease struct {
	Addr   netip.Prefix `json:"addr"`
	Server netip.Addr   `json:"server"`
	// NextHop is the hardware address that the server's answers come from: its own, or a relay's.
	NextHop net.HardwareAddr `json:"next_hop,omitempty"`
	Router  netip.Addr       `json:"router,omitzero"`
	Routes  []Route          `json:"routes,omitempty"`
	DNS     []netip.Addr     `json:"dns,omitempty"`
	NTP     []netip.Addr     `json:"ntp,omitempty"`
	Domain  string           `json:"domain,omitempty"`
	MTU     int              `json:"mtu,omitempty"`
	// Start is when it was asked for; the others are counted from there (RFC 2131, 4.4.1).
	Start   time.Time `json:"start"`
	Renew   time.Time `json:"renew"`   // T1
	Rebind  time.Time `json:"rebind"`  // T2
	Expires time.Time `json:"expires"` // zero: never
	// The rest is of DHCPv6 only: the server's DUID, and when the address is for flows that are there already; zero:
	// never.
	ServerID  []byte    `json:"server_id,omitempty"`
	Preferred time.Time `json:"preferred,omitzero"`
}

// minMTU is the least that every IPv4 link carries (RFC 791), and the least an option 26 may say.
const minMTU = 68

// read makes a Lease of an offer or an acknowledgement. What a server has no say in, or says senselessly, is passed
// over.
func read(m *dhcpv4.DHCPv4, from net.HardwareAddr, start time.Time) (l Lease, err error) {
	addr, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !usable(addr) {
		return l, fmt.Errorf("the DHCP server offers no address but %s", m.YourIPAddr)
	}
	server, ok := netip.AddrFromSlice(m.ServerIdentifier().To4())
	if !ok {
		return l, errors.New("the DHCP server does not say who it is (option 54)")
	}
	bits := 32
	if mask := m.SubnetMask(); mask != nil {
		if ones, size := mask.Size(); size == 32 && ones > 0 {
			bits = ones
		}
	}
	l = Lease{
		Addr: netip.PrefixFrom(addr, bits), Server: server, NextHop: from, DNS: addrs(m.DNS()), NTP: addrs(m.NTPServers()),
		Domain: printable(m.DomainName()), Start: start,
	}
	l.readRoutes(m)
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, m.Options); err == nil && mtu >= minMTU {
		l.MTU = int(mtu)
	}
	l.setTimes(m)
	return l, nil
}

// readRoutes: who gives classless routes means them instead of a router (RFC 3442).
func (l *Lease) readRoutes(m *dhcpv4.DHCPv4) {
	for _, r := range m.ClasslessStaticRoute() {
		dst, ok := prefix(r.Dest)
		via, viaOK := netip.AddrFromSlice(r.Router.To4())
		switch {
		case !ok || !viaOK:
		case dst.Bits() == 0:
			l.Router = via
		default:
			l.Routes = append(l.Routes, Route{dst, via})
		}
	}
	if routers := addrs(m.Router()); len(m.ClasslessStaticRoute()) == 0 && len(routers) > 0 {
		l.Router = routers[0]
	}
}

// infinite is a lease time of 0xffffffff seconds (RFC 2131, 3.3).
const infinite = 0xffffffff * time.Second

// setTimes: T1 is at half the lease and T2 at seven eighths of it, unless the server says otherwise and makes sense.
func (l *Lease) setTimes(m *dhcpv4.DHCPv4) {
	const noTime = time.Hour // an acknowledgement has to have one
	life := m.IPAddressLeaseTime(noTime)
	if life >= infinite {
		return
	}
	life = max(life, time.Second)
	t2 := m.IPAddressRebindingTime(life * 7 / 8)
	if t2 <= 0 || t2 >= life {
		t2 = life * 7 / 8
	}
	t1 := m.IPAddressRenewalTime(life / 2)
	if t1 <= 0 || t1 >= t2 {
		t1 = min(life/2, t2*4/7)
	}
	l.Renew, l.Rebind, l.Expires = l.Start.Add(t1), l.Start.Add(t2), l.Start.Add(life)
}

func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func addrs(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && usable(a) {
			out = append(out, a)
		}
	}
	return out
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	ones, size := n.Mask.Size()
	return netip.PrefixFrom(a, ones).Masked(), ok && size == 32
}

// printable is text of a server's that can go on a terminal, or nothing.
func printable(s string) string {
	for _, c := range s {
		if c <= ' ' || c > '~' {
			return ""
		}
	}
	return s
}
