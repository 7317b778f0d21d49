package address

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/store"
)

// A Wish is a request for an address of a network, for an endpoint.
type Wish struct {
	Network  string // its ID in the cluster
	Endpoint string
	// Addr is the wanted address; invalid: any, of the family that V6 says.
	Addr netip.Addr
	V6   bool
}

// ErrNone says that no address can be granted.
var ErrNone = errors.New("no address can be claimed")

// errUnbound says that a network is not on this host any more.
var errUnbound = errors.New("it is not on this host any more")

// errPending says that an address is recorded already: it was claimed as a spare one, or another request claims it.
var errPending = fmt.Errorf("%w by another request of this host", cluster.ErrTaken)

// Grant gives an endpoint an address: a spare one, at once, or else one that it claims in etcd. A repeated request gets
// the same address.
func (n *Network) Grant(ctx context.Context, w Wish) (netip.Addr, error) {
	if _, ok := n.Find(w.Addr); w.Addr.IsValid() && (!ok || n.isGateway(w.Addr)) {
		return netip.Addr{}, fmt.Errorf("address %s is not usable by a container on network %s", w.Addr, n.Name)
	}
	if err := n.mayGrant(); err != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
	}
	got, err := n.fromWarm(w)
	if err != nil || got.IsValid() {
		n.r.c.Wake()
		return got, err
	}
	const attempts = 8
	for range attempts {
		got, err = n.claim(ctx, w)
		if w.Addr.IsValid() || !errors.Is(err, errPending) {
			break
		}
	}
	return got, err
}

// mayGrant returns why this host must not grant any address: its spare ones may belong to another host.
func (n *Network) mayGrant() error {
	reason := n.r.c.Reason()
	if errors.Is(reason, cluster.ErrForgotten) || errors.Is(reason, cluster.ErrTwin) {
		return reason
	}
	return nil
}

// fromWarm returns the address that the endpoint has already, or a spare one; while etcd is away also one that is to be
// released, since it still belongs to this host then. The address is invalid if there is none.
func (n *Network) fromWarm(w Wish) (got netip.Addr, err error) {
	away := !n.r.c.Etcd.Health().Down.IsZero()
	err = n.r.c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, n.ID+"/")
		if err != nil {
			return err
		}
		var best Own
		for _, o := range all {
			if o.Lost && !o.Gone && o.Addr == w.Addr {
				return fmt.Errorf("address %s %w by another host", w.Addr, cluster.ErrTaken)
			}
			if o.Lost || o.Trying || o.Unsure || o.Use == record.OfHost || w.Addr.IsValid() && o.Addr != w.Addr ||
				!w.Addr.IsValid() && o.Addr.Is6() != w.V6 {
				continue
			}
			mine, idle := o.Endpoint == w.Endpoint, o.Endpoint == "" || o.Gone
			switch {
			case mine && !o.Gone:
				got = o.Addr
				return nil
			case !idle && w.Addr.IsValid():
				return fmt.Errorf("address %s %w by another container of this host", w.Addr, cluster.ErrTaken)
			case idle && !o.Gone, idle && w.Addr.IsValid(), idle && away && !best.Addr.IsValid():
				best = o
			}
		}
		if !best.Addr.IsValid() {
			return nil
		}
		got = best.Addr
		// The endpoint is written to etcd by Publish.
		best.Endpoint, best.Gone, best.Since = w.Endpoint, false, time.Now()
		return owns.Put(tx, best.key(), best)
	})
	return got, err
}

// claim claims an address in etcd for an endpoint.
func (n *Network) claim(ctx context.Context, w Wish) (netip.Addr, error) {
	tries := []netip.Addr{w.Addr}
	if !w.Addr.IsValid() {
		var err error
		if tries, err = n.candidates(w.V6); err != nil {
			return netip.Addr{}, err
		}
	}
	if len(tries) == 0 {
		return netip.Addr{}, fmt.Errorf("%w on network %s: all addresses are in use", ErrNone, n.Name)
	}
	var pending error
	for _, addr := range tries {
		o := Own{Network: n.ID, Addr: addr, Use: record.Warm, Endpoint: w.Endpoint, Since: time.Now()}
		switch err := n.claimOne(ctx, o, w.Addr.IsValid()); {
		case err == nil:
			return addr, nil
		case w.Addr.IsValid() && errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("network %s: %w", n.Name, err)
		case errors.Is(err, errPending):
			pending = err
		case !errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
		}
	}
	if pending != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, pending)
	}
	return netip.Addr{}, fmt.Errorf("%w on network %s: other hosts claimed the last free ones", ErrNone, n.Name)
}

// candidates returns addresses that are free and that no other request of this host is claiming; those in cooldown come
// last.
func (n *Network) candidates(v6 bool) ([]netip.Addr, error) {
	own, err := n.r.List(n.ID)
	if err != nil {
		return nil, err
	}
	recent := map[netip.Addr]bool{} // claimed by this host, but not in the mirror yet
	for _, o := range own {
		if n.isFree(o.Addr) {
			recent[o.Addr] = true
		}
	}
	want := MaxWarm + len(recent)
	tries := n.freeAddrs(v6, want)
	if len(tries) < want {
		tries = append(tries, n.coolingAddrs(v6, want-len(tries))...)
	}
	return slices.DeleteFunc(tries, func(addr netip.Addr) bool { return recent[addr] }), nil
}

// claimOne claims one address in etcd. It is recorded before, so that it is released whatever happens. Etcd does not
// tell requests of one host apart, so the database decides which of them gets an address. The record is gone if the
// network was unbound meanwhile.
func (n *Network) claimOne(ctx context.Context, o Own, named bool) error {
	o.Trying = true
	if err := n.r.c.Store.Update(func(tx store.Tx) error { return n.reserve(tx, o, named) }); err != nil {
		return err
	}
	err := n.r.c.Etcd.ClaimAddresses(ctx, n.member(), o.claim())
	if errors.Is(err, cluster.ErrNotFound) { // this host has not joined the new network yet
		if err = n.c.Join(ctx); err == nil {
			err = n.r.c.Etcd.ClaimAddresses(ctx, n.member(), o.claim())
		}
	}
	reserved := o
	o.Trying, o.Synced = false, true
	put := func(tx store.Tx) error { return owns.Put(tx, o.key(), o) }
	if errors.Is(err, cluster.ErrTaken) {
		put = func(tx store.Tx) error { return owns.Delete(tx, o.key()) }
	} else if err != nil { // etcd may have accepted the claim all the same
		o.Endpoint, o.Gone, o.Unsure, o.Synced = "", true, true, false
	}
	return errors.Join(err, n.r.c.Store.Update(func(tx store.Tx) error {
		if there, err := isReserved(tx, reserved); err != nil {
			return err
		} else if !there {
			return errUnbound
		}
		return put(tx)
	}))
}

// Room returns why no address of a family could be granted now: there is no spare one, and etcd does not answer or
// has none free.
func (n *Network) Room(v6 bool) error {
	reason := n.r.c.Reason()
	if down := n.r.c.Etcd.Health().Down; reason == nil && !down.IsZero() {
		reason = fmt.Errorf("%w since %s", etcd.ErrUnreachable, down.Format(time.RFC3339))
	}
	switch {
	case reason == nil && len(n.freeAddrs(v6, 1)) > 0:
		return nil
	case reason == nil:
		reason = errors.New("all addresses are in use")
	}
	own, err := n.r.List(n.ID)
	if err != nil || slices.ContainsFunc(own, func(o Own) bool { return o.Idle() && o.Addr.Is6() == v6 }) {
		return err
	}
	return fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, reason)
}
