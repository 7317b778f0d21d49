// Package none is the mode of containers with nothing but loopback.
package none

import (
	"context"

	"netyard/kernel/core"
	"netyard/modes"
)

type mode struct{}

// New makes the mode.
func New(modes.Env) modes.Mode { return mode{} }

func (mode) Options() []modes.Option { return nil }

func (mode) Settle(context.Context, modes.Facts, modes.Network, []modes.Network) (map[string]string, error) {
	return nil, nil
}

// Traits says that endpoints have no addresses, since they have no link.
func (mode) Traits(modes.Network) modes.Traits {
	return modes.Traits{Addressless: true, MAC: modes.MACAsIs}
}

func (mode) Objects(modes.Network) []core.Object { return nil }

func (mode) Place(modes.Network, modes.Endpoint) ([]core.Object, modes.Link) {
	return nil, modes.Link{}
}
