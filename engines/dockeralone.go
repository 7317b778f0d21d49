package engines

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"netyard/modes"
)

// aloneTime bounds the wait for the engine's answer while a request of it waits. Before an engine is up it gives none.
const aloneTime = time.Second

// Alone reports whether a network is the only one of each container that may be joining it now: of those which have it,
// and no endpoint on it. A container that is connected while it runs is not listed with it yet, so then it is false.
// Alone is the one question that a request waits for. Docker lists containers without waiting for any of them.
func (d *Docker) Alone(ctx context.Context, n modes.Network) bool {
	if d.Host == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, aloneTime)
	defer cancel()
	c, err := d.client()
	if err != nil {
		return false
	}
	defer c.Close() //nolint:errcheck // the answer was read
	// A container that was never started names its networks as its user did.
	listed, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		d.Log.Debug("networks of a container not known", "engine", d.Host, "network_id", n.ID, "err", err)
		return false
	}
	found := false
	for _, item := range listed.Items {
		if !joining(item, n) {
			continue
		}
		if found = true; len(item.NetworkSettings.Networks) > 1 {
			return false
		}
	}
	return found
}

// joining reports whether a container has a network, and no endpoint on it.
func joining(item container.Summary, n modes.Network) bool {
	if item.NetworkSettings == nil {
		return false
	}
	for name, s := range item.NetworkSettings.Networks {
		if s != nil && s.EndpointID == "" && (s.NetworkID == n.ID || name == n.ID || n.Name != "" && name == n.Name) {
			return true
		}
	}
	return false
}
