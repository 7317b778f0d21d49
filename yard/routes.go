package yard

import (
	"fmt"
	"net/netip"
	"slices"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/lease"
)

// A sandboxRoute is a route that a sandbox has, and why. Without via it is on the link.
type sandboxRoute struct {
	dst netip.Prefix
	why string
	// subnet: it comes with an address. gateway: an engine sets it for one of the networks that have one.
	subnet, gateway bool
}

// settleRoutes leaves out the routes of a link that the sandbox has already, by another endpoint or the link's own
// subnet: an engine fails at the second one. It refuses a network whose subnet the sandbox has a route to.
func (y *Yard) settleRoutes(h *book.Held, link *modes.Link) error {
	has, err := sandboxRoutes(y, h.Endpoint)
	if err != nil {
		return err
	}
	for _, a := range h.Endpoint.Addrs {
		for _, r := range has {
			if !r.subnet && !r.gateway && r.covers(a.Masked(), y.Config.Kernel.IsNamespace(h.Endpoint.Sandbox)) {
				return fmt.Errorf("subnet %s of network %s: the container has a route to %s, by %s; "+
					"disconnect it from that network, or create that network without the route (option routes)",
					a.Masked(), book.Label(h.Network), r.dst, r.why)
			}
		}
		has = append(has, sandboxRoute{dst: a.Masked(), why: "its subnet", subnet: true})
	}
	var routes []modes.Route
	for _, r := range link.Routes {
		at := slices.IndexFunc(has, func(had sandboxRoute) bool { return had.dst == r.Dst })
		if at < 0 {
			routes = append(routes, r)
			has = append(has, sandboxRoute{dst: r.Dst, why: "the same network"})
			continue
		}
		logLeftOut(h, r.String(), has[at].why)
	}
	link.Routes = routes
	link.Gateways = slices.DeleteFunc(link.Gateways, func(gw netip.Addr) bool {
		all := netip.PrefixFrom(core.Unspecified(gw), 0)
		at := slices.IndexFunc(has, func(had sandboxRoute) bool { return had.dst == all && !had.gateway })
		if at >= 0 {
			logLeftOut(h, modes.Route{Dst: all, Via: gw}.String(), has[at].why)
		}
		return at >= 0
	})
	return nil
}

// covers reports whether a route keeps an address of the subnet from being set. An engine that sets addresses before
// routes, in a sandbox that is not there yet, fails only for the subnet itself.
func (r sandboxRoute) covers(subnet netip.Prefix, now bool) bool {
	return r.dst == subnet || now && r.dst.Bits() > 0 && r.dst.Overlaps(subnet)
}

func logLeftOut(h *book.Held, route, why string) {
	h.Book.Config.Log.Info("route left out: the container has one to the same destination",
		"network", h.Network.Name, "network_id", h.Network.ID, "endpoint", h.Endpoint.ID, "route", route, "reason", why)
}

// sandboxRoutes returns the routes that a sandbox has by other endpoints than one.
func sandboxRoutes(y *Yard, e modes.Endpoint) (has []sandboxRoute, err error) {
	var others []modes.Endpoint
	err = y.Config.Store.View(func(tx store.Tx) error {
		others, err = book.Neighbours(tx, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		n, err := y.Network(o.NetworkID)
		if err != nil {
			return nil, err
		}
		link, err := lease.LinkOf(y.Book, n, o)
		if err != nil {
			return nil, err
		}
		by := "network " + book.Label(n)
		for _, a := range o.Addrs {
			has = append(has, sandboxRoute{dst: a.Masked(), why: by, subnet: true})
		}
		for _, r := range link.Routes {
			has = append(has, sandboxRoute{dst: r.Dst, why: by})
		}
		for _, gw := range link.Gateways {
			has = append(has, sandboxRoute{dst: netip.PrefixFrom(core.Unspecified(gw), 0), why: by, gateway: true})
		}
	}
	return has, nil
}
