package yard

import (
	"context"
	"errors"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/overlay"
	"netyard/yard/source"
)

// Retry tries again to finish the deletions that failed half-way: the cause in the kernel may have been temporary.
func (y *Yard) Retry(ctx context.Context) {
	ns, err := y.Networks()
	if err != nil {
		y.Config.Log.Error("unfinished changes not listed", "err", err)
		return
	}
	es, err := y.Endpoints()
	if err != nil {
		y.Config.Log.Error("unfinished changes not listed", "err", err)
		return
	}
	for _, e := range es {
		if y.Stuck(e.Phase, e.Turned, y.Config.Grace) {
			if err := y.RemoveEndpoint(ctx, e.NetworkID, e.ID); err != nil {
				y.LogOf(e.NetworkID).Error("endpoint removal failed", "endpoint", e.ID, "err", err)
			}
		}
	}
	for _, n := range ns {
		if y.Stuck(n.Phase, n.Turned, y.Config.Grace) {
			if err := y.DeleteNetwork(ctx, n.ID); err != nil {
				y.Config.Log.Error("network removal failed", "network", n.Name, "network_id", n.ID, "err", err)
			}
		}
	}
}

// RemoveEndpoint removes an endpoint, its link and its leases without a request of its engine.
func (y *Yard) RemoveEndpoint(ctx context.Context, network, id string) error {
	h, err := y.Hold(ctx, network, id)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	return y.Remove(ctx, h)
}

// Sweep removes the attachments whose sandbox is gone: no engine need report their end.
func (y *Yard) Sweep(ctx context.Context) {
	es, err := y.Endpoints()
	if err != nil {
		y.Config.Log.Error("dead attachments not listed", "err", err)
		return
	}
	for _, e := range es {
		young := y.Config.Now().Sub(e.Created) < y.Config.Grace
		if e.Attachment == "" || e.Phase != modes.Ready || young || !y.Dead(e) {
			continue
		}
		if err := y.RemoveEndpoint(ctx, e.NetworkID, e.ID); err != nil {
			y.LogOf(e.NetworkID).Error("endpoint removal failed", "endpoint", e.ID, "err", err)
		}
	}
}

// Remove removes an endpoint and its leases, when its engine will send no further request for it.
func (y *Yard) Remove(ctx context.Context, h *book.Held) error {
	n, e := h.Network, h.Endpoint
	if e.Phase == modes.Deleting && e.Attachment != "" { // its addresses may belong to another endpoint by now
		return y.Forget(ctx, h)
	}
	if err := y.Plan().Detach(h.Mode, n, e); err != nil {
		return err
	}
	y.TellDeviceReturned(n, e)
	err := y.Update("endpoint removed", func(tx store.Tx) error {
		if err := book.EraseEndpoint(tx, e); err != nil {
			return err
		}
		return source.Release(y.Book, tx, n, e)
	})
	if err != nil {
		return err
	}
	y.Config.Log.Info("endpoint removed without a request of its engine",
		"network", n.Name, "network_id", n.ID, "endpoint", e.ID, "container", e.Container.Name)
	if e.Left != "" { // its engine was about to delete it, and its ports go on as in DeleteEndpoint
		y.Config.Background(func() { handOver(y, e) }) //nolint:contextcheck // the caller does not wait for it
	}
	return errors.Join(overlay.ReleaseOf(y.Book, n, e), enforce.Enforce(ctx, y.Book))
}
