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

// Lend publishes ports on an endpoint that has been joined, if its network has no gateway: of such an endpoint no
// engine says that it has the container's default route, which is when the others get their ports. When the engine says
// so of another one, the ports go there.
func (y *Yard) Lend(ctx context.Context, n modes.Network, link modes.Link, id string, asks []book.Ask) error {
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
	// Who has the default route all the same, on the link, is the one that is meant.
	leaves := slices.ContainsFunc(link.Routes, func(r modes.Route) bool { return r.Dst.Bits() == 0 })
	_, err = y.publish(ctx, n.ID, id, asks, !leaves)
	return err
}

// Publish gives an endpoint just these ports of the host, whatever it had before. All of them, or none.
func (y *Yard) Publish(ctx context.Context, network, id string, asks []book.Ask) ([]modes.Port, error) {
	return y.publish(ctx, network, id, asks, false)
}

// publish is Publish, or lends the ports to the endpoint. Dead endpoints that have one of them give way.
func (y *Yard) publish(ctx context.Context, network, id string, asks []book.Ask, lent bool) (ports []modes.Port, err error) {
	err = y.Past(ctx, func(j *book.Judge) error {
		ports, err = port.PublishOnce(ctx, y.Book, j, network, id, asks, lent)
		return err
	})
	return ports, err
}

// Withdraw takes all ports from an endpoint. An unknown endpoint has none.
func (y *Yard) Withdraw(ctx context.Context, network, id string) error {
	_, err := y.Publish(ctx, network, id, nil)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	return err
}
