package fabric

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"netyard/cluster"
	"netyard/store"
)

// syncMany tells etcd of many addresses in few transactions: each transaction is one message to every host of the
// network, and one wait for etcd's disks. What it told is Synced in own; what others have is left to who looks at each.
func (a *Agent) syncMany(ctx context.Context, m cluster.Member, own []Own) error {
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
		var want []cluster.Address
		for _, o := range some {
			want = append(want, o.claim())
		}
		if err := a.c.Client.ClaimAddresses(ctx, m, want...); errors.Is(err, cluster.ErrTaken) {
			continue
		} else if err != nil {
			return err
		}
		if err := a.settleMany(m.Network, some, a.told); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(gone, cluster.MaxClaims) {
		if err := a.c.Client.Release(ctx, m, addrsOf(some)...); err != nil {
			return err
		}
		if err := a.settleMany(m.Network, some, a.released); err != nil {
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

// settleMany records what became of addresses that etcd was told of, each by what it is now.
func (a *Agent) settleMany(network string, some []*Own, settle func(told, now Own, tx store.Tx) error) error {
	defer a.rolls.doubt(network)
	err := a.c.Store.Update(func(tx store.Tx) error {
		for _, o := range some {
			now, err := owns.Get(tx, o.key())
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err == nil {
				err = settle(*o, now, tx)
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

// told is for an address that etcd has as it was; one that became another meanwhile is told again.
func (*Agent) told(told, now Own, tx store.Tx) error {
	if !same(now, told) || now.Gone {
		return nil
	}
	now.Synced, now.Lost = true, false
	return owns.Put(tx, now.key(), now)
}

// released is for an address that was given back, unless somebody took it meanwhile.
func (*Agent) released(_, now Own, tx store.Tx) error {
	if !now.Gone {
		return nil
	}
	return owns.Delete(tx, now.key())
}
