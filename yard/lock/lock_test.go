package lock_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"netyard/yard/lock"
)

// TestHoldGivesUp shows that no request waits for a lock beyond its deadline, and that one which gave up blocks no
// other.
func TestHoldGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l lock.Set
		release, err := l.Hold(t.Context(), "a", false)
		if err != nil {
			t.Fatal(err)
		}
		const patience = 9 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		start := time.Now()
		if _, err := l.Hold(ctx, "a", true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waited behind a lock: %v", err)
		}
		if took := time.Since(start); took != patience {
			t.Errorf("gave up after %s", took)
		}
		if other, err := l.Hold(t.Context(), "b", false); err != nil {
			t.Error(err)
		} else {
			other()
		}
		release()
		again, err := l.Hold(t.Context(), "a", false)
		if err != nil {
			t.Fatal(err)
		}
		again()
		if n := l.Len(); n != 0 {
			t.Errorf("%d locks are left", n)
		}
	})
}

func TestHoldSharesAndExcludes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l lock.Set
		var inside, most atomic.Int32
		for i := range 20 {
			go func() {
				shared := i%4 != 0
				release, err := l.Hold(t.Context(), "a", shared)
				if err != nil {
					t.Error(err)
					return
				}
				defer release()
				n := inside.Add(1)
				if !shared && n != 1 {
					t.Errorf("%d others inside with one that is to be alone", n-1)
				}
				if n > most.Load() {
					most.Store(n)
				}
				time.Sleep(time.Second)
				inside.Add(-1)
			}()
		}
		synctest.Wait()
		time.Sleep(time.Minute)
		if most.Load() < 2 {
			t.Error("those who share did not")
		}
	})
}
