package yard

import (
	"context"
	"errors"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/port"
)

// PublishTentatively publishes ports on a joined endpoint whose network has no gateway. Other endpoints get their ports
// when the engine announces that they have the container's default route, which it never does for this one. If the
// engine later announces another endpoint, the ports move there.
func (y *Yard) PublishTentatively(
	ctx context.Context, n modes.Network, link modes.Link, id string, asks []book.PortRequest,
) error {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	if !m.Traits(n).Publish.OnOwn || len(asks) == 0 || len(link.Gateways) > 0 {
		return nil
	}
	e, err := y.Endpoint(n.ID, id)
	if err != nil {
		return err
	}
	var others []modes.Endpoint
	err = y.Config.Store.View(func(tx store.Tx) error {
		others, err = port.Neighbours(tx, e)
		return err
	})
	if err != nil || slices.ContainsFunc(others, func(o modes.Endpoint) bool { return len(o.Ports) > 0 && !o.Lent }) {
		return err
	}
	// An endpoint with a default route on its link is the right one for good.
	leaves := slices.ContainsFunc(link.Routes, func(r modes.Route) bool { return r.Dst.Bits() == 0 })
	_, err = y.publish(ctx, port.Request{Holder: book.Holder{Network: n.ID, Endpoint: id}, Ports: asks, Lent: !leaves})
	return err
}

// Publish replaces the published ports of an endpoint by these. It publishes all of them or none.
func (y *Yard) Publish(ctx context.Context, network, id string, asks []book.PortRequest) ([]modes.Port, error) {
	return y.publish(ctx, port.Request{Holder: book.Holder{Network: network, Endpoint: id}, Ports: asks})
}

// publish publishes ports. Dead endpoints that have one of them are removed.
func (y *Yard) publish(ctx context.Context, r port.Request) (ports []modes.Port, err error) {
	err = y.RetryWithoutDead(ctx, func(j *book.LiveCheck) error {
		ports, err = port.Publish(ctx, j, r)
		return err
	})
	return ports, err
}

// Withdraw withdraws all published ports of an endpoint. An unknown endpoint has none.
func (y *Yard) Withdraw(ctx context.Context, network, id string) error {
	_, err := y.Publish(ctx, network, id, nil)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	return err
}
