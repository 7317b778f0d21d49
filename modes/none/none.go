// Package none is the mode of containers with nothing but loopback.
package none

import (
	"context"

	"netyard/kernel/core"
	"netyard/modes"
)

type mode struct{}

// New makes the mode.
func New(modes.Env) (modes.Mode, error) { return mode{}, nil }

func (mode) Check(modes.Network) error                                   { return nil }
func (mode) Up(context.Context, modes.Network) error                     { return nil }
func (mode) Down(context.Context, modes.Network) error                   { return nil }
func (mode) Detach(context.Context, modes.Network, modes.Endpoint) error { return nil }
func (mode) Attach(context.Context, modes.Network, modes.Endpoint) (modes.Link, error) {
	return modes.Link{}, nil
}

// Addressless: there is nothing an address could be on.
func (mode) Addressless() {}

func (mode) Objects(modes.Network, []modes.Endpoint) []core.Object { return nil }
