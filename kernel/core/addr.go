package core

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An Addr is an address of the host on a link, together with the route to its subnet.
type Addr struct {
	Link string
	// Alias is the alias that the link must have for Remove to delete the address.
	Alias  string
	Prefix netip.Prefix
}

// String returns the address as ip(8) writes it, and its link.
func (a Addr) String() string { return fmt.Sprintf("address %s on %s", a.Prefix, a.Link) }

func (a Addr) Ensure(k *Handle) error {
	link, err := k.NL.LinkByName(a.Link)
	if err != nil {
		return fmt.Errorf("add %s: %w", a, err)
	}
	// Duplicate address detection is off: the bridge is new, so no other station can have the address.
	addr := &netlink.Addr{IPNet: IPNet(a.Prefix), Flags: unix.IFA_F_NODAD}
	if a.Prefix.Addr().Is4() {
		addr.Flags = 0
	}
	if err := k.NL.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s: %w", a, err)
	}
	routes, err := Retry(func() ([]netlink.Route, error) { return k.NL.RouteList(link, Family(a.Prefix.Addr())) })
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", a.Link, err)
	}
	if a.hasRoute(routes) || a.Prefix.IsSingleIP() {
		return nil
	}
	// The kernel adds its own route only with a new address. Somebody deleted it by `ip route del`.
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: IPNet(a.Prefix.Masked()), Protocol: RouteProtocol}
	if a.Prefix.Addr().Is4() {
		route.Scope, route.Src = netlink.SCOPE_LINK, a.Prefix.Addr().AsSlice()
	}
	if err := k.NL.RouteReplace(route); err != nil {
		return fmt.Errorf("add route %s to %s: %w", a.Prefix.Masked(), a.Link, err)
	}
	return nil
}

func (a Addr) Remove(k *Handle) error {
	link, err := k.Link(a.Link)
	if err != nil || link == nil || link.Attrs().Alias != a.Alias {
		return err
	}
	err = k.NL.AddrDel(link, &netlink.Addr{IPNet: IPNet(a.Prefix)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", a, err)
	}
	return nil
}

func (a Addr) Check(s *View) []string {
	link := s.Link(a.Link)
	if link == nil {
		return nil // the link's own check reports a missing link
	}
	for _, got := range s.AddrsOf(link.Attrs().Index) {
		if PrefixOf(got.IPNet) == a.Prefix {
			routed := a.hasRoute(s.RoutesOf(link.Attrs().Index)) || a.Prefix.IsSingleIP()
			if !routed && DeviceUp(link.Attrs()) {
				return []string{fmt.Sprintf("route %s on %s is missing", a.Prefix.Masked(), a.Link)}
			}
			return nil
		}
	}
	return []string{a.String() + " is missing"}
}

func (a Addr) hasRoute(routes []netlink.Route) bool {
	for _, r := range routes {
		if r.Dst != nil && PrefixOf(r.Dst) == a.Prefix.Masked() {
			return true
		}
	}
	return false
}

// A HostAddr is an address that netyard relies on and the admin configures: netyard checks that it exists, and never
// adds or removes it. At boot it may appear after netyard has started.
type HostAddr struct{ Addr netip.Addr }

// String returns what the address is called in messages.
func (a HostAddr) String() string { return fmt.Sprintf("the host's address %s", a.Addr) }

// DependsOn reports whether an address of a link of the host has changed, whichever it was.
func (HostAddr) DependsOn(l LinkID) bool { return l.Addrs }

func (HostAddr) Ensure(*Handle) error { return nil }

func (HostAddr) Remove(*Handle) error { return nil }

func (a HostAddr) Check(s *View) []string {
	if s.HasAddr(a.Addr) {
		return nil
	}
	return []string{a.String() + " is missing: packets sent from it get no answer"}
}

// UsedPrefixes returns the prefixes that a pool of netyard's must not overlap: the destinations of the host's routes,
// among them the subnets of its addresses. Routes by the link named except are left out, and so are default, link-local
// and multicast routes.
func (k *Handle) UsedPrefixes(except string) ([]netip.Prefix, error) {
	skip := 0
	if link, err := k.Link(except); except != "" && err == nil && link != nil {
		skip = link.Attrs().Index
	}
	routes, err := Retry(func() ([]netlink.Route, error) { return k.NL.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var busy []netip.Prefix
	for _, r := range routes {
		if r.LinkIndex == skip && skip != 0 {
			continue
		}
		p := PrefixOf(r.Dst)
		if p.IsValid() && p.Bits() != 0 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			busy = append(busy, p)
		}
	}
	return busy, nil
}

// OverlappingLink finds a link of the host, other than except, that has an address whose subnet overlaps p, and returns
// the link and that subnet. On the links within, a subnet may be larger than p, as long as the host's own address is
// not in p.
func (k *Handle) OverlappingLink(p netip.Prefix, except string, within ...string) (
	link string, subnet netip.Prefix, err error,
) {
	addrs, err := Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(nil, Family(p.Addr())) })
	if err != nil {
		return "", netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		got := PrefixOf(a.IPNet)
		if !got.IsValid() || got.Addr().IsLinkLocalUnicast() || !got.Masked().Overlaps(p.Masked()) {
			continue
		}
		l, err := k.NL.LinkByIndex(a.LinkIndex)
		if err != nil || l.Attrs().Name == except {
			continue
		}
		if slices.Contains(within, l.Attrs().Name) && got.Bits() < p.Bits() && !p.Contains(got.Addr()) {
			continue
		}
		return l.Attrs().Name, got.Masked(), nil
	}
	return "", netip.Prefix{}, nil
}

