package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Plug is the wanted configuration of a link inside a sandbox. It is for CNI: Docker moves and sets up links itself.
type Plug struct {
	Link string // the link's name on the host
	Name string // its name in the sandbox
	// Alias is the alias that the link must have for Unplug to delete it.
	Alias string
	// MAC is the hardware address that Faults compares; nil: any will do. It is not recorded.
	MAC net.HardwareAddr `json:"-"`
	MTU int
	// FixedMTU is the MTU that Faults compares; 0: any will do, since plugins after netyard may set it. It is not
	// recorded.
	FixedMTU int `json:"-"`
	Addrs    []netip.Prefix
	// Routes are added in this order. One that the sandbox already has, by another link, is left alone.
	Routes []Route
	// Metric is the metric of the routes. Of several links' routes to one destination the one with the lowest metric is
	// used, whichever was added first.
	Metric int
}

// A Route is one route inside a sandbox. An invalid Via means that Dst is on the link.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// String returns the route as ip(8) writes it.
func (r Route) String() string {
	if r.Via.IsValid() {
		return fmt.Sprintf("%s via %s", r.Dst, r.Via)
	}
	return r.Dst.String()
}

// ipv6Metric is the metric that the kernel uses for an IPv6 route with metric 0 (IP6_RT_PRIO_USER,
// include/uapi/linux/ipv6_route.h).
const ipv6Metric = 1024

// PlugIn moves a link into the network namespace that fd refers to, unless it was made there under its final name, and
// sets it up. If it fails half-way, the caller has to remove the link.
func PlugIn(ctx context.Context, k *core.Handle, fd int, p Plug) error {
	return core.Inside(fd, func() error { // tune needs a thread in the namespace to see its sysctls
		inner, err := core.OpenNetlink(netns.None())
		if err != nil {
			return err
		}
		defer inner.Close()
		return plugIn(ctx, k, inner, fd, p)
	})
}

func plugIn(ctx context.Context, k *core.Handle, inner *netlink.Handle, fd int, p Plug) error {
	link, err := core.Find(inner, p.Name)
	if err != nil {
		return err
	}
	if p.Link != p.Name {
		if link != nil {
			return fmt.Errorf("move link %s into the sandbox: it has a link %s: %w", p.Link, p.Name, unix.EEXIST)
		}
		link, err = moveIn(k, inner, fd, p)
	} else if link == nil {
		err = fmt.Errorf("find link %s in the sandbox: %w", p.Name, unix.ENODEV)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("set up link %s in the sandbox: %w", p.Name, err)
	}
	return p.setUp(inner, link)
}

func moveIn(k *core.Handle, inner *netlink.Handle, fd int, p Plug) (netlink.Link, error) {
	link, err := k.Link(p.Link)
	if err == nil && link == nil {
		err = unix.ENODEV
	}
	if err == nil {
		err = k.NL.LinkSetNsFd(link, fd)
	}
	if err != nil {
		return nil, fmt.Errorf("move link %s into the sandbox: %w", p.Link, err)
	}
	if link, err = inner.LinkByName(p.Link); err != nil {
		return nil, fmt.Errorf("find link %s in the sandbox: %w", p.Link, err)
	}
	if err := inner.LinkSetName(link, p.Name); err != nil {
		return nil, fmt.Errorf("rename link %s to %s in the sandbox: %w", p.Link, p.Name, err)
	}
	return link, nil
}

func (p Plug) setUp(inner *netlink.Handle, link netlink.Link) error {
	if p.MTU > 0 && link.Attrs().MTU != p.MTU {
		if err := inner.LinkSetMTU(link, p.MTU); err != nil {
			return fmt.Errorf("set MTU %d on %s in the sandbox: %w", p.MTU, p.Name, err)
		}
	}
	if err := p.tune(); err != nil {
		return err
	}
	for _, a := range p.Addrs {
		if err := inner.AddrAdd(link, address(a)); err != nil {
			return fmt.Errorf("add address %s to %s in the sandbox: %w", a, p.Name, err)
		}
	}
	if err := inner.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up in the sandbox: %w", p.Name, err)
	}
	return p.addRoutes(inner, link)
}

// tune sets sysctls that must be set before the link is up. arp_notify announces the address to neighbours that may
// still have the MAC of the container that had it before. A container without an IPv6 address gets IPv6 disabled.
func (p Plug) tune() error {
	disabled := "1"
	if slices.ContainsFunc(p.Addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		disabled = "0"
	}
	for _, s := range []core.Sysctl{
		{Path: []string{"net", "ipv4", "conf", p.Name, "arp_notify"}, Value: "1"},
		{Path: []string{"net", "ipv6", "conf", p.Name, "disable_ipv6"}, Value: disabled, Optional: true},
	} {
		err := os.WriteFile(s.File(), []byte(s.Value), 0o644)
		if err != nil && (!s.Optional || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("set %s in the sandbox: %w", s, err)
		}
	}
	return nil
}

func (p Plug) route(link netlink.Link, r Route) *netlink.Route {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: core.IPNet(r.Dst.Masked()), Priority: p.Metric}
	if r.Dst.Addr().Is6() && p.Metric > 0 {
		route.Priority += ipv6Metric
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
		return route
	}
	route.Scope = netlink.SCOPE_LINK
	return route
}

// Faults returns what in the sandbox is not as PlugIn has set it up, one text a fault.
func (p Plug) Faults(fd int) ([]string, error) {
	inner, err := core.NetlinkIn(fd)
	if err != nil {
		return nil, err
	}
	defer inner.Close()
	link, err := core.Find(inner, p.Name)
	if err != nil {
		return nil, err
	}
	if link == nil {
		return []string{"link " + p.Name + " is missing in the sandbox"}, nil
	}
	return p.FaultsOf(inner, link)
}

// MACFault says that a link's hardware address was changed in the sandbox, so that the guard of its port drops what it
// sends; empty: it was not, or wanted is nil.
func MACFault(link string, wanted, now net.HardwareAddr) string {
	if wanted == nil || bytes.Equal(wanted, now) {
		return ""
	}
	return fmt.Sprintf("link %s has MAC address %s in the sandbox instead of %s, and antispoof drops what it sends; "+
		"request the address when the container is created, or set antispoof=false", link, now, wanted)
}

// Unplug deletes a link of netyard's in a sandbox that continues to exist. It does nothing if the link is missing or
// not netyard's. The container end of a veth pair has no alias; it is deleted with the host end.
func Unplug(fd int, p Plug) error {
	inner, err := core.NetlinkIn(fd)
	if err != nil {
		return err
	}
	defer inner.Close()
	link, err := core.Find(inner, p.Name)
	if err != nil || link == nil || link.Attrs().Alias != p.Alias {
		return err
	}
	if err := inner.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s in the sandbox: %w", p.Name, err)
	}
	return nil
}
