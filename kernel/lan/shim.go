package lan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/ndp"
)

const shimAlias = core.AliasPrefix + "shim:"

// A Shim is the host's own link on a parent. The links on a parent reach each other, but never the parent itself, so
// the host has to be on the parent, too. Networks share the shim; it is removed with the last of them.
//
// The shim has no address, so that the host gets no new one. It answers for the addresses of the parent, to containers
// only: what comes from a source that the host would not reply to through the shim is dropped (rp_filter). Else half of
// the LAN would take the shim for the host.
type Shim struct {
	Name       string
	Parent     Parent
	Kind, Mode string // as of the parent's other links
	// Owner is the network that wants the link.
	Owner string
}

// ShimOn returns the shim of a parent for a network that wants it.
func ShimOn(p Parent, kind, mode, owner string) Shim {
	name := core.Name(core.ShimPrefix, core.HashID(p.Name))
	return Shim{Name: name, Parent: p, Kind: kind, Mode: mode, Owner: owner}
}

// String names the link.
func (s Shim) String() string { return "link " + s.Name + " of the host on " + s.Parent.Name }

func (s Shim) WantedBy() string { return s.Owner }

// routed reports whether the links on the parent pass packets to each other by IP address alone.
func (s Shim) routed() bool { return s.Kind == "ipvlan" && s.Mode != "l2" }

func (s Shim) Ensure(k *core.Handle) error {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	k.Shared.AddOwner(s)
	parent, err := FindParent(k, s.Parent)
	if err != nil {
		return err
	}
	link, err := k.Link(s.Name)
	if err != nil {
		return err
	}
	c := Child{Name: s.Name, Alias: s.alias(), Parent: s.Parent, Kind: s.Kind, Mode: s.Mode, Flag: "bridge"}
	if link == nil {
		if link, err = c.create(k, parent); err != nil {
			return err
		}
	}
	if err := c.mark(k, link); err != nil {
		return err
	}
	if s.otherMode(link) != "" {
		attrs := netlink.LinkAttrs{Name: s.Name, Index: link.Attrs().Index}
		if err := k.NL.LinkModify(&netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes()[s.Mode]}); err != nil {
			return fmt.Errorf("set mode %s on %s: %w", s.Mode, s, err)
		}
	}
	for _, sysctl := range s.sysctls() { // before it is up: it must not accept routes from the LAN's router
		if err := sysctl.Ensure(k); err != nil {
			return err
		}
	}
	if err := k.NL.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", s, err)
	}
	return s.answerForHost(k, link, parent)
}

// answerForHost makes the shim answer neighbour solicitations for the host's own addresses. IPv6 answers only for
// addresses of the link that the solicitation came by (ndisc_recv_ns, net/ipv6/ndisc.c); IPv4 answers for any address
// of the host (arp_process, net/ipv4/arp.c).
func (s Shim) answerForHost(k *core.Handle, link, parent netlink.Link) error {
	if s.routed() { // nobody sends solicitations
		return nil
	}
	addrs, err := core.GlobalAddrs(k, parent, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		proxy := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V6, Flags: netlink.NTF_PROXY,
			State: netlink.NUD_PERMANENT, IP: a.Addr().AsSlice(),
		}
		if err := k.NL.NeighSet(proxy); err != nil {
			return fmt.Errorf("add NDP proxy %s on %s: %w", a.Addr(), s, err)
		}
	}
	return nil
}

// sysctls returns the settings of the shim. Forwarding, on this link only, lets it answer for the parent (proxy_ndp);
// the host as a whole does not forward by it.
func (s Shim) sysctls() []core.Sysctl {
	v6 := func(name, value string) core.Sysctl {
		return core.Sysctl{Path: []string{"net", "ipv6", "conf", s.Name, name}, Value: value, Optional: true}
	}
	return []core.Sysctl{
		{Path: []string{"net", "ipv4", "conf", s.Name, "rp_filter"}, Value: "1"},
		{Path: []string{"net", "ipv4", "conf", s.Name, "accept_redirects"}, Value: "0"},
		v6("accept_dad", "0"), v6("accept_ra", "0"), v6("autoconf", "0"), v6("accept_redirects", "0"),
		v6("forwarding", "1"), v6("proxy_ndp", "1"),
		{Path: []string{"net", "ipv6", "neigh", s.Name, "proxy_delay"}, Value: "0", Optional: true},
	}
}

func (s Shim) Remove(k *core.Handle) error {
	k.Shared.Mu.Lock()
	defer k.Shared.Mu.Unlock()
	if k.Shared.RemoveOwner(s) {
		return nil
	}
	return k.DeleteLink(s.Name, s.alias())
}

