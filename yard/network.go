package yard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// CreateNetwork records n, brings it up, and undoes both if it cannot. A network of the same id that is the same is
// success: the caller may have died before it heard of it.
func (y *Yard) CreateNetwork(ctx context.Context, n modes.Network) error {
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	if y.c.Offered != nil && !slices.Contains(y.c.Offered, n.Mode) {
		return fmt.Errorf("%w: mode=%s is not offered by this daemon's configuration", modes.ErrOption, n.Mode)
	}
	if err := y.claimSpace(&n); err != nil {
		return err
	}
	if err := m.Check(n); err != nil {
		return err
	}
	release, err := y.locks.hold(ctx, n.ID, false)
	if err != nil {
		return err
	}
	defer release()
	if done, err := y.settleFormer(ctx, n); done || err != nil {
		return err
	}
	if err := y.markChosen(n); err != nil {
		return err
	}
	if s, ok := m.(modes.Settler); ok {
		if n.Settled, err = s.Settle(ctx, n); err != nil {
			return err
		}
	}
	if err := y.checkLAN(m, n); err != nil {
		return err
	}
	n.Phase, n.Created, n.Turned = modes.Pending, y.c.Now(), y.c.Now()
	err = y.update("network recorded", func(tx store.Tx) error {
		if err := y.share(tx, m, n); err != nil {
			return err
		}
		return y.putNew(tx, n)
	})
	if err != nil {
		return err
	}
	if err := y.up(ctx, m, n); err != nil {
		return errors.Join(err, y.drop(context.WithoutCancel(ctx), m, n))
	}
	y.c.Log.Info("network is up", "network", n.ID, "mode", n.Mode)
	y.tell(Event{Type: NetworkCreated, Network: n.Name, NetworkID: n.ID, Text: fmt.Sprintf("network %s of mode %s is up", label(n), n.Mode)})
	y.c.Changed()
	return nil
}

// share asks a mode whether a new network can be beside those on record. In the transaction that records it, so that of
// two that cannot be beside each other only one is.
func (y *Yard) share(tx store.Tx, m modes.Mode, n modes.Network) error {
	s, ok := m.(modes.Sharer)
	if !ok {
		return nil
	}
	others, err := networks.List(tx, "")
	if err != nil {
		return err
	}
	return s.Share(n, others)
}

// markChosen notes which subnets of a new network nobody named: netyard's own IPAM knows.
func (y *Yard) markChosen(n modes.Network) error {
	return y.c.Store.View(func(tx store.Tx) error {
		for i, s := range n.Subnets {
			if s.Space != Space {
				continue
			}
			p, err := y.c.IPAM.PoolOf(tx, s.Pool, "")
			if err != nil && !errors.Is(err, ipam.ErrNotFound) {
				return err
			}
			n.Subnets[i].Chosen = p.Chosen
		}
		return nil
	})
}

func (y *Yard) up(ctx context.Context, m modes.Mode, n modes.Network) error {
	if err := m.Up(ctx, n); err != nil {
		return err
	}
	y.c.Step("after network up")
	if err := ctx.Err(); err != nil { // the caller went away and will not send a delete
		return fmt.Errorf("create network %s: %w", modes.Short(n.ID), err)
	}
	n.Phase, n.Turned = modes.Ready, time.Time{}
	return y.update("network ready", func(tx store.Tx) error { return networks.Put(tx, n.ID, n) })
}

// settleFormer looks at a network of the same id: done when it is what is asked for; an unfinished one is taken away.
func (y *Yard) settleFormer(ctx context.Context, n modes.Network) (done bool, err error) {
	old, err := y.Network(n.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case old.Phase == modes.Ready && old.Equal(n):
		return true, nil
	case old.Phase == modes.Ready:
		return false, fmt.Errorf("network %s: %w and is different", modes.Short(n.ID), ErrExists)
	}
	m, err := y.mode(old.Mode)
	if err != nil {
		return false, err
	}
	return false, y.drop(ctx, m, old)
}

// putNew records a network and makes the pools that its subnets came from its own.
func (y *Yard) putNew(tx store.Tx, n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != Space {
			continue
		}
		if err := y.c.IPAM.BindPool(tx, s.Pool, n.Options[optParent], n.ID); err != nil {
			return fmt.Errorf("take pool %s for network %s: %w", s.Pool, modes.Short(n.ID), err)
		}
	}
	if err := y.reserve(tx, n); err != nil {
		return err
	}
	if err := y.bindDHCP(tx, n); err != nil {
		return err
	}
	return networks.Put(tx, n.ID, n)
}

