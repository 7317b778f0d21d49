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

// fenceTime bounds one round of fencing: a request may have the network.
const fenceTime = 5 * time.Second

// Fence cuts off the endpoints of a cluster's network that have an address which is another host's by now, and lets
// those go on that have none any more. fenced says why, by endpoint. It is said again until it was heard, so it is the
// whole of it each time.
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

// fence makes one endpoint fenced, or not.
func (y *Yard) fence(ctx context.Context, m modes.Mode, n modes.Network, was modes.Endpoint, why string) error {
	is := was
	is.Fenced = why
	if err := y.recordFence(is); err != nil {
		return err
	}
	if err := y.apply(ctx, m, n, n, []modes.Endpoint{was}, []modes.Endpoint{is}); err != nil {
		return errors.Join(fmt.Errorf("fence endpoint %s: %w", modes.Short(is.ID), err), y.recordFence(was)) // to be tried again
	}
	if why != "" {
		y.Config.Log.Error("endpoint fenced: its link is down", "network", n.ID, "endpoint", is.ID, "container", is.Container.Name, "err", why)
		y.Tell(book.About(event.EndpointFenced, n, is, fmt.Sprintf("%s is fenced: %s", book.Owned(is), why)))
	} else {
		y.Config.Log.Info("endpoint not fenced any more", "network", n.ID, "endpoint", is.ID, "container", is.Container.Name)
		y.Tell(book.About(event.EndpointFreed, n, is, book.Owned(is)+" has its address again"))
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
		return errors.Join(book.KeepEndpoint(tx, now, func(k *book.Kept) { k.Fenced = now.Fenced }), book.PutEndpoint(tx, now))
	})
}

// Owner is an endpoint as people call it: by its container, if that is known.
func (y *Yard) Owner(id string) string {
	es, err := y.Endpoints()
	if at := slices.IndexFunc(es, func(e modes.Endpoint) bool { return e.ID == id }); err == nil && at >= 0 {
		return book.Owned(es[at])
	}
	return "endpoint " + modes.Short(id)
}
