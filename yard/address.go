package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// claims says which endpoint of a network has an address, so that neither a late release nor a reaper takes it away.
var claims = store.Bucket[string]{Name: "claims"}

func claimKey(network string, a netip.Addr) string { return network + "/" + a.String() }

// setClaims makes the claims of an endpoint what its record says.
func setClaims(tx store.Tx, e modes.Endpoint) error {
	for _, a := range e.Addrs {
		key := claimKey(e.NetworkID, a.Addr())
		if e.Phase == modes.Deleting {
			if err := dropClaim(tx, key, e.ID); err != nil {
				return err
			}
			continue
		}
		if err := claims.Put(tx, key, e.ID); err != nil {
			return err
		}
	}
	return nil
}

func dropClaim(tx store.Tx, key, endpoint string) error {
	holder, err := claims.Get(tx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && holder != endpoint {
		return nil
	}
	if err != nil {
		return err
	}
	return claims.Delete(tx, key)
}

func claimed(tx store.Tx, network string, a netip.Addr) (bool, error) {
	_, err := claims.Get(tx, claimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// RequestPool hands out a pool. One without a subnet keeps clear of everything the host has a route to.
func (y *Yard) RequestPool(ctx context.Context, r ipam.PoolRequest) (p ipam.Pool, err error) {
	if !r.Subnet.IsValid() {
		busy, err := y.busy()
		if err != nil {
			return p, err
		}
		r.Busy = append(r.Busy, busy...)
	}
	if err := ctx.Err(); err != nil {
		return p, err
	}
	r.Abandoned = y.started
	err = y.update("pool recorded", func(tx store.Tx) error {
		p, err = y.c.IPAM.RequestPool(tx, r)
		return err
	})
	return p, err
}

// busy is what the host's routes and the networks already recorded take, whatever IPAM they use.
func (y *Yard) busy() ([]netip.Prefix, error) {
	busy, err := y.c.Kernel.Busy("")
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

// ReleasePool gives a pool back; an unknown one is free. One whose network could not be deleted, since containers are
// attached to it by CNI, stays until the network goes.
func (y *Yard) ReleasePool(_ context.Context, id string) error {
	if isOverlay(id) {
		return nil
	}
	if isDHCP(id) {
		return y.releaseDHCPPool(id)
	}
	return y.update("pool released", func(tx store.Tx) error {
		used, err := y.hasAttachments(tx, id)
		if err != nil || used {
			return err
		}
		return y.c.IPAM.ReleasePool(tx, id)
	})
}

// hasAttachments says whether the pool's network has endpoints that came by CNI.
func (y *Yard) hasAttachments(tx store.Tx, pool string) (has bool, err error) {
	all, err := y.c.IPAM.Pools(tx)
	if err != nil {
		return false, err
	}
	for _, p := range all {
		if p.ID != pool || p.Network == "" {
			continue
		}
		es, err := endpoints.List(tx, endpointKey(p.Network, ""))
		return slices.ContainsFunc(es, func(e modes.Endpoint) bool { return e.Attachment != "" && e.Phase != modes.Deleting }), err
	}
	return false, nil
}

// RequestAddress hands out an address. When the pool is full and its network has others of the family, one of them
// gives it: an engine asks only for the first. Dead endpoints that have the address, or one of a pool that is full,
// give way.
func (y *Yard) RequestAddress(ctx context.Context, r ipam.AddressRequest) (a netip.Prefix, err error) {
	err = y.past(ctx, func(j *judge) error {
		switch {
		case isOverlay(r.Pool):
			a, err = y.requestClaim(ctx, r)
		case isDHCP(r.Pool):
			a, err = y.requestLease(ctx, j, leaseRequest{AddressRequest: r})
			return err
		default:
			a, err = y.requestOwn(r)
		}
		if err == nil || !isOverlay(r.Pool) && !errors.Is(err, ipam.ErrTaken) && !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		return y.heldAddress(r.Pool, r.Addr, err)
	})
	return a, err
}

// heldAddress says of a request for an address which failed who has the address, or those of its pool.
func (y *Yard) heldAddress(pool string, a netip.Addr, cause error) (held error) {
	err := y.c.Store.View(func(tx store.Tx) error {
		network, err := y.networkOf(tx, pool)
		if err != nil || network == "" {
			return err
		}
		held, err = holdersOf(tx, network, cause, a)
		return err
	})
	if held == nil {
		return errors.Join(cause, err)
	}
	return held
}

// holdersOf are the endpoints that have addresses of a network; those of all, of which one will do, where none is
// named.
func holdersOf(tx store.Tx, network string, cause error, addrs ...netip.Addr) (*heldError, error) {
	held := &heldError{error: cause}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		h, found, err := addressHolder(tx, network, a)
		if err != nil {
			return nil, err
		}
		if found {
			held.error, held.holders = fmt.Errorf("%w (%s)", held.error, inUseBy(tx, h)), append(held.holders, h)
		}
	}
	if len(addrs) > 0 && addrs[0].IsValid() {
		return held, nil
	}
	es, err := endpoints.List(tx, endpointKey(network, ""))
	for _, e := range es {
		held.holders = append(held.holders, holder{e.NetworkID, e.ID})
	}
	held.one = true
	return held, err
}

// networkOf is the network whose addresses a pool has; empty when there is none yet.
func (y *Yard) networkOf(tx store.Tx, pool string) (network string, err error) {
	switch {
	case isOverlay(pool):
		name, _, err := parseOverlayPool(pool)
		if err != nil {
			return "", err
		}
		ns, err := networks.List(tx, "")
		for _, n := range ns {
			if y.isOverlayNamed(n, name) {
				return n.ID, err
			}
		}
		return "", err
	case isDHCP(pool):
		p, err := dhcpPools.Get(tx, pool)
		if errors.Is(err, store.ErrNotFound) {
			return "", nil
		}
		return p.Network, err
	}
	all, err := y.c.IPAM.Pools(tx)
	for _, p := range all {
		if p.ID == pool {
			network = p.Network
		}
	}
	return network, err
}

// requestOwn hands out an address of netyard's own pools.
func (y *Yard) requestOwn(r ipam.AddressRequest) (a netip.Prefix, err error) {
	err = y.update("address recorded", func(tx store.Tx) error {
		a, err = y.c.IPAM.RequestAddress(tx, r)
		if !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		siblings, err := y.siblings(tx, r.Pool)
		if err != nil {
			return err
		}
		for _, p := range siblings {
			next := r
			next.Pool = p.ID
			if a, err = y.c.IPAM.RequestAddress(tx, next); !errors.Is(err, ipam.ErrExhausted) {
				return err
			}
		}
		return fmt.Errorf("request address from pool %s: %w", r.Pool, ipam.ErrExhausted)
	})
	return a, err
}

// siblings are the other pools of the same network and family.
func (y *Yard) siblings(tx store.Tx, id string) (out []ipam.Pool, err error) {
	all, err := y.c.IPAM.Pools(tx)
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
		if p.ID != id && own.Network != "" && p.Network == own.Network && p.Subnet.Addr().Is4() == own.Subnet.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out, nil
}

// ReleaseAddress gives an address back; an unknown one is free. An engine deletes the endpoint first, so an address
// that an endpoint still has is not the caller's any more: the release is a late one, and is not believed. If that
// endpoint is dead it goes now: an engine that was killed releases the addresses it finds in its records when it starts
// again, and says no more of them.
func (y *Yard) ReleaseAddress(ctx context.Context, pool string, a netip.Addr) error {
	if err := y.releaseDead(ctx, pool, a); err != nil {
		return err
	}
	if isOverlay(pool) {
		return y.releaseClaim(pool, a)
	}
	return y.update("address released", func(tx store.Tx) error {
		if isDHCP(pool) {
			return y.releaseGiven(tx, pool, a)
		}
		all, err := y.c.IPAM.Pools(tx)
		if err != nil {
			return err
		}
		var own ipam.Pool
		for _, p := range all {
			if p.ID == pool {
				own = p
			}
		}
		for _, p := range all { // it may have come from a sibling, see RequestAddress
			if own.Network != "" && p.Network == own.Network && p.Subnet.Contains(a) {
				own = p
			}
		}
		if taken, err := claimed(tx, own.Network, a); err != nil || taken {
			return err
		}
		return y.c.IPAM.ReleaseAddress(tx, own.ID, a)
	})
}

// releaseDead drops the endpoint that has an address, if it is dead.
func (y *Yard) releaseDead(ctx context.Context, pool string, a netip.Addr) error {
	var e modes.Endpoint
	err := y.c.Store.View(func(tx store.Tx) error {
		network, err := y.networkOf(tx, pool)
		if err != nil || network == "" {
			return err
		}
		h, found, err := addressHolder(tx, network, a)
		if err != nil || !found {
			return err
		}
		e, err = getEndpoint(tx, h.Network, h.Endpoint)
		return err
	})
	if err != nil || e.ID == "" {
		return err
	}
	dead, err := y.newJudge().dead(ctx, e)
	if err != nil || !dead {
		return err
	}
	_, err = y.buryDead(ctx, e)
	return err
}

// Reserve keeps an address for whoever asks for it by address, or for the container called name.
func (y *Yard) Reserve(pool string, a netip.Addr, name string) error {
	return y.c.Store.Update(func(tx store.Tx) error { return y.c.IPAM.Reserve(tx, pool, a, name) })
}

// Forget drops a lease that nobody has.
func (y *Yard) Forget(pool string, a netip.Addr) error {
	return y.c.Store.Update(func(tx store.Tx) error { return y.c.IPAM.Forget(tx, pool, a) })
}

// Leases returns all leases and the pools they are of.
func (y *Yard) Leases() (ls []ipam.Lease, ps []ipam.Pool, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		if ps, err = y.c.IPAM.Pools(tx); err != nil {
			return err
		}
		ls, err = y.c.IPAM.Leases(tx)
		return err
	})
	return ls, ps, err
}