// AddrsIn returns the host's own addresses in some subnets, and the link of each. The host answers for each of them on
// all its links (arp_ignore, ip-sysctl.rst).
func (k *Handle) AddrsIn(subnets ...netip.Prefix) (map[netip.Addr]string, error) {
	addrs, err := Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	in := map[netip.Addr]string{}
	for _, a := range addrs {
		got := PrefixOf(a.IPNet).Addr()
		if !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(got) }) {
			continue
		}
		if l, err := k.NL.LinkByIndex(a.LinkIndex); err == nil { // else it was removed meanwhile
			in[got] = l.Attrs().Name
		}
	}
	return in, nil
}

// Family returns netlink's number for the family of an address.
func Family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// IPNet converts a prefix to the type that the netlink library takes.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// HostAddr returns the host's own address in a subnet; the bool is false if it has none.
func (k *Handle) HostAddr(subnet netip.Prefix) (netip.Prefix, bool, error) {
	addrs, err := Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(nil, Family(subnet.Addr())) })
	if err != nil {
		return netip.Prefix{}, false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p := PrefixOf(a.IPNet); p.IsValid() && p.Masked() == subnet.Masked() {
			return p, true, nil
		}
	}
	return netip.Prefix{}, false, nil
}

// PrefixOf converts a prefix from the type that the netlink library returns. For nil it returns the zero Prefix.
func PrefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr.Unmap(), ones)
}

// LinkLocal returns the IPv6 link-local address that the kernel derives from a MAC (modified EUI-64, RFC 4291,
// appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// HostAddrs returns the addresses of the host, and the subnets of those that are on netyard's own links.
func (k *Handle) HostAddrs() (addrs map[netip.Addr]bool, nets []netip.Prefix, err error) {
	links, err := Retry(k.NL.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	own := map[int]bool{}
	for _, l := range links {
		_, _, own[l.Attrs().Index] = ParseAlias(l.Attrs().Alias)
	}
	all, err := Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs = map[netip.Addr]bool{}
	for _, a := range all {
		p := PrefixOf(a.IPNet)
		addrs[p.Addr()] = true
		if own[a.LinkIndex] {
			nets = append(nets, p.Masked())
		}
	}
	return addrs, nets, nil
}

// A MAC is a hardware address as a comparable value.
type MAC [6]byte

// MACOf converts a hardware address to a MAC.
func MACOf(a net.HardwareAddr) (m MAC) {
	copy(m[:], a)
	return m
}

// GlobalAddrs returns the addresses of a link whose scope is global.
func GlobalAddrs(k *Handle, link netlink.Link, family int) (out []netip.Prefix, err error) {
	addrs, err := Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	return GlobalOf(addrs, family), nil
}

// GlobalOf returns those of the addresses that are of a family and whose scope is global.
func GlobalOf(addrs []netlink.Addr, family int) (out []netip.Prefix) {
	for _, a := range addrs {
		p := PrefixOf(a.IPNet)
		if p.IsValid() && a.Scope == int(netlink.SCOPE_UNIVERSE) &&
			(family == netlink.FAMILY_ALL || Family(p.Addr()) == family) {
			out = append(out, p)
		}
	}
	return out
}

// Unspecified returns the unspecified address of an address's family.
func Unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
