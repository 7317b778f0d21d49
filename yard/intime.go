package yard

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"netyard/kernel/nft"
)

// GoodTime is what a request has after its deadline to say itself why it failed.
const GoodTime = 300 * time.Millisecond

// InTime runs a request and has an answer soon after ctx ends, whatever hangs: a system call that waits for a lock of
// the kernel's ends for no deadline. A request that did not end in time goes on by itself, sees when the kernel answers
// that nobody waits, and takes back what it began; late is called with what became of it.
func InTime[A any](ctx context.Context, y *Yard, do func() (A, error), late func(A, error)) (a A, err error) {
	type outcome struct {
		a   A
		err error
	}
	start := time.Now()
	done := make(chan outcome, 1)
	var settled atomic.Bool // by the end of the request or by that of the wait, whichever is first
	go func() {
		a, err := do()
		if settled.CompareAndSwap(false, true) {
			done <- outcome{a, err}
			return
		}
		late(a, err)
	}()
	select {
	case o := <-done:
		return o.a, o.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(GoodTime)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.a, o.err
	case <-timer.C:
	}
	if !settled.CompareAndSwap(false, true) {
		o := <-done
		return o.a, o.err
	}
	return a, fmt.Errorf("%s, and the request has waited for %s; what it began is taken back, try again: %w",
		y.slow(), time.Since(start).Round(time.Second), ctx.Err())
}

// slow says what a request hangs on.
func (y *Yard) slow() string {
	if y == nil || y.Config.Kernel == nil {
		return "the host is slow"
	}
	return nft.Slow(y.Config.Kernel.Handle)
}
