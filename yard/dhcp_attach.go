package yard

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/ipam/dhcp"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// lease4 gets an attachment the address that the LAN's DHCP server has for it, where its network has addresses from
// there.
func (y *Yard) lease4(ctx context.Context, j *judge, r AttachRequest) (addrs []netip.Prefix, err error) {
	n, err := y.Network(r.NetworkID)
	if err != nil {
		return nil, err
	}
	for _, pool := range n.DHCP {
		q := leaseRequest{AddressRequest: ipam.AddressRequest{Pool: pool, Name: r.Container.Name, MAC: r.MAC}, Attachment: r.Attachment, IfName: r.IfName}
		if at := slices.IndexFunc(r.Addrs, netip.Addr.Is4); at >= 0 {
			q.Addr = r.Addrs[at]
		}
		a, err := y.requestLease(ctx, j, q)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// notAttached gives back the leases and the claims of an attachment that came to nothing before it was recorded.
func (y *Yard) notAttached(r AttachRequest) error {
	if err := y.ungrant(r); err != nil || len(r.leased) == 0 {
		return err
	}
	return y.update("lease not taken", func(tx store.Tx) error {
		return y.eachLease(tx, r.NetworkID, func(l DHCPLease) error {
			if l.Endpoint != "" || !slices.Contains(r.leased, l.Lease.Addr) {
				return nil
			}
			return y.giveBack(tx, l)
		})
	})
}

// takeDHCP makes the pool of a network that belongs to no engine.
func (y *Yard) takeDHCP(ctx context.Context, r NetworkRequest) ([]string, error) {
	if r.DHCP == nil {
		return nil, nil
	}
	p, err := y.RequestDHCPPool(ctx, *r.DHCP)
	return []string{p.ID}, err
}

func (y *Yard) giveDHCP(pools []string) (err error) {
	for _, id := range pools {
		err = errors.Join(err, y.releaseDHCPPool(id))
	}
	return err
}

// reroute is what an endpoint that came by CNI is to have inside, when it has another lease than before: CHECK
// compares.
func reroute(p kernel.Plug, internal bool, from, to dhcp.Lease) kernel.Plug {
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
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), func(r kernel.Route) bool { return slices.Contains(old, r) })
	p.Routes = append(p.Routes, routesOf(to)...)
	return p
}

// routesOf are the routes that a lease brings.
func routesOf(l dhcp.Lease) (routes []kernel.Route) {
	for _, r := range l.Routes {
		if r.Via.IsUnspecified() {
			r.Via = netip.Addr{}
		}
		routes = append(routes, kernel.Route(modes.Route{Dst: r.Dst, Via: r.Via}))
	}
	if l.Router.IsValid() {
		routes = append(routes, kernel.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Router})
	}
	return routes
}