func (s Shim) Check(snap *core.View) []string {
	faults := checkUp(snap, s, s.Name)
	if len(faults) > 0 {
		return faults
	}
	link := snap.Link(s.Name)
	if link.Attrs().Alias != s.alias() {
		return []string{s.String() + " has another alias"}
	}
	if mode := s.otherMode(link); mode != "" {
		faults = append(faults, fmt.Sprintf("%s has mode %s instead of %s", s, mode, s.Mode))
	}
	for _, sysctl := range s.sysctls() {
		faults = append(faults, sysctl.Check(snap)...)
	}
	parent := s.Parent.in(snap)
	if parent == nil || s.routed() {
		return faults
	}
	for _, a := range snap.AddrsOf(parent.Attrs().Index) {
		p := core.PrefixOf(a.IPNet)
		global := p.Addr().Is6() && a.Scope == int(netlink.SCOPE_UNIVERSE)
		if global && !ndp.Has(snap, link.Attrs().Index, p.Addr()) {
			faults = append(faults, fmt.Sprintf("NDP proxy %s on %s is missing", p.Addr(), s))
		}
	}
	return faults
}

// DependsOn reports whether a link is the shim, or its parent.
func (s Shim) DependsOn(l core.LinkID) bool { return l.Name == s.Name || s.Parent.DependsOn(l) }

// otherMode returns the mode of a macvlan link that should have another one; empty: it is the right one.
func (s Shim) otherMode(link netlink.Link) string {
	l, ok := link.(*netlink.Macvlan)
	if !ok || l.Mode == macvlanModes()[s.Mode] {
		return ""
	}
	for name, mode := range macvlanModes() {
		if mode == l.Mode {
			return name
		}
	}
	return "of another kind"
}

func (s Shim) alias() string { return shimAlias + s.Parent.Name }

// A HostRoute is the host's route to one container through a shim.
//
// The shim must not ask the LAN for the container's hardware address: the request would carry the host's address, and
// everybody who hears it would from then on send to the shim what is for the host (arp_process, net/ipv4/arp.c). So a
// permanent neighbour entry goes with the route.
type HostRoute struct {
	Shim Shim
	Dst  netip.Addr
	MAC  net.HardwareAddr // nil: the parent's
}

// String names the route as ip(8) does.
func (r HostRoute) String() string { return fmt.Sprintf("route %s on %s", r.Dst, r.Shim.Name) }

