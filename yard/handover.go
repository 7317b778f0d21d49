package yard

import (
	"context"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/port"
)

// handOver publishes the ports of an endpoint that has left its sandbox on those endpoints which the sandbox's default
// routes lead to now. An engine that knows of the ports has asked for that itself by then, or withdrawn them before.
// One that was restarted with running containers has forgotten them (moby, libnetwork/drivers/remote/driver.go).
func handOver(y *Yard, from modes.Endpoint) {
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	var others []modes.Endpoint
	err := y.Config.Store.View(func(tx store.Tx) (err error) {
		others, err = book.Neighbours(tx, modes.Endpoint{ID: from.ID, Sandbox: from.Left})
		return err
	})
	for _, o := range others {
		_, failed := y.publish(ctx, port.Request{
			Holder: book.Holder{Network: o.NetworkID, Endpoint: o.ID}, Left: from.Left,
			Ports: port.Asks(from.Asked, nil),
		})
		if failed != nil {
			y.LogOf(o.NetworkID).Error("published ports lost: the container has left the network that they were on",
				"endpoint", o.ID, "err", failed)
		}
	}
	if err != nil {
		y.LogOf(from.NetworkID).Error("published ports lost", "endpoint", from.ID, "err", err)
	}
}
