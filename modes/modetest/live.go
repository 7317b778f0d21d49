package modetest

import (
	"context"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/yard/plan"
)

// A Live is a mode whose plans are made true on a kernel, as the daemon does it.
type Live struct {
	modes.Mode

	Plan plan.Runner
}

// On returns a mode that works on a kernel.
func On(k *kernel.Kernel, newMode modes.New, f modes.Fabric) Live {
	return Live{newMode(modes.Env{Fabric: f}), plan.Runner{Kernel: plan.Host{Kernel: k}, Fabric: f}}
}

// Settle settles a network that is created beside others.
func (l Live) Settle(ctx context.Context, n modes.Network, others ...modes.Network) (map[string]string, error) {
	return l.Mode.Settle(ctx, l.Plan.Kernel, n, others)
}

// Up makes a network.
func (l Live) Up(ctx context.Context, n modes.Network) error { return l.Plan.Up(ctx, l.Mode, n) }

// Down removes a network.
func (l Live) Down(n modes.Network) error { return l.Plan.Down(l.Mode, n) }

// Attach makes what an endpoint wants.
func (l Live) Attach(ctx context.Context, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	return l.Plan.Attach(ctx, l.Mode, n, e)
}

// Detach removes what an endpoint wants.
func (l Live) Detach(n modes.Network, e modes.Endpoint) error { return l.Plan.Detach(l.Mode, n, e) }

// Objects returns everything that a network and endpoints of it want.
func (l Live) Objects(n modes.Network, es ...modes.Endpoint) []core.Object {
	return l.Plan.Objects(l.Mode, n, es...)
}
