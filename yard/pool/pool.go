// Package pool allots pools and addresses to engines, from the source that a network uses: netyard's own IPAM, a DHCP
// server or the cluster.
package pool

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/overlay"
)

// RequestPool allots a pool. If the request names no subnet, the pool overlaps none of the host's routes, resolvers and
// networks.
func RequestPool(ctx context.Context, y *yard.Yard, r ipam.PoolRequest) (p ipam.Pool, err error) {
	if !r.Subnet.IsValid() {
		busy, err := busy(y)
		if err != nil {
			return p, err
		}
		r.Busy = append(r.Busy, busy...)
	}
	if err := ctx.Err(); err != nil {
		return p, err
	}
	r.Abandoned = y.Started
	err = y.Update("pool recorded", func(tx store.Tx) error {
		p, err = y.Config.IPAM.RequestPool(tx, r)
		return err
	})
	return p, err
}

// busy returns the prefixes of the host's routes, of its resolvers, and of all recorded networks, whatever their IPAM.
func busy(y *yard.Yard) ([]netip.Prefix, error) {
	busy, err := y.Config.Kernel.UsedPrefixes("")
	if err != nil {
		return nil, err
	}
	busy = append(busy, resolvers("/etc/resolv.conf")...)
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		for _, s := range n.Subnets {
			busy = append(busy, s.Pool)
		}
	}
	return busy, nil
}

// ReleasePool releases a pool. Releasing an unknown one succeeds. A pool whose network could not be deleted, because
// containers are attached to it by CNI, stays until the network is deleted.
func ReleasePool(_ context.Context, y *yard.Yard, id string) error {
	if overlay.IsOverlay(id) {
		return nil
	}
	if lease.IsDHCP(id) {
		return lease.ReleaseDHCPPool(y.Book, id)
	}
	return y.Update("pool released", func(tx store.Tx) error {
		used, err := hasAttachments(y, tx, id)
		if err != nil || used {
			return err
		}
		return y.Config.IPAM.ReleasePool(tx, id)
	})
}

// hasAttachments reports whether containers are attached to the pool's network by CNI.
func hasAttachments(y *yard.Yard, tx store.Tx, pool string) (has bool, err error) {
	all, err := y.Config.IPAM.Pools(tx)
	if err != nil {
		return false, err
	}
	for _, p := range all {
		if p.ID != pool || p.Network == "" {
			continue
		}
		es, err := book.Endpoints.List(tx, book.EndpointKey(p.Network, ""))
		return slices.ContainsFunc(es, func(e modes.Endpoint) bool {
			return e.Attachment != "" && e.Phase != modes.Deleting
		}), err
	}
	return false, nil
}

// RequestAddress allots an address. If the pool is full and its network has other pools of the family, the address
// comes from one of them: an engine asks only the first pool. Dead endpoints that have the address, or one of a full
// pool, are removed.
func RequestAddress(ctx context.Context, y *yard.Yard, r ipam.AddressRequest) (a netip.Prefix, err error) {
	err = y.RetryWithoutDead(ctx, func(j *book.LiveCheck) error {
		switch {
		case overlay.IsOverlay(r.Pool):
			a, err = overlay.RequestClaim(ctx, y.Book, r)
		case lease.IsDHCP(r.Pool):
			a, err = lease.RequestLease(ctx, j, lease.Request{AddressRequest: r})
			return err
		default:
			a, err = requestOwn(y, r)
		}
		if err == nil {
			return nil
		}
		if !overlay.IsOverlay(r.Pool) && !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		return poolHolders(y, r.Pool, r.Addr, err)
	})
	return a, err
}

// poolHolders adds to the cause why a request for an address failed the endpoints that have the address, or the pool's.
func poolHolders(y *yard.Yard, pool string, a netip.Addr, cause error) (held error) {
	err := y.Config.Store.View(func(tx store.Tx) error {
		network, err := networkOf(y, tx, pool)
		if err != nil || network == "" {
			return err
		}
		held, err = book.HoldersOf(tx, network, cause, a)
		return err
	})
	if held == nil {
		return errors.Join(cause, err)
	}
	return held
}

// networkOf returns the network that a pool belongs to; empty: there is none yet.
func networkOf(y *yard.Yard, tx store.Tx, pool string) (network string, err error) {
	switch {
	case overlay.IsOverlay(pool):
		name, _, err := overlay.ParseOverlayPool(pool)
		if err != nil {
			return "", err
		}
		ns, err := book.Networks.List(tx, "")
		for _, n := range ns {
			if overlay.IsOverlayNamed(y.Book, n, name) {
				return n.ID, err
			}
		}
		return "", err
	case lease.IsDHCP(pool):
		p, err := lease.DHCPPools.Get(tx, pool)
		if errors.Is(err, store.ErrNotFound) {
			return "", nil
		}
		return p.Network, err
	}
	all, err := y.Config.IPAM.Pools(tx)
	for _, p := range all {
		if p.ID == pool {
			network = p.Network
		}
	}
	return network, err
}

