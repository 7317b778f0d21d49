// Package dhcp is the protocol part of a DHCP client: it makes requests, reads answers, and knows when a lease is to be
// renewed. A Transport sends and receives the messages, and the caller uses the lease.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	// ErrNoServer says that no server answered in time.
	ErrNoServer = errors.New("no DHCP server answered")
	// ErrRefused says that the server answered with a DHCPNAK, or with an error in DHCPv6.
	ErrRefused = errors.New("the DHCP server refused")
	// ErrConflict says that a station on the link already has the address that the server gave.
	ErrConflict = errors.New("address conflict")
	// ErrOtherAddress says that the server offered another address than the one that the client must have.
	ErrOtherAddress = errors.New("the DHCP server offered another address")
)

// A Transport carries the messages of one client on one link.
type Transport interface {
	// Broadcast sends a message to every server, from the client's address if it has one.
	Broadcast(msg []byte) error
	// Unicast sends a message from the client's address to a server's.
	Unicast(msg []byte, from, to netip.Addr) error
	// Receive waits for the next message to any client, until ctx ends. It returns the hardware address that the
	// message came from, or nil if that is not known.
	Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error)
	// OwnerOf probes an address that the client does not have (RFC 5227). It returns the hardware address of the
	// station that has it, or nil if none answers.
	OwnerOf(ctx context.Context, a netip.Addr) (net.HardwareAddr, error)
}

// An Identity identifies a client to servers.
type Identity struct {
	// MAC is the hardware address to which servers send answers.
	MAC net.HardwareAddr
	// ID is the client identifier (option 61), beginning with its type. If empty, servers identify the client by MAC.
	ID []byte
	// Hostname is option 12 and VendorClass option 60. An empty one is not sent.
	Hostname, VendorClass string
}

// A Route is a route of option 121 (RFC 3442). If Via is unspecified, Dst is on-link.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	Via netip.Addr   `json:"via"`
}

// A Lease is an address that a server grants, with its options and times.
type Lease struct {
	Addr   netip.Prefix `json:"addr"`
	Server netip.Addr   `json:"server"`
	// NextHop is the hardware address that the server's answers come from: the server's or a relay's.
	NextHop net.HardwareAddr `json:"next_hop,omitempty"`
	Router  netip.Addr       `json:"router,omitzero"`
	Routes  []Route          `json:"routes,omitempty"`
	DNS     []netip.Addr     `json:"dns,omitempty"`
	NTP     []netip.Addr     `json:"ntp,omitempty"`
	Domain  string           `json:"domain,omitempty"`
	MTU     int              `json:"mtu,omitempty"`
	// Start is when the client requested the lease; the other times are counted from it (RFC 2131, 4.4.1).
	Start   time.Time `json:"start"`
	Renew   time.Time `json:"renew"`   // T1
	Rebind  time.Time `json:"rebind"`  // T2
	Expires time.Time `json:"expires"` // zero: never

	// ServerID is the server's DUID, in DHCPv6 only.
	ServerID []byte `json:"server_id,omitempty"`
	// Preferred is the end of the preferred lifetime, in DHCPv6 only: from then on the address is for existing flows
	// only. Zero: never.
	Preferred time.Time `json:"preferred,omitzero"`
}

// minMTU is the smallest MTU of an IPv4 link (RFC 791), and the smallest value of option 26.
const minMTU = 68

