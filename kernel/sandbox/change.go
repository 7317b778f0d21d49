package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// Change changes a link in a sandbox from one configuration to another, as if it had been plugged in with that one. An
// address or a route of the former configuration may be missing. It goes on after an error, and returns all errors.
func Change(inner *netlink.Handle, link netlink.Link, was, is Plug) error {
	errs := []error{is.changeMTU(inner, link, was.MTU)}
	for _, r := range slices.Backward(was.Routes) { // those to routers last
		if was.Metric == is.Metric && slices.Contains(is.Routes, r) {
			continue
		}
		if err := inner.RouteDel(was.route(link, r)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r, err))
		}
	}
	for _, a := range was.Addrs {
		if slices.Contains(is.Addrs, a) {
			continue
		}
		err := inner.AddrDel(link, &netlink.Addr{IPNet: core.IPNet(a)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s: %w", a, err))
		}
	}
	for _, a := range is.Addrs {
		if err := inner.AddrReplace(link, address(a)); err != nil {
			errs = append(errs, fmt.Errorf("add address %s: %w", a, err))
		}
	}
	// All of them, since the kernel removed some with the address (fib_disable_ip, net/ipv4/fib_frontend.c).
	return errors.Join(append(errs, is.addRoutes(inner, link))...)
}

func (p Plug) changeMTU(inner *netlink.Handle, link netlink.Link, was int) error {
	if p.MTU == 0 || p.MTU == was || p.MTU == link.Attrs().MTU {
		return nil
	}
	if err := inner.LinkSetMTU(link, p.MTU); err != nil {
		return fmt.Errorf("set MTU %d on %s in the sandbox: %w", p.MTU, link.Attrs().Name, err)
	}
	return nil
}

func address(a netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: core.IPNet(a)}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // netyard itself knows whether another endpoint has the address
	}
	return addr
}

// addRoutes adds the routes. One to a destination that the sandbox has a route to already, with the same metric, is
// left alone.
func (p Plug) addRoutes(inner *netlink.Handle, link netlink.Link) error {
	var errs []error
	for _, r := range p.Routes {
		if err := inner.RouteAdd(p.route(link, r)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add route %s to %s in the sandbox: %w", r, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// FaultsOf returns what of a link in a sandbox is not as it was set up.
func (p Plug) FaultsOf(inner *netlink.Handle, link netlink.Link) ([]string, error) {
	name := link.Attrs().Name
	var faults []string
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		faults = append(faults, "link "+name+" is down in the sandbox")
	}
	if fault := MACFault(name, p.MAC, link.Attrs().HardwareAddr); fault != "" {
		faults = append(faults, fault)
	}
	if now := link.Attrs().MTU; p.FixedMTU > 0 && now != p.FixedMTU {
		faults = append(faults, fmt.Sprintf("link %s has MTU %d in the sandbox instead of %d", name, now, p.FixedMTU))
	}
	addrs, err := core.Retry(func() ([]netlink.Addr, error) { return inner.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s in the sandbox: %w", name, err)
	}
	for _, a := range p.Addrs {
		if !slices.ContainsFunc(addrs, func(got netlink.Addr) bool { return core.PrefixOf(got.IPNet) == a }) {
			faults = append(faults, fmt.Sprintf("address %s is missing on %s in the sandbox", a, name))
		}
	}
	routes, err := core.Retry(func() ([]netlink.Route, error) { return inner.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes in the sandbox: %w", err)
	}
	for _, r := range p.Routes {
		if !slices.ContainsFunc(routes, func(got netlink.Route) bool { return p.satisfies(got, r, link) }) {
			faults = append(faults, fmt.Sprintf("route %s is missing in the sandbox", r))
		}
	}
	return faults, nil
}

// satisfies reports whether a route in a sandbox is the one that addRoutes adds, or one that it leaves alone.
func (p Plug) satisfies(got netlink.Route, want Route, link netlink.Link) bool {
	if core.PrefixOf(got.Dst) != want.Dst.Masked() {
		return false
	}
	metric := p.route(link, want).Priority
	if want.Dst.Addr().Is6() && metric == 0 {
		metric = ipv6Metric
	}
	via, _ := netip.AddrFromSlice(got.Gw)
	return got.Priority == metric && (got.LinkIndex != link.Attrs().Index || via.Unmap() == want.Via)
}
