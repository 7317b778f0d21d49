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

// ChangeNetwork changes options of a network and applies them to its endpoints without interrupting any of them. If one
// option is refused, nothing is changed. If the kernel cannot be changed, everything is rolled back. After a crash in
// between the new options are on record, and the next Restore applies them.
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
		return old, fmt.Errorf("network %s is being created or deleted", book.Label(old))
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
		return old, errors.Join(fmt.Errorf("change network %s: %w", book.Label(old), err),
			y.recordChange(old), y.apply(undo, m, n, old, es, es))
	}
	y.Config.Log.Info("network changed", "network", n.Name, "network_id", id, "mode", n.Mode, "options", options)
	return n, nil
}

// recordChange records the changed options of a network. It keeps the name in the record, which is written without the
// network's lock.
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
func (y *Yard) ChangeEndpoint(
	ctx context.Context, network, id string, options map[string]string,
) (modes.Endpoint, error) {
	release, err := y.Hold(ctx, network, id)
	if err != nil {
		return modes.Endpoint{}, err
	}
	defer release()
	m, n, old, err := y.EndpointWithMode(network, id)
	if err != nil {
		return old, err
	}
	if n.Phase != modes.Ready || old.Phase != modes.Ready {
		return old, fmt.Errorf("%s is being joined to network %s or deleted", book.Owned(old), book.Label(n))
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
		return old, errors.Join(fmt.Errorf("change %s on network %s: %w", book.Owned(old), book.Label(n), err),
			y.recordEndpointChange(old), y.apply(undo, m, n, n, after, before))
	}
	y.Config.Log.Info("endpoint changed", "network", n.Name, "network_id", network,
		"endpoint", id, "container", e.Container.Name, "mode", n.Mode, "options", options)
	return e, nil
}

// recordEndpointChange records the changed options of an endpoint. It keeps the container in the record, which is
// written without the endpoint's lock.
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
		return errors.Join(
			book.KeepEndpoint(tx, now, func(k *book.Kept) { k.Options = now.Options }),
			book.PutEndpoint(tx, now),
		)
	})
}

// apply changes the kernel from one state of a network and its endpoints to another. It first removes the objects that
// only the former state has: an interval cannot be added while one that it overlaps is in the set, and for a moment it
// is better to admit no client than the former and the new ones.
func (y *Yard) apply(ctx context.Context, m modes.Mode, from, to modes.Network, before, after []modes.Endpoint) error {
	links, err := y.Config.Kernel.Has()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, o := range y.Plan().Objects(m, to, after...) {
		wanted[o.String()] = true
	}
	gone := slices.DeleteFunc(y.Plan().Objects(m, from, before...), func(o core.Object) bool {
		return wanted[o.String()]
	})
	if err := y.Config.Kernel.Remove(gone...); err != nil {
		return err
	}
	y.Config.Step("after former objects removed")
	if err := y.Plan().Up(ctx, m, to); err != nil {
		return err
	}
	for _, e := range after {
		plugged := links[core.Alias(to.ID, e.ID)] // netyard cannot put a new link into a running sandbox
		if e.Phase != modes.Ready || e.Sandbox == "" || y.Dead(e) || !plugged {
			continue
		}
		if _, err := y.Plan().Attach(ctx, m, to, e); err != nil {
			return fmt.Errorf("%s: %w", book.Owned(e), err)
		}
		y.Config.Step("after endpoint attached again")
	}
	return nil
}
