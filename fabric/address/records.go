package address

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/store"
)

// Etcd is where claims are written.
type Etcd interface {
	ClaimAddresses(ctx context.Context, m record.Member, want ...record.Address) error
	Release(ctx context.Context, m record.Member, addrs ...netip.Addr) error
	Health() etcd.Health
}

// Config is what the addresses of all networks need.
type Config struct {
	Log   *slog.Logger
	Store *store.Store
	Etcd  Etcd
	// Host is this host's ID.
	Host string
	// Cooldown is how long an address that a container had is avoided while another is free.
	Cooldown time.Duration
	// Held says whether an endpoint of this host has an address of a network or will use it again, although it is not
	// published.
	Held func(network string, addr netip.Addr) bool
	// Bound says whether a network is on this host.
	Bound func(tx store.Tx, network string) bool
	// Reason returns why this host is not a member of the cluster at the moment; nil: it is one.
	Reason func() error
	// Changed is called after addresses of a network have changed in the database, and Wake when Sync has work.
	Changed func(network string)
	Wake    func()
}

// Records are the addresses of this host on all networks, as its database has them.
type Records struct {
	c Config
	// useTimeout is the constant of this name; shorter in tests.
	useTimeout time.Duration
}

// Open returns the host's addresses. It marks for release those that a daemon before this one was claiming when it
// died.
func Open(c Config) (*Records, error) {
	r := &Records{c: c, useTimeout: useTimeout}
	return r, c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, "")
		if err != nil {
			return err
		}
		for _, o := range all {
			if !o.Trying {
				continue
			}
			o.Trying, o.Endpoint, o.Gone, o.Unsure = false, "", true, true
			if err := owns.Put(tx, o.key(), o); err != nil {
				return err
			}
		}
		return nil
	})
}

// List returns the addresses that this host has in a network.
func (r *Records) List(network string) (all []Own, err error) {
	err = r.c.Store.View(func(tx store.Tx) (err error) {
		all, err = owns.List(tx, network+"/")
		return err
	})
	return all, err
}

// Publish records the MAC and the names of an endpoint and its addresses, and has them written to etcd, where the other
// hosts see them. An address that was not granted here is claimed.
func (r *Records) Publish(
	network string, addrs []netip.Addr, endpoint string, mac record.MAC, name string, aliases []string,
) error {
	defer r.c.Wake()
	defer r.c.Changed(network)
	return r.c.Store.Update(func(tx store.Tx) error {
		for _, addr := range addrs {
			o, err := owns.Get(tx, Own{Network: network, Addr: addr}.key())
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if o.Lost {
				return fmt.Errorf("address %s %w by another host", addr, cluster.ErrTaken)
			}
			now := Own{
				Network: network, Addr: addr, Use: record.Endpoint, Endpoint: endpoint, MAC: mac,
				Name: name, Aliases: aliases, Mute: o.Mute,
			}
			if _, err := record.Encode(now.record(r.c.Host)); err != nil {
				return err
			}
			now.Synced = o.Synced && !o.Gone && same(o, now)
			if err := owns.Put(tx, now.key(), now); err != nil {
				return err
			}
		}
		return nil
	})
}

// Rename changes the names of a published endpoint.
func (r *Records) Rename(network, endpoint, name string, aliases []string) error {
	return r.updateAll(network, func(o *Own) bool {
		if o.Use != record.Endpoint || o.Endpoint != endpoint || o.Name == name && slices.Equal(o.Aliases, aliases) {
			return false
		}
		o.Name, o.Aliases, o.Synced = name, aliases, false
		return true
	})
}

// Withdraw undoes Publish: an endpoint is not reached by its addresses any more. They stay granted until Release.
func (r *Records) Withdraw(network, endpoint string) error {
	return r.updateAll(network, func(o *Own) bool {
		if o.Use != record.Endpoint || o.Endpoint != endpoint {
			return false
		}
		o.Use, o.MAC, o.Name, o.Aliases, o.Synced, o.Since = record.Warm, "", "", nil, false, time.Now()
		return true
	})
}

// Release returns a granted address.
func (r *Records) Release(network string, addr netip.Addr) error {
	return r.updateAll(network, func(o *Own) bool {
		if o.Addr != addr || o.Use == record.OfHost || o.Endpoint == "" {
			return false
		}
		o.Gone, o.Synced = true, false
		return true
	})
}

// updateAll records the addresses of a network that f changes; f returns whether it changed one.
func (r *Records) updateAll(network string, f func(*Own) bool) error {
	defer r.c.Wake()
	defer r.c.Changed(network)
	return r.c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, network+"/")
		if err != nil {
			return err
		}
		for _, o := range all {
			if !f(&o) {
				continue
			}
			if err := owns.Put(tx, o.key(), o); err != nil {
				return err
			}
		}
		return nil
	})
}

// update calls f with the current record of an address, in a transaction; a deleted one is left alone.
func (r *Records) update(o Own, f func(Own, store.Tx) error) error {
	defer r.c.Changed(o.Network)
	return r.c.Store.Update(func(tx store.Tx) error {
		now, err := owns.Get(tx, o.key())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(now, tx)
	})
}

// reserve records that an address is being claimed, unless it is recorded already. It replaces one that is to be
// released and may be another host's and, if the request named the address, the host's own one, for which another is
// claimed.
func (n *Network) reserve(tx store.Tx, o Own, named bool) error {
	if !n.r.c.Bound(tx, n.ID) {
		return errUnbound
	}
	has, err := owns.Get(tx, o.key())
	replaced := (has.Lost || has.Unsure) && has.Gone || named && has.Use == record.OfHost
	switch {
	case err == nil && !replaced:
		return fmt.Errorf("address %s %w", o.Addr, errPending)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	return owns.Put(tx, o.key(), o)
}

// isReserved says whether an address is still recorded by the reserve of a claim.
func isReserved(tx store.Tx, o Own) (bool, error) {
	now, err := owns.Get(tx, o.key())
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return now.Trying && now.Endpoint == o.Endpoint, err
}

// putNew records those addresses that are not recorded yet, and returns them; a recorded one was claimed meanwhile. It
// records none of a network that is not on this host any more.
func (n *Network) putNew(tx store.Tx, own []Own) (put []Own, err error) {
	if !n.r.c.Bound(tx, n.ID) {
		return nil, nil
	}
	for _, o := range own {
		_, err := owns.Get(tx, o.key())
		if err == nil {
			continue
		}
		if errors.Is(err, store.ErrNotFound) {
			err = owns.Put(tx, o.key(), o)
		}
		if err != nil {
			return nil, err
		}
		put = append(put, o)
	}
	return put, nil
}

// SetMAC updates the MAC of the host's own addresses of a network: that of a bridge can change with the host's.
func SetMAC(tx store.Tx, network string, mac record.MAC) error {
	own, err := owns.List(tx, network+"/")
	if err != nil {
		return err
	}
	for _, o := range own {
		if o.Use != record.OfHost || o.MAC == mac {
			continue
		}
		o.MAC, o.Synced = mac, false
		if err := owns.Put(tx, o.key(), o); err != nil {
			return err
		}
	}
	return nil
}

// Forget deletes what is recorded of the addresses of a network.
func Forget(tx store.Tx, network string) error {
	for _, key := range owns.Keys(tx, network+"/") {
		if err := owns.Delete(tx, key); err != nil {
			return err
		}
	}
	for _, key := range cooling.Keys(tx, network+"/") {
		if err := cooling.Delete(tx, key); err != nil {
			return err
		}
	}
	return nil
}
