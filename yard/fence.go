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
	h, err := y.HoldNetwork(ctx, network)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Release()
	if h.Network.Phase != modes.Ready {
		return nil
	}
	es, err := y.EndpointsOf(network)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range es {
		if why := fenced[e.ID]; why != e.Fenced && e.Phase == modes.Ready {
			errs = append(errs, y.fence(ctx, h.With(e), why))
		}
	}
	return errors.Join(errs...)
}

// fence fences one endpoint for the reason why; empty: it unfences it.
func (y *Yard) fence(ctx context.Context, h *book.Held, why string) error {
	n, was := h.Network, h.Endpoint
	if err := recordFence(h, why); err != nil {
		return err
	}
	is := h.Endpoint
	err := y.apply(ctx, h.Mode, state{n, []modes.Endpoint{was}}, state{n, []modes.Endpoint{is}})
	if err != nil {
		// With the former record the next call tries again.
		return errors.Join(fmt.Errorf("fence endpoint %s: %w", modes.Short(is.ID), err), recordFence(h, was.Fenced))
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

func recordFence(h *book.Held, why string) error {
	return h.Change("endpoint fenced", func(tx store.Tx, e *modes.Endpoint) error {
		e.Fenced = why
		return book.KeepEndpoint(tx, *e, func(k *book.Kept) { k.Fenced = why })
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
