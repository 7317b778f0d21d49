package sandbox

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A DefaultRoute is a default route of a sandbox.
type DefaultRoute struct {
	V6 bool
	// Addrs are the addresses of the link that it leads to.
	Addrs []netip.Addr
}

// DefaultRoutes lists the default routes of the sandbox at a path, as engines and CNI set them; those that routers of a
// LAN announce are left out. A sandbox that is not there has none.
func DefaultRoutes(path string, id core.NamespaceID) (all []DefaultRoute, err error) {
	err = core.InNamespace(path, id, func(nl *netlink.Handle) error {
		routes, err := core.Retry(func() ([]netlink.Route, error) { return nl.RouteList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list routes of a sandbox: %w", err)
		}
		addrs, err := core.Retry(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list addresses of a sandbox: %w", err)
		}
		for _, r := range routes {
			if !leadsOut(r) {
				continue
			}
			d := DefaultRoute{V6: r.Family == unix.AF_INET6}
			for _, a := range addrs {
				if a.LinkIndex == r.LinkIndex {
					d.Addrs = append(d.Addrs, core.PrefixOf(a.IPNet).Addr())
				}
			}
			all = append(all, d)
		}
		return nil
	})
	return all, err
}

func leadsOut(r netlink.Route) bool {
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones > 0 {
			return false
		}
	}
	return r.Type == unix.RTN_UNICAST && r.Protocol != unix.RTPROT_RA
}
