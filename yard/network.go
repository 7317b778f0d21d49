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
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/lease"
	"netyard/yard/overlay"
)

// CreateNetwork records n, brings it up, and undoes both if it cannot. A network of the same id that is the same is
// success: the caller may have died before it heard of it.
func (y *Yard) CreateNetwork(ctx context.Context, n modes.Network) error {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	if y.Config.Offered != nil && !slices.Contains(y.Config.Offered, n.Mode) {
		return fmt.Errorf("%w: mode=%s is not offered by this daemon's configuration", modes.ErrOption, n.Mode)
	}
	if err := overlay.ClaimSpace(y.Book, &n); err != nil {
		return err
	}
	release, err := y.Locks.Hold(ctx, n.ID, false)
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
	n.Phase, n.Created, n.Turned = modes.Pending, y.Config.Now(), y.Config.Now()
	for again := true; again; {
		if n, again, err = y.settle(ctx, m, n); err != nil {
			return err
		}
	}
	if err := y.up(ctx, m, n); err != nil {
		return errors.Join(err, y.Drop(context.WithoutCancel(ctx), m, n))
	}
	y.Config.Log.Info("network is up", "network", n.ID, "mode", n.Mode)
	y.Tell(event.Event{Type: event.NetworkCreated, Network: n.Name, NetworkID: n.ID, Text: fmt.Sprintf("network %s of mode %s is up", book.Label(n), n.Mode)})
	y.Config.Changed()
	return nil
}

// settle asks the mode about a new network and records it. again: another network was recorded meanwhile, so the mode
// has to be asked again.
func (y *Yard) settle(ctx context.Context, m modes.Mode, n modes.Network) (_ modes.Network, again bool, err error) {
	others, err := y.Networks()
	if err != nil {
		return n, false, err
	}
	if n.Settled, err = m.Settle(ctx, y.Plan().Facts(), n, others); err != nil {
		return n, false, err
	}
	if err := lease.CheckLAN(y.Book, m, n); err != nil {
		return n, false, err
	}
	known := map[string]bool{}
	for _, o := range others {
		known[o.ID] = true
	}
	err = y.Update("network recorded", func(tx store.Tx) error {
		again = slices.ContainsFunc(book.Networks.Keys(tx, ""), func(id string) bool { return !known[id] })
		if again {
			return nil
		}
		return y.PutNew(tx, n)
	})
	return n, again, err
}

// markChosen notes which subnets of a new network nobody named: netyard's own IPAM knows.
func (y *Yard) markChosen(n modes.Network) error {
	return y.Config.Store.View(func(tx store.Tx) error {
		for i, s := range n.Subnets {
			if s.Space != book.Space {
				continue
			}
			p, err := y.Config.IPAM.PoolOf(tx, s.Pool, "")
			if err != nil && !errors.Is(err, ipam.ErrNotFound) {
				return err
			}
			n.Subnets[i].Chosen = p.Chosen
		}
		return nil
	})
}

func (y *Yard) up(ctx context.Context, m modes.Mode, n modes.Network) error {
	if err := y.Plan().Up(ctx, m, n); err != nil {
		return err
	}
	y.Config.Step("after network up")
	if err := ctx.Err(); err != nil { // the caller went away and will not send a delete
		return fmt.Errorf("create network %s: %w", modes.Short(n.ID), err)
	}
	n.Phase, n.Turned = modes.Ready, time.Time{}
	return y.Update("network ready", func(tx store.Tx) error { return book.Networks.Put(tx, n.ID, n) })
}

// settleFormer looks at a network of the same id: done when it is what is asked for; an unfinished one is taken away.
func (y *Yard) settleFormer(ctx context.Context, n modes.Network) (done bool, err error) {
	old, err := y.Network(n.ID)
	switch {
	case errors.Is(err, book.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case old.Phase == modes.Ready && old.Equal(n):
		return true, nil
	case old.Phase == modes.Ready:
		return false, fmt.Errorf("network %s: %w and is different", modes.Short(n.ID), book.ErrExists)
	}
	m, err := y.Mode(old.Mode)
	if err != nil {
		return false, err
	}
	return false, y.Drop(ctx, m, old)
}

// PutNew records a network and makes the pools that its subnets came from its own.
func (y *Yard) PutNew(tx store.Tx, n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space {
			continue
		}
		if err := y.Config.IPAM.BindPool(tx, s.Pool, n.Options[book.OptParent], n.ID); err != nil {
			return fmt.Errorf("take pool %s for network %s: %w", s.Pool, modes.Short(n.ID), err)
		}
	}
	if err := y.reserve(tx, n); err != nil {
		return err
	}
	if err := lease.BindDHCP(y.Book, tx, n); err != nil {
		return err
	}
	return book.Networks.Put(tx, n.ID, n)
}

