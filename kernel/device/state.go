package device

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A State is the part of a card's configuration on the host that it loses when it moves into a container. The records
// have it.
type State struct {
	Alias  string  `json:",omitempty"`
	MAC    string  `json:",omitempty"`
	MTU    int     `json:",omitempty"`
	Up     bool    `json:",omitempty"`
	Addrs  []Addr  `json:",omitempty"`
	Routes []Route `json:",omitempty"`
}

// An Addr is an address of a card.
type Addr struct {
	Prefix           netip.Prefix
	Peer             netip.Prefix `json:",omitzero"`
	Broadcast        netip.Addr   `json:",omitzero"`
	Label            string       `json:",omitempty"`
	Scope, Flags     int          `json:",omitempty"`
	Valid, Preferred int          `json:",omitempty"` // seconds
}

// A Route is a route by a card that neither the kernel nor router advertisements made.
type Route struct {
	Dst                  netip.Prefix // of a default route: 0.0.0.0/0 or ::/0
	Via, Src             netip.Addr   `json:",omitzero"`
	Table, Metric, Proto int          `json:",omitempty"`
	Scope, Flags, MTU    int          `json:",omitempty"`
}

// StateOf returns the state of a card of the host. It is an error if the card cannot be moved into a container.
func StateOf(k *core.Handle, name string) (st State, err error) {
	link, err := k.Link(name)
	if err != nil {
		return st, err
	}
	if link == nil {
		return st, fmt.Errorf("there is no such link on this host: %w", unix.ENODEV)
	}
	if err := checkMovable(k, link); err != nil {
		return st, err
	}
	a := link.Attrs()
	st = State{Alias: a.Alias, MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: core.DeviceUp(a)}
	const ethernet = 6 // octets
	mac := a.HardwareAddr
	addrs, err := core.Retry(func() ([]netlink.Addr, error) { return k.NL.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return st, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		d := addrOf(a)
		if len(mac) < ethernet || d.Prefix.Addr() != core.LinkLocal(mac) { // the kernel adds the link-local one itself
			st.Addrs = append(st.Addrs, d)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := core.Retry(func() ([]netlink.Route, error) {
			filter := &netlink.Route{LinkIndex: a.Index, Table: unix.RT_TABLE_UNSPEC}
			return k.NL.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return st, fmt.Errorf("list routes of %s: %w", name, err)
		}
		for _, r := range routes {
			// The kernel adds its own routes again, and so do router advertisements.
			automatic := r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA
			if !automatic && r.Type == unix.RTN_UNICAST && r.Table != unix.RT_TABLE_LOCAL {
				st.Routes = append(st.Routes, routeOf(r))
			}
		}
	}
	return st, nil
}

// checkMovable refuses a link that is netyard's own or in use by another link, and one that the host cannot do without.
func checkMovable(k *core.Handle, link netlink.Link) error {
	a := link.Attrs()
	links, err := core.Retry(k.NL.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	if _, _, ours := core.ParseAlias(a.Alias); ours || core.OwnName(a.Name) {
		return errors.New("it is a link of netyard's own")
	}
	if a.Flags&net.FlagLoopback != 0 {
		return errors.New("a loopback cannot be moved into a container")
	}
	if link.Type() == "bridge" {
		return errors.New("a bridge cannot be moved into a container")
	}
	if a.MasterIndex != 0 {
		return fmt.Errorf("its master is %s; remove it from there first", byIndex[a.MasterIndex])
	}
	for _, l := range links {
		// The end of a veth pair has its other end as parent, and is not on top of it.
		if b := l.Attrs(); b.ParentIndex == a.Index && b.NetNsID < 0 && l.Type() != "veth" && b.Index != a.Index {
			return fmt.Errorf("link %s is made on it; remove that link first", b.Name)
		}
	}
	return checkDefaultRoute(k, a.Index)
}

// checkDefaultRoute refuses the link that has the host's only default route.
func checkDefaultRoute(k *core.Handle, index int) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := core.Retry(func() ([]netlink.Route, error) { return k.NL.RouteList(nil, family) })
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		by, others := false, false
		for _, r := range routes {
			if r.Dst != nil && core.PrefixOf(r.Dst).Bits() != 0 || r.Type != unix.RTN_UNICAST {
				continue
			}
			by, others = by || r.LinkIndex == index, others || r.LinkIndex != index
		}
		if by && !others {
			return errors.New("it has the host's only default route, and the host would be cut off")
		}
	}
	return nil
}

// restore gives a card its former name and state. It resets the alias last, so that an attempt that fails half-way is
// made again.
func (st State) restore(k *core.Handle, link netlink.Link, name string) error {
	if link.Attrs().Name != name {
		// Older kernels do not rename a link that is up (dev_change_name, net/core/dev.c).
		if err := k.NL.LinkSetDown(link); err != nil {
			return fmt.Errorf("set it down: %w", err)
		}
		if err := k.NL.LinkSetName(link, name); err != nil {
			return fmt.Errorf("rename it from %s to %s: %w", link.Attrs().Name, name, err)
		}
	}
	if mac, err := net.ParseMAC(st.MAC); err == nil && link.Attrs().HardwareAddr.String() != st.MAC {
		if err := k.NL.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set its MAC %s: %w", mac, err)
		}
	}
	if st.MTU != 0 && link.Attrs().MTU != st.MTU {
		if err := k.NL.LinkSetMTU(link, st.MTU); err != nil {
			return fmt.Errorf("set its MTU %d: %w", st.MTU, err)
		}
	}
	if st.Up {
		if err := k.NL.LinkSetUp(link); err != nil {
			return fmt.Errorf("set it up: %w", err)
		}
	}
	for _, a := range st.Addrs {
		if err := k.NL.AddrAdd(link, a.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add its address %s: %w", a.Prefix, err)
		}
	}
	if err := st.restoreRoutes(k, link); err != nil {
		return err
	}
	if err := k.NL.LinkSetAlias(link, st.Alias); err != nil {
		return fmt.Errorf("reset its alias: %w", err)
	}
	return nil
}

// restoreRoutes adds the routes again: first those without a gateway, since the gateways of the others are reached by
// them. A route that the host as it is now does not accept is logged, and the others are restored.
func (st State) restoreRoutes(k *core.Handle, link netlink.Link) error {
	for _, direct := range []bool{true, false} {
		for _, r := range st.Routes {
			if r.Via.IsValid() == direct {
				continue
			}
			if err := k.NL.RouteAdd(r.netlink(link.Attrs().Index)); err != nil && !errors.Is(err, unix.EEXIST) {
				k.Log.Warn("route of device not restored", "device", link.Attrs().Name, "route", r.Dst, "err", err)
			}
		}
	}
	return nil
}

func addrOf(a netlink.Addr) Addr {
	d := Addr{
		Prefix: core.PrefixOf(a.IPNet), Label: a.Label, Scope: a.Scope, Flags: a.Flags,
		Valid: a.ValidLft, Preferred: a.PreferedLft,
	}
	if a.Peer != nil && core.PrefixOf(a.Peer) != d.Prefix {
		d.Peer = core.PrefixOf(a.Peer)
	}
	if b, ok := netip.AddrFromSlice(a.Broadcast); ok {
		d.Broadcast = b.Unmap()
	}
	return d
}

func (d Addr) netlink() *netlink.Addr {
	// The kernel reports these flags, and nobody can set them (inet6_rtm_newaddr, net/ipv6/addrconf.c).
	const reported = unix.IFA_F_PERMANENT | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED |
		unix.IFA_F_SECONDARY
	a := &netlink.Addr{IPNet: core.IPNet(d.Prefix), Label: d.Label, Scope: d.Scope, Flags: d.Flags &^ reported}
	if d.Flags&unix.IFA_F_PERMANENT == 0 {
		a.ValidLft, a.PreferedLft = d.Valid, d.Preferred
	}
	if d.Peer.IsValid() {
		a.Peer = core.IPNet(d.Peer)
	}
	a.Broadcast = net.IPv4zero // no broadcast address; for nil the library would compute one
	if d.Broadcast.IsValid() {
		a.Broadcast = d.Broadcast.AsSlice()
	}
	return a
}

func routeOf(r netlink.Route) Route {
	d := Route{
		Dst: core.PrefixOf(r.Dst), Table: r.Table, Metric: r.Priority, Proto: int(r.Protocol), Scope: int(r.Scope),
		Flags: r.Flags & unix.RTNH_F_ONLINK, MTU: r.MTU,
	}
	if !d.Dst.IsValid() { // the default route
		d.Dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Family == netlink.FAMILY_V6 {
			d.Dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
	}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		d.Via = via.Unmap()
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		d.Src = src.Unmap()
	}
	return d
}

func (d Route) netlink(index int) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: index, Dst: core.IPNet(d.Dst), Table: d.Table, Priority: d.Metric,
		Protocol: netlink.RouteProtocol(d.Proto),
		Scope:    netlink.Scope(d.Scope), //nolint:gosec // a scope has 8 bits
		Flags:    d.Flags, MTU: d.MTU,
	}
	if d.Via.IsValid() {
		r.Gw = d.Via.AsSlice()
	}
	if d.Src.IsValid() {
		r.Src = d.Src.AsSlice()
	}
	return r
}
