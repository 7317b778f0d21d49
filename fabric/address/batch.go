package address

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"netyard/cluster"
	"netyard/cluster/record"
	"netyard/store"
)

// syncMany claims and releases many addresses in few transactions: each transaction is one message to every host of the
// network, and one wait for etcd's disks. It sets Synced in own; a batch with an address of another host is left to
// syncOne.
func (n *Network) syncMany(ctx context.Context, own []Own) error {
	var claims, gone []*Own
	for i := range own {
		switch o := &own[i]; {
		case o.Synced || o.Trying || o.Lost:
		case o.Gone:
			gone = append(gone, o)
		default:
			claims = append(claims, o)
		}
	}
	for some := range slices.Chunk(claims, cluster.MaxClaims) {
		var want []record.Address
		for _, o := range some {
			want = append(want, o.claim())
		}
		if err := n.r.c.Etcd.ClaimAddresses(ctx, n.member(), want...); errors.Is(err, cluster.ErrTaken) {
			continue
		} else if err != nil {
			return err
		}
		if err := n.updateMany(some, markSynced); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(gone, cluster.MaxClaims) {
		if err := n.r.c.Etcd.Release(ctx, n.member(), addrsOf(some)...); err != nil {
			return err
		}
		if err := n.updateMany(some, deleteReleased); err != nil {
			return err
		}
	}
	return nil
}

func addrsOf(own []*Own) (all []netip.Addr) {
	for _, o := range own {
		all = append(all, o.Addr)
	}
	return all
}

// updateMany calls update for each address that was written to etcd, with its current record, in one transaction.
func (n *Network) updateMany(some []*Own, update func(written, now Own, tx store.Tx) error) error {
	defer n.r.c.Changed(n.ID)
	err := n.r.c.Store.Update(func(tx store.Tx) error {
		for _, o := range some {
			now, err := owns.Get(tx, o.key())
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err == nil {
				err = update(*o, now, tx)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range some {
		o.Synced = true
	}
	return nil
}

// markSynced marks an address that was claimed in etcd as synced, unless it has changed meanwhile.
func markSynced(written, now Own, tx store.Tx) error {
	if !same(now, written) || now.Gone {
		return nil
	}
	now.Synced, now.Lost = true, false
	return owns.Put(tx, now.key(), now)
}

// deleteReleased deletes the record of an address that was released in etcd. One that was granted again meanwhile is
// claimed again by the next Sync: an earlier claim may have been released.
func deleteReleased(_, now Own, tx store.Tx) error {
	if !now.Gone {
		now.Synced = false
		return owns.Put(tx, now.key(), now)
	}
	return owns.Delete(tx, now.key())
}