// reserve keeps the addresses that mean something to a network for those who ask for them. No other IPAM than netyard's
// can be told.
func (y *Yard) reserve(tx store.Tx, n modes.Network) error {
	kept := y.Traits(n).Reserved
	for _, a := range kept.Addrs {
		at := slices.IndexFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) })
		if at < 0 || n.Subnets[at].Space != book.Space {
			return fmt.Errorf("%w: %s=%s: it needs --ipam-driver netyard, which gives %s to nobody who does not ask for it",
				modes.ErrOption, kept.Option, n.Given(kept.Option), a)
		}
		p, err := y.Config.IPAM.PoolOf(tx, n.Subnets[at].Pool, n.ID)
		if err != nil {
			return fmt.Errorf("find pool of %s: %w", a, err)
		}
		if err := y.Config.IPAM.Reserve(tx, p.ID, a, ""); err != nil {
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
	release, err := y.Locks.Hold(ctx, id, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	if n.Phase == modes.Ready {
		if err := may(n); err != nil {
			return err
		}
	}
	n.Phase, n.Turned = modes.Deleting, y.Config.Now()
	if err := y.Update("network deleting", func(tx store.Tx) error { return book.Networks.Put(tx, id, n) }); err != nil {
		return err
	}
	if err := y.Drop(context.WithoutCancel(ctx), m, n); err != nil {
		return err
	}
	y.Config.Log.Info("network is gone", "network", id, "mode", n.Mode)
	y.Tell(event.Event{Type: event.NetworkDeleted, Network: n.Name, NetworkID: n.ID, Text: fmt.Sprintf("network %s of mode %s is gone", book.Label(n), n.Mode)})
	return nil
}

// Drop takes down a network with all its endpoints and forgets it. The caller holds its lock.
func (y *Yard) Drop(ctx context.Context, m modes.Mode, n modes.Network) error {
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := y.Plan().Detach(m, n, e); err != nil {
			return err
		}
	}
	if err := y.Plan().Down(m, n); err != nil {
		return fmt.Errorf("take down network %s: %w", modes.Short(n.ID), err)
	}
	y.Config.Step("after network down")
	y.DropCopy(n) // first: what is left of a copy would be made a network again
	if err := y.Update("network gone", func(tx store.Tx) error { return y.erase(tx, n, es) }); err != nil {
		return err
	}
	return enforce.Enforce(ctx, y.Book)
}

// erase forgets a network, its endpoints and its pools. An engine has given the pools of a network it deletes back
// already, unless it could not; those of a network that came to nothing it will still give back.
func (y *Yard) erase(tx store.Tx, n modes.Network, es []modes.Endpoint) error {
	for _, e := range es {
		if err := book.EraseEndpoint(tx, e); err != nil {
			return err
		}
	}
	for _, s := range n.Subnets {
		if s.Space != book.Space {
			continue
		}
		give := y.releasePool
		if n.Phase == modes.Pending {
			give = y.Config.IPAM.UnbindPool
		}
		if err := give(tx, s.Pool, n.ID); err != nil {
			return err
		}
	}
	return errors.Join(lease.EraseDHCP(y.Book, tx, n), book.EraseHolds(tx, n.ID), book.Changes.Delete(tx, n.ID), book.Networks.Delete(tx, n.ID))
}

// noAttachments refuses the end of a network that living containers are attached to by CNI.
func (y *Yard) noAttachments(n modes.Network) error {
	es, err := y.Attachments(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Phase != modes.Deleting && !y.Dead(e) {
			return fmt.Errorf("network %s is %w by container %s", book.Label(n), book.ErrInUse, cmp.Or(e.Container.Name, e.Attachment))
		}
	}
	return nil
}

func (y *Yard) releasePool(tx store.Tx, subnet netip.Prefix, network string) error {
	p, err := y.Config.IPAM.PoolOf(tx, subnet, network)
	if errors.Is(err, ipam.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.Config.IPAM.ReleasePool(tx, p.ID)
}
