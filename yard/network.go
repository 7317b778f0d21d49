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
	"netyard/yard/source"
)

// CreateNetwork records n and brings it up; if that fails, it undoes both. If the same network exists already,
// CreateNetwork succeeds: the caller may have died before it got the first answer.
func (y *Yard) CreateNetwork(ctx context.Context, n modes.Network) error {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	if y.Config.Offered != nil && !slices.Contains(y.Config.Offered, n.Mode) {
		return modes.Refuse("mode=%s is not offered by this daemon's configuration", n.Mode)
	}
	if err := overlay.ClaimSpace(y.Book, &n); err != nil {
		return err
	}
	h, err := y.HoldNewNetwork(ctx, n.ID)
	if err != nil {
		return err
	}
	defer h.Release()
	if done, err := y.checkFormer(ctx, h, n); done || err != nil {
		return err
	}
	if err := checkSubnets(y.Book, n); err != nil {
		return err
	}
	n.Phase, n.Created, n.Turned = modes.Pending, y.Config.Now(), y.Config.Now()
	for again := true; again; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("create network %s: other networks keep changing: %w", book.Label(n), err)
		}
		if n, again, err = y.recordNew(ctx, m, n); err != nil {
			return err
		}
	}
	h.Mode, h.Network = m, n
	if err := y.up(ctx, h); err != nil {
		return errors.Join(err, y.Drop(context.WithoutCancel(ctx), h))
	}
	y.Config.Log.Info("network created", "network", n.Name, "network_id", n.ID, "mode", n.Mode)
	y.Tell(event.Event{
		Type: event.NetworkCreated, Network: n.Name, NetworkID: n.ID,
		Text: fmt.Sprintf("network %s of mode %s is up", book.Label(n), n.Mode),
	})
	y.Config.Changed()
	return nil
}

// recordNew lets the mode check and complete a new network, and records it. again: another network was recorded
// meanwhile, or recorded anew with the same ID, so the mode has to check again.
func (y *Yard) recordNew(ctx context.Context, m modes.Mode, n modes.Network) (_ modes.Network, again bool, err error) {
	others, err := y.Networks()
	if err != nil {
		return n, false, err
	}
	if n.Settled, err = m.Settle(ctx, y.Config.Kernel, n, others); err != nil {
		return n, false, err
	}
	if err := lease.CheckLAN(y.Book, m, n); err != nil {
		return n, false, err
	}
	host, err := source.HostAddrs(y.Book, n)
	if err != nil {
		return n, false, err
	}
	known := map[string]modes.Network{}
	for _, o := range others {
		known[o.ID] = o
	}
	err = y.Update("network recorded", func(tx store.Tx) error {
		now, err := book.Networks.List(tx, "")
		if err != nil {
			return err
		}
		again = slices.ContainsFunc(now, func(o modes.Network) bool {
			k, ok := known[o.ID]
			return !ok || !o.Equal(k) || !o.Created.Equal(k.Created)
		})
		if again {
			return nil
		}
		if err := y.PutNew(tx, n); err != nil {
			return err
		}
		return y.checkRoom(tx, n, host)
	})
	return n, again, err
}

// checkRoom refuses a new network of which no container could get an address; host are the host's own. What a DHCP
// server gives, it does not know.
func (y *Yard) checkRoom(tx store.Tx, n modes.Network, host map[netip.Addr]string) error {
	need := 1
	if overlay.Claims(y.Book, n.Mode) {
		need++ // this host's own
	}
	for _, s := range n.Subnets {
		var err error
		switch s.Space {
		case book.DHCPSpace:
		case book.Space:
			var p ipam.Pool
			if p, err = y.Config.IPAM.PoolOf(tx, s.Pool, n.ID); err == nil {
				err = y.Config.IPAM.CheckRoom(tx, p.ID, host)
			}
		default:
			err = ipam.Pool{Subnet: s.Pool}.CheckRoom(need, func(a netip.Addr) (bool, error) {
				return s.Has(a) || host[a] != "", nil
			})
		}
		if err != nil {
			return modes.Refuse("%w", err)
		}
	}
	return nil
}

