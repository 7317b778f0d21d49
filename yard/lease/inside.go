package lease

import (
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam/dhcp"
	"netyard/kernel/core"
	kdhcp "netyard/kernel/dhcp"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard/book"
)

// LinkOf returns the link of an endpoint that has joined, with the routes of its lease.
func LinkOf(y *book.Book, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	link, err := linkOf(y, n, e)
	if err == nil {
		_, _, err = addRoutes(y, n, e, &link)
	}
	return link, err
}

// linkOf returns the link of an endpoint, without what a lease adds.
func linkOf(y *book.Book, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return modes.Link{}, err
	}
	return y.Plan().Link(m, n, e)
}

// addRoutes adds the gateway and routes of a link that the DHCP server says. It returns the lease; ok: there is one.
func addRoutes(y *book.Book, n modes.Network, e modes.Endpoint, link *modes.Link) (l DHCPLease, ok bool, err error) {
	if len(n.DHCP) == 0 || link.SrcName == "" {
		return l, false, nil
	}
	l, ok, err = Of(y, e)
	if ok && err == nil {
		addRoutesOf(n, l.Lease, link)
	}
	return l, ok, err
}

// addRoutesOf adds the gateway and routes of a lease to a link. An internal network has none.
func addRoutesOf(n modes.Network, l dhcp.Lease, link *modes.Link) {
	if n.Internal {
		return
	}
	if l.Router.IsValid() {
		link.Gateways = append([]netip.Addr{l.Router}, link.Gateways...)
	}
	for _, r := range l.Routes {
		link.Routes = append(link.Routes, modes.Route(routeOf(r)))
	}
}

// routeOf returns a route of a lease as one of a sandbox.
func routeOf(r dhcp.Route) sandbox.Route {
	if r.Via.IsUnspecified() {
		r.Via = netip.Addr{}
	}
	return sandbox.Route{Dst: r.Dst, Via: r.Via}
}

// ApplyLease sets the gateway, routes and MTU of a link as the DHCP server says.
func ApplyLease(y *book.Book, n modes.Network, e modes.Endpoint, link *modes.Link) error {
	l, ok, err := addRoutes(y, n, e, link)
	if err != nil || !ok {
		return err
	}
	defer y.Keeper.Wake.Send()
	if l.Lease.MTU == 0 {
		return nil
	}
	mtu, smaller, err := mtuOf(y, l.LAN, link.MTU, l.Lease)
	if err != nil || !smaller {
		return err
	}
	link.MTU = mtu
	if e.Attachment != "" { // it is set in the sandbox
		return nil
	}
	return y.Config.Kernel.SetLinkMTU(link.SrcName, link.MTU)
}

// mtuOf returns the MTU of a link: the lease's if that is smaller than the link's own; own 0: that of the LAN's port.
func mtuOf(y *book.Book, lan kdhcp.LANPort, own int, l dhcp.Lease) (mtu int, smaller bool, err error) {
	if own == 0 {
		if own, err = lan.MTU(y.Config.Handle); err != nil {
			return 0, false, err
		}
	}
	if l.MTU > 0 && l.MTU < own {
		return l.MTU, true, nil
	}
	return own, false, nil
}

// insideOf returns what an endpoint has in its sandbox by a lease. An endpoint that came by CNI has it on record, by
// the lease that is on record.
func insideOf(y *book.Book, n modes.Network, e modes.Endpoint, l DHCPLease) (p sandbox.Plug, err error) {
	link, err := linkOf(y, n, e)
	if err != nil {
		return p, err
	}
	mtu, smaller, err := mtuOf(y, l.LAN, link.MTU, l.Lease)
	if err != nil {
		return p, err
	}
	p = e.Inside
	if p.Link == "" { // as the engine was told
		addRoutesOf(n, l.Lease, &link)
		p = sandbox.Plug{Addrs: []netip.Prefix{l.Lease.Addr}, MTU: mtu}
		for _, r := range link.Routes {
			p.Routes = append(p.Routes, sandbox.Route(r))
		}
		for _, gw := range link.Gateways {
			p.Routes = append(p.Routes, sandbox.Route{Dst: netip.PrefixFrom(core.Unspecified(gw), 0), Via: gw})
		}
	}
	if smaller {
		p.FixedMTU = mtu
	}
	return p, nil
}

// changeOf returns what an endpoint has in its sandbox by a lease, and what it has by another one that follows.
func changeOf(
	y *book.Book, n modes.Network, e modes.Endpoint, l DHCPLease, to dhcp.Lease,
) (was, is sandbox.Plug, err error) {
	if was, err = insideOf(y, n, e, l); err != nil {
		return was, is, err
	}
	next := l
	next.Lease = to
	if is, err = insideOf(y, n, e, next); err != nil || e.Inside.Link == "" {
		return was, is, err
	}
	is, err = reroute(y, n, e, l, to)
	return was, is, err
}

// reroute returns what an endpoint that came by CNI has in its sandbox after its lease changed. CNI's CHECK compares
// the sandbox with it.
func reroute(
	y *book.Book, n modes.Network, e modes.Endpoint, l DHCPLease, to dhcp.Lease,
) (p sandbox.Plug, err error) {
	p = e.Inside
	p.Addrs = slices.Clone(p.Addrs)
	for i, a := range p.Addrs {
		if a.Addr() == l.Lease.Addr.Addr() {
			p.Addrs[i] = to.Addr
		}
	}
	if l.Lease.MTU != to.MTU {
		link, err := linkOf(y, n, e)
		if err != nil {
			return p, err
		}
		if p.MTU, _, err = mtuOf(y, l.LAN, link.MTU, to); err != nil {
			return p, err
		}
	}
	if !n.Internal {
		p.Routes = replaceRoutes(p.Routes, routesOf(l.Lease), routesOf(to))
	}
	return p, nil
}

// replaceRoutes replaces the routes of a lease by those of another, at the same place. If the link has none of the
// first lease's, its routes are not the server's.
func replaceRoutes(all, was, is []sandbox.Route) []sandbox.Route {
	theirs := func(r sandbox.Route) bool { return slices.Contains(was, r) }
	at := slices.IndexFunc(all, theirs)
	if at < 0 && len(was) > 0 {
		return all
	}
	rest := slices.DeleteFunc(slices.Clone(all), theirs)
	return slices.Insert(rest, max(at, 0), is...)
}

// routesOf returns the routes of a lease.
func routesOf(l dhcp.Lease) (routes []sandbox.Route) {
	for _, r := range l.Routes {
		routes = append(routes, routeOf(r))
	}
	if l.Router.IsValid() {
		routes = append(routes, sandbox.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Router})
	}
	return routes
}

// faults returns what in the sandbox of an endpoint is not as its lease says: address, MTU and routes.
func faults(y *book.Book, n modes.Network, e modes.Endpoint, l DHCPLease) ([]string, error) {
	p, err := insideOf(y, n, e, l)
	if err != nil {
		return nil, err
	}
	box, err := enter(l, e)
	if err != nil {
		return nil, nil //nolint:nilerr // a link that is missing is reported as such
	}
	found, err := box.Faults(p)
	if err := box.Close(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("compare the sandbox: %w", err)
	}
	return found, nil
}

// FixedMTU returns the MTU that the lease of an endpoint gives its link; 0: none.
func FixedMTU(y *book.Book, n modes.Network, e modes.Endpoint) (int, error) {
	if len(n.DHCP) == 0 {
		return 0, nil
	}
	l, ok, err := Of(y, e)
	if err != nil || !ok {
		return 0, err
	}
	p, err := insideOf(y, n, e, l)
	return p.FixedMTU, err
}
