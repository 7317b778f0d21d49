package yard

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// ReplyTime is how long a request may take after its deadline to return its own error.
const ReplyTime = 300 * time.Millisecond

// InTime runs a request and returns soon after ctx ends, whatever hangs: no deadline ends a system call that waits for
// a lock in the kernel. A request that does not end in time runs on: when the kernel answers, it sees that ctx is over,
// and undoes what it began. late is called with its result.
func InTime[A any](ctx context.Context, y *Yard, do func() (A, error), late func(A, error)) (a A, err error) {
	type outcome struct {
		a   A
		err error
	}
	start := time.Now()
	done := make(chan outcome, 1)
	var settled atomic.Bool // set by the end of the request or of the wait, whichever is first
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
	timer := time.NewTimer(ReplyTime)
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
	return a, overdue{fmt.Errorf("%s; gave up after %s; the change will be undone; try again",
		y.slow(), time.Since(start).Round(time.Second)), ctx.Err()}
}

// An overdue is the error of a request that did not end in time. It unwraps to its context's error, without the text.
type overdue struct {
	error
	cause error
}

func (o overdue) Unwrap() error { return o.cause }

// slow describes what a request waits for.
func (y *Yard) slow() string {
	if y == nil || y.Config.Kernel == nil {
		return "the host is slow"
	}
	return y.Config.Kernel.BusyReason()
}
