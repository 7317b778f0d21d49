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
	if err := y.openRouted(ctx, n, id, asks); err != nil {
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
	if err != nil || slices.ContainsFunc(others, func(o modes.Endpoint) bool {
		return len(o.Ports) > 0 && !o.Lent && !o.Opened
	}) {
		return err
	}
	// An endpoint with a default route on its link is the right one for good.
	leaves := slices.ContainsFunc(link.Routes, func(r modes.Route) bool { return r.Dst.Bits() == 0 })
	_, err = y.publish(ctx, port.Request{Holder: book.Holder{Network: n.ID, Endpoint: id}, Ports: asks, Lent: !leaves})
	return err
}

// openRouted opens the ports of a joined endpoint on a routed network, and lets the container answer by its other
// endpoints. Those in the same sandbox that have open ports already learn of this one.
func (y *Yard) openRouted(ctx context.Context, n modes.Network, id string, asks []book.PortRequest) error {
	e, err := y.Endpoint(n.ID, id)
	if err != nil || len(asks) == 0 {
		return err
	}
	var others []modes.Endpoint
	err = y.Config.Store.View(func(tx store.Tx) error {
		others, err = port.Neighbours(tx, e)
		return err
	})
	for _, o := range append(others, e) {
		on, nErr := y.Network(o.NetworkID)
		if err = errors.Join(err, nErr); err != nil {
			return err
		}
		if !port.Opens(y.Traits(on)) || len(o.Ports) > 0 && !o.Opened {
			continue
		}
		h := book.Holder{Network: on.ID, Endpoint: o.ID}
		if _, err := y.publish(ctx, port.Request{Holder: h, Ports: asks, Opened: true}); err != nil {
			return err
		}
	}
	return err
}

// Publish replaces the published ports of an endpoint that an engine has chosen as gateway. It publishes all of them or
// none: those of the families whose default route leads to the endpoint.
func (y *Yard) Publish(ctx context.Context, network, id string, asks []book.PortRequest) ([]modes.Port, error) {
	holder := book.Holder{Network: network, Endpoint: id}
	return y.publish(ctx, port.Request{Holder: holder, Ports: asks, Gateway: true})
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
	n, err := y.Network(network)
	if err == nil {
		holder := book.Holder{Network: network, Endpoint: id}
		_, err = y.publish(ctx, port.Request{Holder: holder, Opened: port.Opens(y.Traits(n))})
	}
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	return err
}
