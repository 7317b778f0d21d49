package yard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// ChangeNetwork changes options of a network and makes its endpoints follow, without a pause for any of them. Nothing
// is changed if anything is refused. If it cannot be made so, it is all taken back. A crash in between leaves the new
// options on record, and the next Restore makes it so.
func (y *Yard) ChangeNetwork(ctx context.Context, id string, options map[string]string) (modes.Network, error) {
	release, err := y.Locks.Hold(ctx, id, false)
	if err != nil {
		return modes.Network{}, err
	}
	defer release()
	old, err := y.Network(id)
	if err != nil {
		return old, err
	}
	if old.Phase != modes.Ready {
		return old, fmt.Errorf("network %s is being created or deleted", modes.Short(id))
	}
	m, err := y.Mode(old.Mode)
	if err != nil {
		return old, err
	}
	n, err := y.Options.Change(old, options)
	if err != nil {
		return old, err
	}
	if _, err := m.Settle(ctx, y.Plan().Facts(), n, nil); err != nil {
		return old, err
	}
	es, err := y.EndpointsOf(id)
	if err != nil {
		return old, err
	}
	if err := y.recordChange(n); err != nil {
		return old, err
	}
	if err := y.apply(ctx, m, old, n, es, es); err != nil {
		undo := context.WithoutCancel(ctx)
		return old, errors.Join(fmt.Errorf("change network %s: %w", modes.Short(id), err), y.recordChange(old), y.apply(undo, m, n, old, es, es))
	}
	y.Config.Log.Info("network changed", "network", id, "mode", n.Mode, "options", options)
	return n, nil
}

// recordChange leaves alone what others write into the record without the network's lock: its name.
func (y *Yard) recordChange(n modes.Network) error {
	return y.Update("network changed", func(tx store.Tx) error {
		now, err := book.GetNetwork(tx, n.ID)
		if err != nil {
			return err
		}
		now.Changed = n.Changed
		return errors.Join(book.KeepChange(tx, now), book.Networks.Put(tx, n.ID, now))
	})
}

// ChangeEndpoint changes options of one endpoint as ChangeNetwork does those of a network. They last as long as the
// endpoint.
func (y *Yard) ChangeEndpoint(ctx context.Context, network, id string, options map[string]string) (modes.Endpoint, error) {
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return modes.Endpoint{}, err
	}
	defer release()
	m, n, old, err := y.Whole(network, id)
	if err != nil {
		return old, err
	}
	if n.Phase != modes.Ready || old.Phase != modes.Ready {
		return old, fmt.Errorf("endpoint %s is being joined or deleted", modes.Short(id))
	}
	e, err := y.Options.ChangeEndpoint(n, old, options)
	if err != nil {
		return old, err
	}
	if err := y.recordEndpointChange(e); err != nil {
		return old, err
	}
	before, after := []modes.Endpoint{old}, []modes.Endpoint{e}
	if err := y.apply(ctx, m, n, n, before, after); err != nil {
		undo := context.WithoutCancel(ctx)
		return old, errors.Join(fmt.Errorf("change endpoint %s: %w", modes.Short(id), err), y.recordEndpointChange(old), y.apply(undo, m, n, n, after, before))
	}
	y.Config.Log.Info("endpoint changed", "network", network, "endpoint", id, "mode", n.Mode, "options", options)
	return e, nil
}

// recordEndpointChange leaves alone what others write into the record without the endpoint's lock: whose it is.
func (y *Yard) recordEndpointChange(e modes.Endpoint) error {
	return y.Update("endpoint changed", func(tx store.Tx) error {
		now, err := book.GetEndpoint(tx, e.NetworkID, e.ID)
		if err != nil {
			return err
		}
		now.Options = maps.Clone(e.Options)
		if now.Options == nil {
			now.Options = map[string]string{}
		}
		return errors.Join(book.KeepEndpoint(tx, now, func(k *book.Kept) { k.Options = now.Options }), book.PutEndpoint(tx, now))
	})
}

// apply makes the kernel go from one state of a network and its endpoints to another. What only the first has goes
// first: an interval cannot be added beside one that it overlaps, and of who may come in rather nobody for a moment
// than both.
func (y *Yard) apply(ctx context.Context, m modes.Mode, from, to modes.Network, before, after []modes.Endpoint) error {
	links, err := y.Config.Kernel.Has()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, o := range y.Plan().Objects(m, to, after...) {
		wanted[o.String()] = true
	}
	gone := slices.DeleteFunc(y.Plan().Objects(m, from, before...), func(o core.Object) bool { return wanted[o.String()] })
	if err := y.Config.Kernel.Remove(gone...); err != nil {
		return err
	}
	y.Config.Step("after former objects removed")
	if err := y.Plan().Up(ctx, m, to); err != nil {
		return err
	}
	for _, e := range after {
		plugged := links[core.Alias(to.ID, e.ID)] // a link that is gone cannot be put back into a sandbox
		if e.Phase != modes.Ready || e.Sandbox == "" || y.Dead(e) || !plugged {
			continue
		}
		if _, err := y.Plan().Attach(ctx, m, to, e); err != nil {
			return fmt.Errorf("endpoint %s: %w", modes.Short(e.ID), err)
		}
		y.Config.Step("after endpoint attached again")
	}
	return nil
}
