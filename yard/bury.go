package yard

import (
	"context"
	"errors"
	"net/netip"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/overlay"
)

// Retry takes up again the changes that failed half-way: the kernel may have had its reasons then.
func (y *Yard) Retry(ctx context.Context) {
	ns, err := y.Networks()
	if err != nil {
		y.Config.Log.Error("look for unfinished changes", "err", err)
		return
	}
	es, err := y.Endpoints()
	if err != nil {
		y.Config.Log.Error("look for unfinished changes", "err", err)
		return
	}
	for _, e := range es {
		if y.Stuck(e.Phase, e.Turned, y.Config.Grace) {
			if err := y.Bury(ctx, e.NetworkID, e.ID); err != nil {
				y.Config.Log.Error("take an endpoint's link away", "network", e.NetworkID, "endpoint", e.ID, "err", err)
			}
		}
	}
	for _, n := range ns {
		if y.Stuck(n.Phase, n.Turned, y.Config.Grace) {
			if err := y.DeleteNetwork(ctx, n.ID); err != nil {
				y.Config.Log.Error("take a network down", "network", n.ID, "err", err)
			}
		}
	}
}

// Bury drops an endpoint without its engine having asked for it, with its link and leases.
func (y *Yard) Bury(ctx context.Context, network, id string) error {
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return err
	}
	defer release()
	m, n, e, err := y.Whole(network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.BuryNow(ctx, m, n, e)
}

// Sweep ends the attachments whose sandbox is gone, for who has no engine that would tell of it.
func (y *Yard) Sweep(ctx context.Context) {
	es, err := y.Endpoints()
	if err != nil {
		y.Config.Log.Error("look for dead attachments", "err", err)
		return
	}
	for _, e := range es {
		if e.Attachment == "" || e.Phase != modes.Ready || !y.Dead(e) || y.Config.Now().Sub(e.Created) < y.Config.Grace {
			continue
		}
		if err := y.Bury(ctx, e.NetworkID, e.ID); err != nil {
			y.Config.Log.Error("take an endpoint's link away", "network", e.NetworkID, "endpoint", e.ID, "err", err)
		}
	}
}

// KeepLease sees to it that the address of an endpoint is leased, if it is one of netyard's own IPAM.
func (y *Yard) KeepLease(tx store.Tx, n modes.Network, a netip.Addr, e modes.Endpoint) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.Config.IPAM.PoolOf(tx, s.Pool, n.ID)
		if errors.Is(err, ipam.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if l, err := y.Config.IPAM.LeaseAt(tx, p.ID, a); err == nil && l.State == ipam.StateActive {
			return nil
		}
		_, err = y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a, Name: e.Container.Name})
		if errors.Is(err, ipam.ErrTaken) { // reserved for another one while this one had it already
			_, err = y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a})
		}
		return err
	}
	return nil
}

// BuryNow drops an endpoint whose engine will not speak of it again, with its leases.
func (y *Yard) BuryNow(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) error {
	if e.Phase == modes.Deleting && e.Attachment != "" { // the addresses are another one's already
		return y.ForgetNow(ctx, m, n, e)
	}
	y.Config.Log.Info("drop an endpoint whose sandbox is gone", "network", n.ID, "endpoint", e.ID, "container", e.Container.Name)
	if err := y.Plan().Detach(m, n, e); err != nil {
		return err
	}
	y.TellGivenBack(n, e)
	err := y.Update("endpoint buried", func(tx store.Tx) error {
		if err := book.EraseEndpoint(tx, e); err != nil {
			return err
		}
		return y.SettleLeases(tx, n, e)
	})
	if err != nil {
		return err
	}
	return errors.Join(overlay.GiveUpOf(y.Book, n, e), enforce.Enforce(ctx, y.Book))
}
