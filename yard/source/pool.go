package source

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/live"
	"netyard/yard/overlay"
)

// A Pool is a pool as an engine uses it: it requests addresses and releases them, and names the pool.
type Pool interface {
	// Acquire gets an address for an engine.
	Acquire(ctx context.Context, j *live.Check, r ipam.AddressRequest) (netip.Prefix, error)
	// Held reports whether an error of Acquire may be due to endpoints that have the address, or all of the pool.
	Held(err error) bool
	// Release releases an address, unless an endpoint has it: then the release came too late.
	Release(a netip.Addr) error
	// Network returns the network that the pool belongs to; empty: there is none yet.
	Network(tx store.Tx) (string, error)
	// Close releases the pool.
	Close() error
}

// Of returns the pool of an ID.
func Of(y *book.Book, id string) Pool {
	switch {
	case overlay.IsOverlay(id):
		return clusterPool{y, id}
	case lease.IsDHCP(id):
		return dhcpPool{y, id}
	}
	return ownPool{y, id}
}

// A clusterPool is a subnet of an overlay.
type clusterPool struct {
	y  *book.Book
	id string
}

func (p clusterPool) Acquire(ctx context.Context, _ *live.Check, r ipam.AddressRequest) (netip.Prefix, error) {
	return overlay.RequestClaim(ctx, p.y, r)
}

func (clusterPool) Held(error) bool { return true }

func (p clusterPool) Release(a netip.Addr) error { return overlay.ReleaseClaim(p.y, p.id, a) }

func (p clusterPool) Network(tx store.Tx) (string, error) {
	name, _, err := overlay.ParseOverlayPool(p.id)
	if err != nil {
		return "", err
	}
	ns, err := book.Networks.List(tx, "")
	for _, n := range ns {
		if overlay.IsOverlayNamed(p.y, n, name) {
			return n.ID, err
		}
	}
	return "", err
}

// Close does nothing: the pool has no record.
func (clusterPool) Close() error { return nil }

// A dhcpPool is a LAN whose DHCP server gives the addresses.
type dhcpPool struct {
	y  *book.Book
	id string
}

func (dhcpPool) Acquire(ctx context.Context, j *live.Check, r ipam.AddressRequest) (netip.Prefix, error) {
	return lease.RequestLease(ctx, j, lease.Request{AddressRequest: r})
}

func (dhcpPool) Held(error) bool { return false }

func (p dhcpPool) Release(a netip.Addr) error {
	return p.y.Update("address released", func(tx store.Tx) error { return lease.ReleaseGiven(p.y, tx, p.id, a) })
}

func (p dhcpPool) Network(tx store.Tx) (string, error) {
	is, err := lease.DHCPPools.Get(tx, p.id)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	return is.Network, err
}

func (p dhcpPool) Close() error { return lease.ReleaseDHCPPool(p.y, p.id) }

// An ownPool is a pool of netyard's own IPAM.
type ownPool struct {
	y  *book.Book
	id string
}

// Acquire gets an address from the pool, or, if it is full, from another one of the same network and family: an engine
// asks only the first pool.
func (p ownPool) Acquire(_ context.Context, _ *live.Check, r ipam.AddressRequest) (a netip.Prefix, err error) {
	own := p.y.Config.IPAM
	if r.Not, err = p.hostAddrs(r); err != nil {
		return a, err
	}
	err = p.y.Update("address recorded", func(tx store.Tx) error {
		a, err = own.RequestAddress(tx, r)
		if !errors.Is(err, ipam.ErrExhausted) {
			return err
		}
		is, all, err := p.find(tx)
		if err != nil {
			return err
		}
		for _, o := range all {
			if o.ID == p.id || !sameNetwork(o, is) || o.Subnet.Addr().Is4() != is.Subnet.Addr().Is4() {
				continue
			}
			next := r
			next.Pool = o.ID
			if a, err = own.RequestAddress(tx, next); !errors.Is(err, ipam.ErrExhausted) {
				return err
			}
		}
		return fmt.Errorf("request address from pool %s: %w", r.Pool, ipam.ErrExhausted)
	})
	return a, err
}

func (ownPool) Held(err error) bool {
	return errors.Is(err, ipam.ErrTaken) || errors.Is(err, ipam.ErrExhausted)
}

func (p ownPool) Release(a netip.Addr) error {
	return p.y.Update("address released", func(tx store.Tx) error {
		is, all, err := p.find(tx)
		if err != nil {
			return err
		}
		for _, o := range all { // it may be from another pool of the network, see Acquire
			if sameNetwork(o, is) && o.Subnet.Contains(a) {
				is = o
			}
		}
		if taken, err := book.Claimed(tx, is.Network, a); err != nil || taken {
			return err
		}
		return p.y.Config.IPAM.ReleaseAddress(tx, is.ID, a)
	})
}

func (p ownPool) Network(tx store.Tx) (string, error) {
	is, _, err := p.find(tx)
	return is.Network, err
}

// Close releases the pool, unless containers are attached to its network by CNI.
func (p ownPool) Close() error {
	return p.y.Update("pool released", func(tx store.Tx) error {
		is, _, err := p.find(tx)
		if err != nil {
			return err
		}
		if is.Network != "" {
			es, err := book.Endpoints.List(tx, book.EndpointKey(is.Network, ""))
			attached := slices.ContainsFunc(es, func(e modes.Endpoint) bool {
				return e.Attachment != "" && e.Phase != modes.Deleting
			})
			if err != nil || attached {
				return err
			}
		}
		return p.y.Config.IPAM.ReleasePool(tx, p.id)
	})
}

// find returns the pool, which need not exist, and all others.
func (p ownPool) find(tx store.Tx) (is ipam.Pool, all []ipam.Pool, err error) {
	all, err = p.y.Config.IPAM.Pools(tx)
	if at := slices.IndexFunc(all, func(o ipam.Pool) bool { return o.ID == p.id }); at >= 0 {
		is = all[at]
	}
	return is, all, err
}

// sameNetwork reports whether two pools belong to the same network.
func sameNetwork(a, b ipam.Pool) bool { return a.Network != "" && a.Network == b.Network }