func (r HostRoute) Ensure(k *core.Handle) error {
	link, err := k.NL.LinkByName(r.Shim.Name)
	if err != nil {
		return fmt.Errorf("add %s: %w", r, err)
	}
	parent, err := FindParent(k, r.Shim.Parent)
	if err != nil {
		return err
	}
	route := r.route(link)
	if r.Dst.Is4() { // IPv6 selects the source with the longest common prefix, IPv4 the first one that it finds
		if src, err := sourceFor(k, parent, r.Dst); err != nil {
			return err
		} else if src.IsValid() {
			route.Src = src.AsSlice()
		}
	}
	filter := &netlink.Route{Dst: route.Dst, Table: unix.RT_TABLE_MAIN}
	there, err := core.Retry(func() ([]netlink.Route, error) {
		return k.NL.RouteListFiltered(core.Family(r.Dst), filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes to %s: %w", r.Dst, err)
	}
	for _, t := range there {
		if t.LinkIndex != link.Attrs().Index {
			return fmt.Errorf("add %s: the host has another route to that address, and it %w", r, core.ErrForeign)
		}
	}
	if err := k.NL.RouteReplace(route); err != nil {
		return fmt.Errorf("add %s: %w", r, err)
	}
	if n := r.neighbour(link, parent); n != nil {
		if err := k.NL.NeighSet(n); err != nil {
			return fmt.Errorf("add neighbour %s on %s: %w", r.Dst, r.Shim.Name, err)
		}
	}
	return nil
}

func (r HostRoute) route(link netlink.Link) *netlink.Route {
	dst := core.IPNet(netip.PrefixFrom(r.Dst, r.Dst.BitLen()))
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Protocol: core.RouteProtocol}
	if r.Dst.Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

// neighbour returns the neighbour entry of the container on the shim, or nil where links do not use hardware addresses.
func (r HostRoute) neighbour(link, parent netlink.Link) *netlink.Neigh {
	if r.Shim.routed() {
		return nil
	}
	n := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: core.Family(r.Dst), State: netlink.NUD_PERMANENT,
		IP: r.Dst.AsSlice(), HardwareAddr: r.MAC,
	}
	if r.MAC == nil {
		n.HardwareAddr = parent.Attrs().HardwareAddr
	}
	return n
}

func (r HostRoute) Remove(k *core.Handle) error {
	link, err := k.Link(r.Shim.Name)
	if err != nil || link == nil {
		return err
	}
	gone := func(err error) bool { // an ipvlan link that routes has no neighbour table
		return err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
	}
	if err := k.NL.RouteDel(r.route(link)); !gone(err) {
		return fmt.Errorf("remove %s: %w", r, err)
	}
	if n := r.neighbour(link, link); n != nil {
		if err := k.NL.NeighDel(n); !gone(err) {
			return fmt.Errorf("remove neighbour %s on %s: %w", r.Dst, r.Shim.Name, err)
		}
	}
	return nil
}

func (r HostRoute) Check(s *core.View) []string {
	link := s.Link(r.Shim.Name)
	if link == nil {
		return nil // the link reports that it is missing
	}
	at := slices.IndexFunc(s.RoutesOf(link.Attrs().Index), func(route netlink.Route) bool {
		p := core.PrefixOf(route.Dst)
		return p.IsSingleIP() && p.Addr() == r.Dst
	})
	if at < 0 {
		return []string{r.String() + " is missing"}
	}
	parent := r.Shim.Parent.in(s)
	if parent == nil {
		return nil // the parent reports that it is missing
	}
	src := chooseSource(core.GlobalOf(s.AddrsOf(parent.Attrs().Index), core.Family(r.Dst)), r.Dst)
	now, _ := netip.AddrFromSlice(s.RoutesOf(link.Attrs().Index)[at].Src)
	if r.Dst.Is4() && src.IsValid() && now.Unmap() != src { // the parent may have got its address later
		return []string{fmt.Sprintf("%s has not the source address %s", r, src)}
	}
	want := r.neighbour(link, parent)
	if want != nil && neighboursOf(s)[neighbourID{want.LinkIndex, r.Dst}] != want.HardwareAddr.String() {
		return []string{fmt.Sprintf("neighbour %s on %s is missing or different", r.Dst, r.Shim.Name)}
	}
	return nil
}

// A neighbourID identifies an entry of the neighbour table.
type neighbourID struct {
	link int
	addr netip.Addr
}

// neighboursOf returns the hardware addresses of the permanent entries of the neighbour table.
func neighboursOf(s *core.View) map[neighbourID]string {
	all, _ := core.Dump(s, func(v *core.View) (map[neighbourID]string, error) {
		list, err := core.Retry(func() ([]netlink.Neigh, error) { return v.Handle.NL.NeighList(0, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		all := map[neighbourID]string{}
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&unix.NUD_PERMANENT != 0 {
				all[neighbourID{n.LinkIndex, a.Unmap()}] = n.HardwareAddr.String()
			}
		}
		return all, nil
	})
	return all
}

// StrayRoutes returns netyard's routes on shims that no object wants.
func StrayRoutes(s *core.View, wanted []core.Object) (strays []core.Stray) {
	want := map[string]bool{}
	for _, o := range wanted {
		if r, ok := o.(HostRoute); ok {
			want[r.String()] = true
		}
	}
	for name, l := range s.Links() {
		if !strings.HasPrefix(l.Attrs().Alias, shimAlias) {
			continue
		}
		for _, route := range s.RoutesOf(l.Attrs().Index) {
			r := HostRoute{Shim: Shim{Name: name, Kind: l.Type()}, Dst: core.PrefixOf(route.Dst).Addr()}
			if route.Protocol != core.RouteProtocol || want[r.String()] {
				continue
			}
			strays = append(strays, core.Stray{Text: r.String(), Drop: func() error { return r.Remove(s.Handle) }})
		}
	}
	return strays
}

// sourceFor returns the parent's address that the host uses as source towards dst, if the parent has one: an address in
// the subnet of dst, or else the first one.
func sourceFor(k *core.Handle, parent netlink.Link, dst netip.Addr) (src netip.Addr, err error) {
	addrs, err := core.GlobalAddrs(k, parent, core.Family(dst))
	return chooseSource(addrs, dst), err
}

func chooseSource(addrs []netip.Prefix, dst netip.Addr) (src netip.Addr) {
	for _, a := range addrs {
		if a.Masked().Contains(dst) {
			return a.Addr()
		}
		if !src.IsValid() {
			src = a.Addr()
		}
	}
	return src
}

// SourceFor returns the address that the host uses as source towards dst.
func SourceFor(k *core.Handle, dst netip.Addr) (netip.Addr, error) {
	routes, err := k.NL.RouteGet(net.IP(dst.AsSlice()))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the route to %s: %w", dst, err)
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Src); ok {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, nil
}

// Addrs returns the addresses of a parent that are valid beyond the link.
func Addrs(k *core.Handle, p Parent) ([]netip.Prefix, error) {
	link, err := FindParent(k, p)
	if err != nil {
		return nil, err
	}
	return core.GlobalAddrs(k, link, netlink.FAMILY_ALL)
}

// ReversePath returns how strictly the kernel checks the source of packets that come in by a link (ip-sysctl.rst,
// rp_filter): 1 drops a packet whose reply would not leave by the same link.
func ReversePath(k *core.Handle, link string) (string, error) {
	strictest := "0"
	for _, conf := range []string{"all", link} { // the kernel uses the greater one
		v, err := k.ReadSysctl(core.Sysctl{Path: []string{"net", "ipv4", "conf", conf, "rp_filter"}}.File())
		if err != nil {
			return "", fmt.Errorf("read rp_filter of %s: %w", conf, err)
		}
		strictest = max(strictest, v)
	}
	return strictest, nil
}
