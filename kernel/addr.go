package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An Addr is an address of the host on a link, and with it the route to its subnet.
type Addr struct {
	Link string
	// Alias is what the link has to carry for the address to be taken away again.
	Alias  string
	Prefix netip.Prefix
}

// String names the address as ip(8) does.
func (a Addr) String() string { return fmt.Sprintf("address %s on %s", a.Prefix, a.Link) }

func (a Addr) ensure(k *Kernel) error {
	link, err := k.nl.LinkByName(a.Link)
	if err != nil {
		return fmt.Errorf("add %s: %w", a, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(a.Prefix), Flags: unix.IFA_F_NODAD} // nobody else can have it: the bridge is new
	if a.Prefix.Addr().Is4() {
		addr.Flags = 0
	}
	if err := k.nl.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %s: %w", a, err)
	}
	routes, err := retry(func() ([]netlink.Route, error) { return k.nl.RouteList(link, family(a.Prefix.Addr())) })
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", a.Link, err)
	}
	if a.hasRoute(routes) || a.Prefix.IsSingleIP() {
		return nil
	}
	// The kernel's own route went with an `ip route del`; it only comes by itself with a new address.
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(a.Prefix.Masked()), Protocol: RouteProtocol}
	if a.Prefix.Addr().Is4() {
		route.Scope, route.Src = netlink.SCOPE_LINK, a.Prefix.Addr().AsSlice()
	}
	if err := k.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("add route %s to %s: %w", a.Prefix.Masked(), a.Link, err)
	}
	return nil
}

func (a Addr) remove(k *Kernel) error {
	link, err := k.link(a.Link)
	if err != nil || link == nil || link.Attrs().Alias != a.Alias {
		return err
	}
	err = k.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(a.Prefix)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", a, err)
	}
	return nil
}

func (a Addr) check(s *snapshot) []string {
	link := s.links[a.Link]
	if link == nil {
		return nil // that the link is missing is said by the link
	}
	for _, got := range s.addrs[link.Attrs().Index] {
		if prefixOf(got.IPNet) == a.Prefix {
			if !a.hasRoute(s.routes[link.Attrs().Index]) && !a.Prefix.IsSingleIP() && link.Attrs().Flags&net.FlagUp != 0 {
				return []string{fmt.Sprintf("route %s on %s is missing", a.Prefix.Masked(), a.Link)}
			}
			return nil
		}
	}
	return []string{a.String() + " is missing"}
}

func (a Addr) hasRoute(routes []netlink.Route) bool {
	for _, r := range routes {
		if r.Dst != nil && prefixOf(r.Dst) == a.Prefix.Masked() {
			return true
		}
	}
	return false
}

// A HostAddr is an address that something of netyard's relies on and that is the host's owner's: it is only looked for. At boot it may
// come later than netyard.
type HostAddr struct{ Addr netip.Addr }

// String names the address.
func (a HostAddr) String() string { return fmt.Sprintf("the host's address %s", a.Addr) }

func (HostAddr) ensure(*Kernel) error { return nil }
func (HostAddr) remove(*Kernel) error { return nil }

func (a HostAddr) check(s *snapshot) []string {
	for _, addrs := range s.addrs {
		for _, got := range addrs {
			if prefixOf(got.IPNet).Addr() == a.Addr {
				return nil
			}
		}
	}
	return []string{a.String() + " is missing: nothing comes back to what leaves with it"}
}

// Busy lists what an address pool of ours must not overlap: every destination the host has a route to and every address
// it has, but for those on the link named except.
func (k *Kernel) Busy(except string) ([]netip.Prefix, error) {
	skip := 0
	if link, err := k.link(except); except != "" && err == nil && link != nil {
		skip = link.Attrs().Index
	}
	routes, err := retry(func() ([]netlink.Route, error) { return k.nl.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var busy []netip.Prefix
	for _, r := range routes {
		p := prefixOf(r.Dst)
		if r.LinkIndex == skip && skip != 0 || !p.IsValid() || p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			continue
		}
		busy = append(busy, p)
	}
	return busy, nil
}

// Occupant finds an address of the host, on another link than except, whose subnet overlaps p. On the links within, a subnet may be
// larger than p, as long as the host's own address is not in p.
func (k *Kernel) Occupant(p netip.Prefix, except string, within ...string) (link string, subnet netip.Prefix, err error) {
	addrs, err := retry(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, family(p.Addr())) })
	if err != nil {
		return "", netip.Prefix{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		got := prefixOf(a.IPNet)
		if !got.IsValid() || got.Addr().IsLinkLocalUnicast() || !got.Masked().Overlaps(p.Masked()) {
			continue
		}
		l, err := k.nl.LinkByIndex(a.LinkIndex)
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

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// HostAddr is the host's own address in a subnet.
func (k *Kernel) HostAddr(subnet netip.Prefix) (netip.Prefix, bool, error) {
	addrs, err := retry(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, family(subnet.Addr())) })
	if err != nil {
		return netip.Prefix{}, false, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); p.IsValid() && p.Masked() == subnet.Masked() {
			return p, true, nil
		}
	}
	return netip.Prefix{}, false, nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
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
