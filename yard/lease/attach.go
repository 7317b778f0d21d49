package lease

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/ipam/dhcp"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/overlay"
)

// RequestLeases gets the addresses of an attachment from the LAN's DHCP server: one for each DHCP pool of its network.
func RequestLeases(ctx context.Context, j *book.LiveCheck, r book.AttachRequest) (addrs []netip.Prefix, err error) {
	for _, pool := range r.Network.DHCP {
		q := Request{
			AddressRequest: ipam.AddressRequest{Pool: pool, Name: r.Container.Name, MAC: r.MAC},
			Attachment:     r.Attachment, IfName: r.IfName,
		}
		if at := slices.IndexFunc(r.Addrs, netip.Addr.Is4); at >= 0 {
			q.Addr = r.Addrs[at]
		}
		a, err := RequestLease(ctx, j, q)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// ReleaseUnattached releases the leases and claims of an attachment that failed before it was recorded.
func ReleaseUnattached(y *book.Book, r book.AttachRequest) error {
	if err := overlay.ReleaseGranted(y, r); err != nil || len(r.Leased) == 0 {
		return err
	}
	return y.Update("lease not taken", func(tx store.Tx) error {
		return eachLease(tx, r.Network.ID, func(l DHCPLease) error {
			if l.Endpoint != "" || !slices.Contains(r.Leased, l.Lease.Addr) {
				return nil
			}
			return markReleasing(y, tx, l)
		})
	})
}

// TakeDHCP makes the DHCP pool of a network that belongs to no engine, and returns the pool's ID.
func TakeDHCP(ctx context.Context, y *book.Book, r book.NetworkRequest) ([]string, error) {
	if r.DHCP == nil {
		return nil, nil
	}
	p, err := RequestDHCPPool(ctx, y, *r.DHCP)
	return []string{p.ID}, err
}

// ReleaseDHCPPools releases the pools of a network that could not be made.
func ReleaseDHCPPools(y *book.Book, pools []string) (err error) {
	for _, id := range pools {
		err = errors.Join(err, ReleaseDHCPPool(y, id))
	}
	return err
}

// reroute returns what an endpoint that came by CNI has in its sandbox after its lease changed. CNI's CHECK compares
// the sandbox with it.
func reroute(p sandbox.Plug, internal bool, from, to dhcp.Lease) sandbox.Plug {
	p.Addrs = slices.Clone(p.Addrs)
	for i, a := range p.Addrs {
		if a.Addr() == from.Addr.Addr() {
			p.Addrs[i] = to.Addr
		}
	}
	if internal {
		return p
	}
	old := routesOf(from)
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), func(r sandbox.Route) bool { return slices.Contains(old, r) })
	p.Routes = append(p.Routes, routesOf(to)...)
	return p
}

// routesOf returns the routes of a lease.
func routesOf(l dhcp.Lease) (routes []sandbox.Route) {
	for _, r := range l.Routes {
		if r.Via.IsUnspecified() {
			r.Via = netip.Addr{}
		}
		routes = append(routes, sandbox.Route(modes.Route{Dst: r.Dst, Via: r.Via}))
	}
	if l.Router.IsValid() {
		routes = append(routes, sandbox.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Router})
	}
	return routes
}
