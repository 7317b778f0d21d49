package yard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/event"
	yoverlay "netyard/yard/overlay"
)

// fenceTime bounds one round of fencing: a request may hold the network's lock.
const fenceTime = 5 * time.Second

// Fence fences the endpoints of an overlay that are in fenced, and unfences all others. fenced has the reasons by
// endpoint ID: an address that belongs to another host by now. The caller passes the whole set each time, and repeats
// the call until it succeeds.
func (y *Yard) Fence(ctx context.Context, overlay string, fenced map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, fenceTime)
	defer cancel()
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if yoverlay.Claims(y.Book, n.Mode) && yoverlay.Of(y.Book, n).ID == overlay {
			return y.fenceOn(ctx, n.ID, fenced)
		}
	}
	return nil
}

func (y *Yard) fenceOn(ctx context.Context, network string, fenced map[string]string) error {
	release, err := y.Locks.Hold(ctx, network, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(network)
	if errors.Is(err, book.ErrNotFound) || err == nil && n.Phase != modes.Ready {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	es, err := y.EndpointsOf(network)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if why := fenced[e.ID]; why != e.Fenced && e.Phase == modes.Ready {
			errs = append(errs, y.fence(ctx, m, n, e, why))
		}
	}
	return errors.Join(errs...)
}

// fence fences one endpoint for the reason why; empty: it unfences it.
func (y *Yard) fence(ctx context.Context, m modes.Mode, n modes.Network, was modes.Endpoint, why string) error {
	is := was
	is.Fenced = why
	if err := y.recordFence(is); err != nil {
		return err
	}
	if err := y.apply(ctx, m, n, n, []modes.Endpoint{was}, []modes.Endpoint{is}); err != nil {
		// With the former record the next call tries again.
		return errors.Join(fmt.Errorf("fence endpoint %s: %w", modes.Short(is.ID), err), y.recordFence(was))
	}
	if why != "" {
		y.Config.Log.Error("endpoint fenced",
			"network", n.Name, "network_id", n.ID, "endpoint", is.ID, "container", is.Container.Name, "reason", why)
		y.Tell(book.About(event.EndpointFenced, n, is, fmt.Sprintf("%s is fenced: %s", book.Owned(is), why)))
	} else {
		y.Config.Log.Info("endpoint unfenced",
			"network", n.Name, "network_id", n.ID, "endpoint", is.ID, "container", is.Container.Name)
		y.Tell(book.About(event.EndpointUnfenced, n, is, book.Owned(is)+" is no longer fenced"))
	}
	return nil
}

func (y *Yard) recordFence(e modes.Endpoint) error {
	return y.Update("endpoint fenced", func(tx store.Tx) error {
		now, err := book.GetEndpoint(tx, e.NetworkID, e.ID)
		if err != nil {
			return err
		}
		now.Fenced = e.Fenced
		return errors.Join(
			book.KeepEndpoint(tx, now, func(k *book.Kept) { k.Fenced = now.Fenced }),
			book.PutEndpoint(tx, now),
		)
	})
}

// Owner returns an endpoint's name for people: its container's, if that is known, or its ID.
func (y *Yard) Owner(id string) string {
	es, err := y.Endpoints()
	if at := slices.IndexFunc(es, func(e modes.Endpoint) bool { return e.ID == id }); err == nil && at >= 0 {
		return book.Owned(es[at])
	}
	return "endpoint " + modes.Short(id)
}
