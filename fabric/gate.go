package fabric

import (
	"context"
	"fmt"
	"sync"
)

// A gate keeps apart what must not change a host's part of a network in etcd at the same time: grants of addresses, of
// which there may be several, and leaving the network. To leave releases all addresses that the host has, and would
// release one that is granted meanwhile, too.
type gate struct {
	mu sync.Mutex
	// inside counts the grants in progress by the network's ID; leaves says that the network is being left.
	inside map[string]int
	// opened is closed when a network has been left, and then replaced.
	opened chan struct{}
}

const leaves = -1

func newGate() *gate { return &gate{inside: map[string]int{}, opened: make(chan struct{})} }

// enter begins a grant. It waits while the network is being left.
func (g *gate) enter(ctx context.Context, id string) error {
	for {
		g.mu.Lock()
		opened := g.opened
		if g.inside[id] != leaves {
			g.inside[id]++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return fmt.Errorf("network %s is being left in etcd: %w", id, ctx.Err())
		case <-opened:
		}
	}
}

// exit ends a grant.
func (g *gate) exit(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside[id]--; g.inside[id] == 0 {
		delete(g.inside, id)
	}
}

// shut begins to leave a network, unless a grant is in progress or the network is back on this host.
func (g *gate) shut(id string, back func(id string) bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside[id] != 0 || back(id) {
		return false
	}
	g.inside[id] = leaves
	return true
}

// open says that the network has been left, or could not be.
func (g *gate) open(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inside, id)
	close(g.opened)
	g.opened = make(chan struct{})
}