// reserve keeps the addresses that mean something to a network for those who ask for them. No other IPAM than netyard's
// can be told.
func (y *Yard) reserve(tx store.Tx, n modes.Network) error {
	k, ok := y.c.Modes[n.Mode].(modes.Keeper)
	if !ok {
		return nil
	}
	option, addrs := k.Keeps(n)
	for _, a := range addrs {
		at := slices.IndexFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) })
		if at < 0 || n.Subnets[at].Space != Space {
			return fmt.Errorf("%w: %s=%s: it needs --ipam-driver netyard, which gives %s to nobody who does not ask for it",
				modes.ErrOption, option, n.Opt(option), a)
		}
		p, err := y.c.IPAM.PoolOf(tx, n.Subnets[at].Pool, n.ID)
		if err != nil {
			return fmt.Errorf("find pool of %s: %w", a, err)
		}
		if err := y.c.IPAM.Reserve(tx, p.ID, a, ""); err != nil {
			return err
		}
	}
	return nil
}

// DeleteNetwork is a promise kept even across a crash: once recorded, Restore finishes it. An unknown network is gone.
// Its engine knows of its own containers on it; it is refused while there are others, of CNI.
func (y *Yard) DeleteNetwork(ctx context.Context, id string) error {
	return y.deleteNetwork(ctx, id, y.noAttachments)
}

func (y *Yard) deleteNetwork(ctx context.Context, id string, may func(modes.Network) error) error {
	release, err := y.locks.hold(ctx, id, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	if n.Phase == modes.Ready {
		if err := may(n); err != nil {
			return err
		}
	}
	n.Phase, n.Turned = modes.Deleting, y.c.Now()
	if err := y.update("network deleting", func(tx store.Tx) error { return networks.Put(tx, id, n) }); err != nil {
		return err
	}
	if err := y.drop(context.WithoutCancel(ctx), m, n); err != nil {
		return err
	}
	y.c.Log.Info("network is gone", "network", id, "mode", n.Mode)
	y.tell(Event{Type: NetworkDeleted, Network: n.Name, NetworkID: n.ID, Text: fmt.Sprintf("network %s of mode %s is gone", label(n), n.Mode)})
	return nil
}

// drop takes down a network with all its endpoints and forgets it. The caller holds its lock.
func (y *Yard) drop(ctx context.Context, m modes.Mode, n modes.Network) error {
	es, err := y.endpointsOf(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := m.Detach(ctx, n, e); err != nil {
			return err
		}
	}
	if err := m.Down(ctx, n); err != nil {
		return fmt.Errorf("take down network %s: %w", modes.Short(n.ID), err)
	}
	y.c.Step("after network down")
	y.dropCopy(n) // first: what is left of a copy would be made a network again
	if err := y.update("network gone", func(tx store.Tx) error { return y.erase(tx, n, es) }); err != nil {
		return err
	}
	return y.enforce(ctx)
}

// erase forgets a network, its endpoints and its pools. An engine has given the pools of a network it deletes back
// already, unless it could not; those of a network that came to nothing it will still give back.
func (y *Yard) erase(tx store.Tx, n modes.Network, es []modes.Endpoint) error {
	for _, e := range es {
		if err := eraseEndpoint(tx, e); err != nil {
			return err
		}
	}
	for _, s := range n.Subnets {
		if s.Space != Space {
			continue
		}
		give := y.releasePool
		if n.Phase == modes.Pending {
			give = y.c.IPAM.UnbindPool
		}
		if err := give(tx, s.Pool, n.ID); err != nil {
			return err
		}
	}
	return errors.Join(y.eraseDHCP(tx, n), eraseHolds(tx, n.ID), changes.Delete(tx, n.ID), networks.Delete(tx, n.ID))
}

// noAttachments refuses the end of a network that living containers are attached to by CNI.
func (y *Yard) noAttachments(n modes.Network) error {
	es, err := y.Attachments(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Phase != modes.Deleting && !y.dead(e) {
			return fmt.Errorf("network %s is %w by container %s", label(n), ErrInUse, cmp.Or(e.Container.Name, e.Attachment))
		}
	}
	return nil
}

func (y *Yard) releasePool(tx store.Tx, subnet netip.Prefix, network string) error {
	p, err := y.c.IPAM.PoolOf(tx, subnet, network)
	if errors.Is(err, ipam.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.c.IPAM.ReleasePool(tx, p.ID)
}