// read returns the lease of an offer or an acknowledgement. It ignores options with invalid values.
func read(m *dhcpv4.DHCPv4, from net.HardwareAddr, start time.Time) (l Lease, err error) {
	addr, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !usable(addr) {
		return l, fmt.Errorf("the DHCP server offers an invalid address: %s", m.YourIPAddr)
	}
	server, ok := netip.AddrFromSlice(m.ServerIdentifier().To4())
	if !ok {
		return l, errors.New("the DHCP server's answer has no server identifier (option 54)")
	}
	bits := 32
	if mask := m.SubnetMask(); mask != nil {
		if ones, size := mask.Size(); size == 32 && ones > 0 {
			bits = ones
		}
	}
	l = Lease{
		Addr: netip.PrefixFrom(addr, bits), Server: server, NextHop: from, Start: start,
		DNS: addrs(m.DNS()), NTP: addrs(m.NTPServers()), Domain: printable(m.DomainName()),
	}
	l.readRoutes(m)
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, m.Options); err == nil && mtu >= minMTU {
		l.MTU = int(mtu)
	}
	l.setTimes(m)
	return l, nil
}

// readRoutes sets the lease's router and routes. Classless routes (option 121) replace the router option (RFC 3442).
// Routes that need no router come first, since the kernel accepts a router only if a route to it is there.
func (l *Lease) readRoutes(m *dhcpv4.DHCPv4) {
	var onLink, routed []Route
	for _, r := range classless(m) {
		switch {
		case r.Via.IsUnspecified() || r.Via == l.Addr.Addr(): // a host that is its own router finds all on the link
			onLink = append(onLink, Route{r.Dst, netip.IPv4Unspecified()})
		case r.Dst.Bits() == 0:
			l.Router = r.Via
		default:
			routed = append(routed, r)
		}
	}
	routers := []netip.Addr{l.Router}
	for _, r := range routed {
		routers = append(routers, r.Via)
	}
	l.Routes = append(l.withRouters(onLink, routers), routed...)
}

// classless returns the routes of option 121, or else a default route by the first router of option 3.
func classless(m *dhcpv4.DHCPv4) (out []Route) {
	all := m.ClasslessStaticRoute()
	for _, r := range all {
		dst, ok := prefix(r.Dest)
		via, viaOK := netip.AddrFromSlice(r.Router.To4())
		if ok && viaOK && (usable(via) || via.IsUnspecified()) {
			out = append(out, Route{dst, via})
		}
	}
	if routers := addrs(m.Router()); len(all) == 0 && len(routers) > 0 {
		out = append(out, Route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), routers[0]})
	}
	return out
}

// withRouters returns on-link routes, and one more to each router that is neither on one of them nor in the lease's
// subnet: a LAN that gives each host a /32 has its router outside of it.
func (l *Lease) withRouters(onLink []Route, routers []netip.Addr) []Route {
	for _, a := range routers {
		reached := l.Addr.Contains(a) || slices.ContainsFunc(onLink, func(r Route) bool { return r.Dst.Contains(a) })
		if a.IsValid() && !reached {
			onLink = append(onLink, Route{netip.PrefixFrom(a, a.BitLen()), netip.IPv4Unspecified()})
		}
	}
	return onLink
}

// infinite is a lease time of 0xffffffff seconds (RFC 2131, 3.3).
const infinite = 0xffffffff * time.Second

// setTimes sets the lease's times. By default T1 is at half of the lease and T2 at seven eighths; other values of the
// server are used if they are in order.
func (l *Lease) setTimes(m *dhcpv4.DHCPv4) {
	const defaultTime = time.Hour // an acknowledgement without a lease time is invalid
	life := m.IPAddressLeaseTime(defaultTime)
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

// usable reports whether an IPv4 address can be a host's.
func usable(a netip.Addr) bool {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != broadcast
}

// addrs returns the usable IPv4 addresses.
func addrs(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && usable(a) {
			out = append(out, a)
		}
	}
	return out
}

// prefix returns an IPv4 network as a prefix; ok is false if it is not one.
func prefix(n *net.IPNet) (p netip.Prefix, ok bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	ones, size := n.Mask.Size()
	return netip.PrefixFrom(a, ones).Masked(), ok && size == 32
}

// printable returns a server's text if it is safe to print on a terminal, or "".
func printable(s string) string {
	for _, c := range s {
		if c <= ' ' || c > '~' {
			return ""
		}
	}
	return s
}
