// Package wake wakes a goroutine that waits for work, or after a time.
package wake

import (
	"context"
	"time"
)

// A Signal wakes the goroutine that receives from it. Signals that are sent before it receives count as one.
type Signal chan struct{}

// New returns a signal.
func New() Signal { return make(Signal, 1) }

// Send wakes the receiver, now or when it next receives. It does not wait.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Sleep waits, and reports false if ctx ends meanwhile.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
