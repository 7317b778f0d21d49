package address

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/store"
)

// useTimeout is how long an address stays granted to an endpoint that does not publish it: an engine's requests end
// within seconds.
const useTimeout = 5 * time.Minute

// errTaken says that an address turned out to be another host's, so that Sync must be called again.
var errTaken = errors.New("an address is another host's now")

// Sync makes the host's addresses in etcd what they are in the database. The host must be a member of the network.
func (n *Network) Sync(ctx context.Context) error {
	own, err := n.r.List(n.ID)
	if err == nil {
		own, err = n.compareWithEtcd(own)
	}
	if err == nil {
		err = n.releaseUnused(own)
	}
	if err != nil {
		return err
	}
	var errs []error
	slices.SortStableFunc(own, func(o, p Own) int { // lost addresses first, see Own.Mute
		return rank(n.isRemote(o.Addr)) - rank(n.isRemote(p.Addr))
	})
	rest := slices.IndexFunc(own, func(o Own) bool { return !n.isRemote(o.Addr) })
	for i := range own {
		if i == rest { // the rest belong to no other host: all at once
			if err := n.syncMany(ctx, own[i:]); err != nil {
				errs = append(errs, err)
				break
			}
		}
		o := own[i]
		if o.Synced || o.Trying || o.Lost && !o.Gone && n.isRemote(o.Addr) {
			continue
		}
		err := n.syncOne(ctx, o)
		errs = append(errs, err)
		if errors.Is(err, etcd.ErrUnreachable) || errors.Is(err, cluster.ErrNotFound) || errors.Is(err, errTaken) {
			break // the others would fail alike, or their claims may change
		}
	}
	return errors.Join(errs...)
}

// rank returns a sort key: 0 if first is true, and 1 otherwise.
func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// compareWithEtcd finds addresses on which etcd and this host disagree although they were in step, after an old backup
// or a crash. What only this host has is claimed again; what only etcd has is released.
func (n *Network) compareWithEtcd(own []Own) ([]Own, error) {
	known := map[netip.Addr]bool{}
	for i, o := range own {
		known[o.Addr] = true
		want := o.record(n.r.c.Host)
		rec := n.claimed(o.Addr)
		if o.Synced && (rec == nil || !rec.Equal(*want) || !n.c.Claims.Has(want.Key())) {
			own[i].Synced = false
		}
	}
	var strays []Own
	n.c.Claims.Each(func(r record.Record) {
		if rec, ok := r.(*record.Address); ok && rec.Host == n.r.c.Host && !known[rec.Addr] {
			strays = append(strays, Own{Network: n.ID, Addr: rec.Addr, Use: record.Warm, Gone: true})
		}
	})
	if len(strays) == 0 {
		return own, nil
	}
	var put []Own
	err := n.r.c.Store.Update(func(tx store.Tx) (err error) {
		put, err = n.putNew(tx, strays)
		return err
	})
	return append(own, put...), err
}

// releaseUnused releases addresses that were granted to an endpoint which never published or never released them.
func (n *Network) releaseUnused(own []Own) error {
	for i, o := range own {
		if o.Use != record.Warm || o.Endpoint == "" || o.Gone || o.Trying || o.Since.IsZero() {
			continue
		}
		if time.Since(o.Since) < n.r.useTimeout {
			continue
		}
		if n.r.c.Held(o.Network, o.Addr) {
			continue
		}
		err := n.r.update(o, func(now Own, tx store.Tx) error {
			if now.Use != record.Warm || !now.Since.Equal(o.Since) {
				return nil
			}
			now.Gone, now.Synced = true, false
			own[i] = now
			return owns.Put(tx, now.key(), now)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// syncOne claims or releases one address in etcd.
func (n *Network) syncOne(ctx context.Context, o Own) error {
	if o.Gone {
		if !o.Lost {
			if err := n.r.c.Etcd.Release(ctx, n.member(), o.Addr); err != nil {
				return err
			}
		}
		return n.r.update(o, func(now Own, tx store.Tx) error { return deleteReleased(o, now, tx) })
	}
	err := n.r.c.Etcd.ClaimAddresses(ctx, n.member(), o.claim())
	if errors.Is(err, cluster.ErrTaken) {
		return n.lose(o)
	}
	if err != nil {
		return err
	}
	return n.r.update(o, func(now Own, tx store.Tx) error { return markSynced(o, now, tx) })
}

// lose records that an address is another host's; one that no endpoint has is forgotten.
func (n *Network) lose(o Own) error {
	if o.Endpoint == "" {
		n.c.HostChanged()
		return n.r.update(o, func(now Own, tx store.Tx) error {
			if now.Endpoint != "" { // granted meanwhile; the next Sync marks it as lost
				return nil
			}
			return owns.Delete(tx, o.key())
		})
	}
	if !o.Lost {
		n.r.c.Log.Error("address lost to another host", "network", n.Name, "network_id", n.ID, "address", o.Addr,
			"endpoint", o.Endpoint)
	}
	err := n.r.update(o, func(now Own, tx store.Tx) error {
		now.Lost, now.Synced = true, false
		return owns.Put(tx, o.key(), now)
	})
	return errors.Join(err, n.updateMute(), errTaken)
}

// Fenced returns the endpoints that have another host's address, and that address. None of their addresses are
// published any more.
func (n *Network) Fenced() (map[string]netip.Addr, error) {
	if err := n.updateMute(); err != nil {
		return nil, err
	}
	own, err := n.r.List(n.ID)
	fenced := map[string]netip.Addr{}
	for _, o := range own {
		if o.fences() {
			fenced[o.Endpoint] = o.Addr
		}
	}
	return fenced, err
}

// updateMute mutes the other addresses of fenced endpoints, and unmutes those of endpoints that are not fenced.
func (n *Network) updateMute() error {
	own, err := n.r.List(n.ID)
	if err != nil {
		return err
	}
	fenced := map[string]bool{}
	for _, o := range own {
		fenced[o.Endpoint] = fenced[o.Endpoint] || o.fences()
	}
	if !slices.ContainsFunc(own, func(o Own) bool { return o.Mute != fenced[o.Endpoint] }) {
		return nil
	}
	return n.r.updateAll(n.ID, func(o *Own) bool {
		if o.Mute == fenced[o.Endpoint] {
			return false
		}
		o.Mute, o.Synced = fenced[o.Endpoint], false
		return true
	})
}
