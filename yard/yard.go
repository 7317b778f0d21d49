// Package yard owns the life of networks and endpoints. It records what is wanted, asks the mode to make it so, and
// records that it is; after a crash the records say what is left to do. It compares the records with the kernel and
// with the engines, and settles the difference.
package yard

import (
	"context"
	"time"

	"netyard/yard/book"
)

// breath is how long background work waits that is alone: for a link that is deleted the kernel has every processor
// stop for a moment (synchronize_net, net/core/dev.c), and who asked for it should have heard the answer by then.
const breath = 10 * time.Millisecond

// Run does the background work until ctx ends; what is left then is done by the next Restore.
func (y *Yard) Run(ctx context.Context) error {
	defer y.Ring.End()
	tick := time.NewTicker(y.Config.Grace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-y.work:
			if len(y.work) == 0 && !book.Sleep(ctx, breath) {
				return nil
			}
			f()
		case <-tick.C:
			y.Retry(ctx)
			y.Sweep(ctx)
		}
	}
}
