// Package pool allots pools and addresses to engines, from the source that a network uses: netyard's own IPAM, a DHCP
// server or the cluster.
package pool

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/live"
	"netyard/yard/source"
)

// RequestPool allots a pool. If the request names no subnet, the pool overlaps none of the host's routes, resolvers and
// networks.
func RequestPool(ctx context.Context, y *yard.Yard, r ipam.PoolRequest) (p ipam.Pool, err error) {
	if r.Subnet.IsValid() {
		if err := modes.CheckSubnet(r.Subnet); err != nil {
			return p, err
		}
	} else {
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
	return p, withOwner(y, err)
}

// withOwner adds to an error about overlapping pools the network that has the other pool, and how to remove it: it may
// be one that its user has given another name in the meantime.
func withOwner(y *yard.Yard, cause error) error {
	var overlap *ipam.OverlapError
	if !errors.As(cause, &overlap) || overlap.Other.Network == "" {
		return cause
	}
	n, err := y.Network(overlap.Other.Network)
	if err != nil {
		return cause // its network is being created or deleted
	}
	return fmt.Errorf("%w of network %s; if nothing needs that network, remove it: %s",
		cause, book.Label(n), n.RemoveCommand())
}

// busy returns the prefixes of the host's routes, of its resolvers, and of all recorded networks, whatever their IPAM,
// and those that no container can have.
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
	for _, b := range modes.Blocks() {
		busy = append(busy, b.Prefix)
	}
	return busy, nil
}

// ReleasePool releases a pool. Releasing an unknown one succeeds. A pool whose network could not be deleted, because
// containers are attached to it by CNI, stays until the network is deleted.
func ReleasePool(_ context.Context, y *yard.Yard, id string) error {
	return source.Of(y.Book, id).Close()
}

// RequestAddress allots an address. If the pool is full and its network has other pools of the family, the address
// comes from one of them: an engine asks only the first pool. Dead endpoints that have the address, or one of a full
// pool, are removed.
func RequestAddress(ctx context.Context, y *yard.Yard, r ipam.AddressRequest) (a netip.Prefix, err error) {
	from := source.Of(y.Book, r.Pool)
	err = y.RetryWithoutDead(ctx, func(j *live.Check) error {
		a, err = from.Acquire(ctx, j, r)
		if err != nil && from.Held(err) {
			return poolHolders(y, from, r.Addr, err)
		}
		return err
	})
	return a, err
}

// poolHolders adds to the cause why a request for an address failed the endpoints that have the address, or the pool's.
func poolHolders(y *yard.Yard, pool source.Pool, a netip.Addr, cause error) error {
	var held *book.HeldError
	err := y.Config.Store.View(func(tx store.Tx) error {
		network, err := pool.Network(tx)
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

// ReleaseAddress releases an address. Releasing an unknown one succeeds. An engine deletes an endpoint before it
// releases the address; if an endpoint still has it, the release is late, the address belongs to another endpoint by
// now, and the release is ignored. If that endpoint is dead, it is removed: an engine that was killed releases the
// addresses in its own records when it starts again, and sends no further request for their endpoints.
func ReleaseAddress(ctx context.Context, y *yard.Yard, pool string, a netip.Addr) error {
	from := source.Of(y.Book, pool)
	if err := releaseDead(ctx, y, from, a); err != nil {
		return err
	}
	return from.Release(a)
}

// releaseDead removes the endpoint that has an address, if it is dead.
func releaseDead(ctx context.Context, y *yard.Yard, pool source.Pool, a netip.Addr) error {
	var e modes.Endpoint
	err := y.Config.Store.View(func(tx store.Tx) error {
		network, err := pool.Network(tx)
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
	dead, err := live.NewCheck(y.Book).Dead(ctx, e)
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
