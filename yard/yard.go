// Package yard makes, changes and removes networks and endpoints. It records what is wanted, has the mode plan it and
// the kernel changed, and records that it is done; after a crash the records say what is left to do.
package yard

import (
	"context"
	"time"

	"netyard/wake"
)

// answerTime is how long a single job of background work waits, so that the request behind it is answered first: for
// each deleted link the kernel stops every processor for a moment (synchronize_net, net/core/dev.c).
const answerTime = 10 * time.Millisecond

// Run does the background work until ctx ends. The next Restore does what is left then.
func (y *Yard) Run(ctx context.Context) error {
	defer y.Ring.End()
	tick := time.NewTicker(y.Config.Grace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-y.work:
			if len(y.work) == 0 && !wake.Sleep(ctx, answerTime) {
				return nil
			}
			f()
		case <-tick.C:
			y.Retry(ctx)
			y.Sweep(ctx)
		}
	}
}