// requestOwn allots an address from a pool of netyard's own IPAM.
func requestOwn(y *yard.Yard, r ipam.AddressRequest) (a netip.Prefix, err error) {
	err = y.Update("address recorded", func(tx store.Tx) error {
		a, err = y.Config.IPAM.RequestAddress(tx, r)
		if !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		siblings, err := siblings(y, tx, r.Pool)
		if err != nil {
			return err
		}
		for _, p := range siblings {
			next := r
			next.Pool = p.ID
			if a, err = y.Config.IPAM.RequestAddress(tx, next); !errors.Is(err, ipam.ErrExhausted) {
				return err
			}
		}
		return fmt.Errorf("request address from pool %s: %w", r.Pool, ipam.ErrExhausted)
	})
	return a, err
}

// siblings returns the other pools of the same network and family.
func siblings(y *yard.Yard, tx store.Tx, id string) (out []ipam.Pool, err error) {
	all, err := y.Config.IPAM.Pools(tx)
	if err != nil {
		return nil, err
	}
	var own ipam.Pool
	for _, p := range all {
		if p.ID == id {
			own = p
		}
	}
	for _, p := range all {
		same := own.Network != "" && p.Network == own.Network && p.Subnet.Addr().Is4() == own.Subnet.Addr().Is4()
		if same && p.ID != id {
			out = append(out, p)
		}
	}
	return out, nil
}

// ReleaseAddress releases an address. Releasing an unknown one succeeds. An engine deletes an endpoint before it
// releases the address; if an endpoint still has it, the release is late, the address belongs to another endpoint by
// now, and the release is ignored. If that endpoint is dead, it is removed: an engine that was killed releases the
// addresses in its own records when it starts again, and sends no further request for their endpoints.
func ReleaseAddress(ctx context.Context, y *yard.Yard, pool string, a netip.Addr) error {
	if err := releaseDead(ctx, y, pool, a); err != nil {
		return err
	}
	if overlay.IsOverlay(pool) {
		return overlay.ReleaseClaim(y.Book, pool, a)
	}
	return y.Update("address released", func(tx store.Tx) error {
		if lease.IsDHCP(pool) {
			return lease.ReleaseGiven(y.Book, tx, pool, a)
		}
		all, err := y.Config.IPAM.Pools(tx)
		if err != nil {
			return err
		}
		var own ipam.Pool
		for _, p := range all {
			if p.ID == pool {
				own = p
			}
		}
		for _, p := range all { // it may be from another pool of the network, see RequestAddress
			if own.Network != "" && p.Network == own.Network && p.Subnet.Contains(a) {
				own = p
			}
		}
		if taken, err := book.Claimed(tx, own.Network, a); err != nil || taken {
			return err
		}
		return y.Config.IPAM.ReleaseAddress(tx, own.ID, a)
	})
}

// releaseDead removes the endpoint that has an address, if it is dead.
func releaseDead(ctx context.Context, y *yard.Yard, pool string, a netip.Addr) error {
	var e modes.Endpoint
	err := y.Config.Store.View(func(tx store.Tx) error {
		network, err := networkOf(y, tx, pool)
		if err != nil || network == "" {
			return err
		}
		h, found, err := book.AddressHolder(tx, network, a)
		if err != nil || !found {
			return err
		}
		e, err = book.GetEndpoint(tx, h.Network, h.Endpoint)
		return err
	})
	if err != nil || e.ID == "" {
		return err
	}
	dead, err := y.NewLiveCheck().Dead(ctx, e)
	if err != nil || !dead {
		return err
	}
	_, err = y.RemoveDead(ctx, e)
	return err
}

// Reserve reserves an address for the container called name; empty: for any that asks for this address.
func Reserve(y *yard.Yard, pool string, a netip.Addr, name string) error {
	return y.Config.Store.Update(func(tx store.Tx) error { return y.Config.IPAM.Reserve(tx, pool, a, name) })
}

// Forget removes a lease that nobody has.
func Forget(y *yard.Yard, pool string, a netip.Addr) error {
	return y.Config.Store.Update(func(tx store.Tx) error { return y.Config.IPAM.Free(tx, pool, a) })
}

// Leases returns all leases and all pools.
func Leases(y *yard.Yard) (ls []ipam.Lease, ps []ipam.Pool, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		if ps, err = y.Config.IPAM.Pools(tx); err != nil {
			return err
		}
		ls, err = y.Config.IPAM.Leases(tx)
		return err
	})
	return ls, ps, err
}
