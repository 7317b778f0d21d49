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
	h, err := y.HoldNetwork(ctx, id)
	if err != nil {
		return modes.Network{}, err
	}
	defer h.Release()
	old := h.Network
	if old.Phase != modes.Ready {
		return old, fmt.Errorf("network %s is being created or deleted", book.Label(old))
	}
	n, err := y.Options.Change(old, options)
	if err != nil {
		return old, err
	}
	if _, err := h.Mode.Settle(ctx, y.Config.Kernel, n, nil); err != nil {
		return old, err
	}
	es, err := y.EndpointsOf(id)
	if err != nil {
		return old, err
	}
	if err := recordChange(h, n); err != nil {
		return old, err
	}
	before, after := state{old, es}, state{n, es}
	if err := y.apply(ctx, h.Mode, before, after); err != nil {
		undo := context.WithoutCancel(ctx)
		return old, errors.Join(fmt.Errorf("change network %s: %w", book.Label(old), err),
			recordChange(h, old), y.apply(undo, h.Mode, after, before))
	}
	y.Config.Log.Info("network changed", "network", n.Name, "network_id", id, "mode", n.Mode, "options", options)
	return n, nil
}

// recordChange records the changed options of a network.
func recordChange(h *book.Held, n modes.Network) error {
	return h.ChangeNetwork("network changed", func(tx store.Tx, now *modes.Network) error {
		*now = n
		return book.KeepChange(tx, n)
	})
}

// AddSubnets adds subnets, whose pools the caller has requested, to a network without interrupting its endpoints. If
// the kernel cannot be changed, it is rolled back.
func (y *Yard) AddSubnets(ctx context.Context, id string, subnets []modes.Subnet) (modes.Network, error) {
	h, err := y.HoldNetwork(ctx, id)
	if err != nil {
		return modes.Network{}, err
	}
	defer h.Release()
	old := h.Network
	if old.Phase != modes.Ready {
		return old, fmt.Errorf("network %s is being created or deleted", book.Label(old))
	}
	n := old
	n.Subnets = slices.Concat(old.Subnets, subnets)
	if _, err := h.Mode.Settle(ctx, y.Config.Kernel, n, nil); err != nil {
		return old, err
	}
	es, err := y.EndpointsOf(id)
	if err != nil {
		return old, err
	}
	if err := h.ChangeNetwork("subnets added", func(tx store.Tx, now *modes.Network) error {
		*now = n
		return y.PutNew(tx, n)
	}); err != nil {
		return old, err
	}
	before, after := state{old, es}, state{n, es}
	if err := y.apply(ctx, h.Mode, before, after); err != nil {
		return old, errors.Join(fmt.Errorf("add subnets to network %s: %w", book.Label(old), err),
			y.withdrawSubnets(h, old, subnets), y.apply(context.WithoutCancel(ctx), h.Mode, after, before))
	}
	y.Config.Log.Info("subnets added to network", "network", n.Name, "network_id", id, "mode", n.Mode)
	return n, nil
}

// withdrawSubnets records a network without subnets that were added in vain. Their pools are the caller's again.
func (y *Yard) withdrawSubnets(h *book.Held, old modes.Network, subnets []modes.Subnet) error {
	return h.ChangeNetwork("subnets withdrawn", func(tx store.Tx, now *modes.Network) error {
		*now = old
		for _, s := range subnets {
			if err := y.Config.IPAM.UnbindPool(tx, s.Pool, old.ID); err != nil {
				return err
			}
		}
		return nil
	})
}

// ChangeEndpoint changes options of one endpoint as ChangeNetwork does those of a network. They last as long as the
// endpoint.
func (y *Yard) ChangeEndpoint(
	ctx context.Context, network, id string, options map[string]string,
) (modes.Endpoint, error) {
	h, err := y.Hold(ctx, network, id)
	if err != nil {
		return modes.Endpoint{}, err
	}
	defer h.Release()
	n, old := h.Network, h.Endpoint
	if n.Phase != modes.Ready || old.Phase != modes.Ready {
		return old, fmt.Errorf("%s is being joined to network %s or deleted", book.Owned(old), book.Label(n))
	}
	e, err := y.Options.ChangeEndpoint(n, old, options)
	if err != nil {
		return old, err
	}
	if err := recordEndpointChange(h, e.Options); err != nil {
		return old, err
	}
	before, after := state{n, []modes.Endpoint{old}}, state{n, []modes.Endpoint{e}}
	if err := y.apply(ctx, h.Mode, before, after); err != nil {
		undo := context.WithoutCancel(ctx)
		return old, errors.Join(fmt.Errorf("change %s on network %s: %w", book.Owned(old), book.Label(n), err),
			recordEndpointChange(h, old.Options), y.apply(undo, h.Mode, after, before))
	}
	y.Config.Log.Info("endpoint changed", "network", n.Name, "network_id", network,
		"endpoint", id, "container", e.Container.Name, "mode", n.Mode, "options", options)
	return e, nil
}

// recordEndpointChange records the changed options of an endpoint.
func recordEndpointChange(h *book.Held, options map[string]string) error {
	return h.Change("endpoint changed", func(tx store.Tx, e *modes.Endpoint) error {
		e.Options = maps.Clone(options)
		if e.Options == nil {
			e.Options = map[string]string{}
		}
		return book.KeepEndpoint(tx, *e, func(k *book.Kept) { k.Options = e.Options })
	})
}

// A state is a network with endpoints of it, as the kernel has them or is to have them.
type state struct {
	network   modes.Network
	endpoints []modes.Endpoint
}

// apply changes the kernel from one state of a network and its endpoints to another. It first removes the objects that
// only the former state has: an interval cannot be added while one that it overlaps is in the set, and for a moment it
// is better to admit no client than the former and the new ones.
func (y *Yard) apply(ctx context.Context, m modes.Mode, from, to state) error {
	links, err := y.Config.Kernel.Has()
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, o := range y.Plan().Objects(m, to.network, to.endpoints...) {
		wanted[o.String()] = true
	}
	gone := slices.DeleteFunc(y.Plan().Objects(m, from.network, from.endpoints...), func(o core.Object) bool {
		return wanted[o.String()]
	})
	if err := y.Config.Kernel.Remove(gone...); err != nil {
		return err
	}
	y.Config.Step("after former objects removed")
	if err := y.Plan().Up(ctx, m, to.network); err != nil {
		return err
	}
	for _, e := range to.endpoints {
		plugged := links[core.Alias(to.network.ID, e.ID)] // netyard cannot put a new link into a running sandbox
		if e.Phase != modes.Ready || e.Sandbox == "" || y.Dead(e) || !plugged {
			continue
		}
		if _, err := y.Plan().Attach(ctx, m, to.network, e); err != nil {
			return fmt.Errorf("%s: %w", book.Owned(e), err)
		}
		y.Config.Step("after endpoint attached again")
	}
	return nil
}