// checkSubnets refuses subnets that no network can have, whatever IPAM they are from, and marks those that netyard's
// own IPAM chose.
func checkSubnets(y *book.Book, n modes.Network) error {
	for _, s := range n.Subnets {
		if err := modes.CheckSubnet(s.Pool); err != nil {
			return err
		}
	}
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

func (y *Yard) up(ctx context.Context, h *book.Held) error {
	if err := y.Plan().Up(ctx, h.Mode, h.Network); err != nil {
		return err
	}
	y.Config.Step("after network up")
	if err := ctx.Err(); err != nil { // the caller is gone and will not send a delete
		return fmt.Errorf("create network %s: %w", book.Label(h.Network), err)
	}
	return h.ChangeNetwork("network ready", func(_ store.Tx, n *modes.Network) error {
		n.Phase, n.Turned = modes.Ready, time.Time{}
		return nil
	})
}

// checkFormer looks for a network of the same ID. done: it exists as requested. An unfinished one is removed.
func (y *Yard) checkFormer(ctx context.Context, h *book.Held, n modes.Network) (done bool, err error) {
	switch old := h.Network; {
	case old.ID == "":
		return false, nil
	case old.Phase == modes.Ready && old.Equal(n):
		return true, nil
	case old.Phase == modes.Ready:
		return false, fmt.Errorf("network %s: %w with a different configuration", book.Label(old), book.ErrExists)
	}
	return false, y.Drop(ctx, h)
}

// PutNew records a network and binds the pools of its subnets to it.
func (y *Yard) PutNew(tx store.Tx, n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space {
			continue
		}
		if err := y.Config.IPAM.BindPool(tx, s.Pool, n.Options[book.OptParent], n.ID); err != nil {
			return fmt.Errorf("bind pool %s to network %s: %w", s.Pool, book.Label(n), err)
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

// reserve reserves the addresses that a network's mode gives a meaning, for containers that ask for them. Only
// netyard's own IPAM can reserve addresses.
func (y *Yard) reserve(tx store.Tx, n modes.Network) error {
	reserved := y.Traits(n).Reserved
	for _, a := range reserved.Addrs {
		at := slices.IndexFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(a) })
		if at < 0 || n.Subnets[at].Space != book.Space {
			return modes.Refuse(
				"%s=%s: it needs --ipam-driver netyard, which gives %s only to a container that asks for it",
				reserved.Option, n.Given(reserved.Option), a)
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

// DeleteNetwork deletes a network. Once recorded, the deletion survives a crash: Restore finishes it. Deleting an
// unknown network succeeds. It is refused while containers are attached by CNI; its engine refuses it for its own.
func (y *Yard) DeleteNetwork(ctx context.Context, id string) error {
	return y.deleteNetwork(ctx, id, y.noAttachments)
}

func (y *Yard) deleteNetwork(ctx context.Context, id string, may func(modes.Network) error) error {
	h, err := y.HoldNetwork(ctx, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	n := h.Network
	if n.Phase == modes.Ready {
		if err := may(n); err != nil {
			return err
		}
	}
	err = h.ChangeNetwork("network deleting", func(_ store.Tx, n *modes.Network) error {
		n.Phase, n.Turned = modes.Deleting, y.Config.Now()
		return nil
	})
	if err != nil {
		return err
	}
	if err := y.Drop(context.WithoutCancel(ctx), h); err != nil {
		return err
	}
	y.Config.Log.Info("network deleted", "network", n.Name, "network_id", id, "mode", n.Mode)
	y.Tell(event.Event{
		Type: event.NetworkDeleted, Network: n.Name, NetworkID: n.ID,
		Text: fmt.Sprintf("network %s of mode %s is gone", book.Label(n), n.Mode),
	})
	return nil
}

// Drop removes a network that is held, with all its endpoints, from the kernel and then from the records.
func (y *Yard) Drop(ctx context.Context, h *book.Held) error {
	m, n := h.Mode, h.Network
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
		return fmt.Errorf("remove network %s: %w", book.Label(n), err)
	}
	y.Config.Step("after network down")
	y.DropCopy(n) // before the record: a copy without a record would be rebuilt
	if err := y.Update("network gone", func(tx store.Tx) error { return y.erase(tx, n, es) }); err != nil {
		return err
	}
	return enforce.Enforce(ctx, y.Book)
}

// erase deletes the records of a network, its endpoints and its pools. An engine that deletes a network normally has
// released its pools already. The pools of a network that could not be created are only unbound: the engine will still
// release them.
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
		release := y.releasePool
		if n.Phase == modes.Pending {
			release = y.Config.IPAM.UnbindPool
		}
		if err := release(tx, s.Pool, n.ID); err != nil {
			return err
		}
	}
	return errors.Join(lease.EraseDHCP(y.Book, tx, n), book.EraseHolds(tx, n.ID),
		book.Changes.Delete(tx, n.ID), book.Networks.Delete(tx, n.ID))
}

// noAttachments refuses to delete a network that running containers are attached to by CNI.
func (y *Yard) noAttachments(n modes.Network) error {
	es, err := y.Attachments(n.ID)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Phase != modes.Deleting && !y.Dead(e) {
			return fmt.Errorf("network %s is %w by container %s",
				book.Label(n), book.ErrInUse, cmp.Or(e.Container.Name, e.Attachment))
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
