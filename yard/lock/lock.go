// Package lock has locks by name that are waited for with a deadline.
package lock

import (
	"context"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sync/semaphore"
)

// A Set has a lock for each ID. They are waited for with a deadline, so that no request hangs behind another one. The
// zero value is ready for use.
type Set struct {
	mu sync.Mutex
	by map[string]*lock
}

type lock struct {
	sem   *semaphore.Weighted
	users int
}

// Hold acquires the lock of id, exclusively or shared, and returns the function that releases it.
func (l *Set) Hold(ctx context.Context, id string, shared bool) (release func(), err error) {
	weight := int64(math.MaxInt64)
	if shared {
		weight = 1
	}
	l.mu.Lock()
	if l.by == nil {
		l.by = map[string]*lock{}
	}
	k := l.by[id]
	if k == nil {
		k = &lock{sem: semaphore.NewWeighted(math.MaxInt64)}
		l.by[id] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.by, id)
		}
	}
	if err := k.sem.Acquire(ctx, weight); err != nil {
		leave()
		return nil, fmt.Errorf("wait for another request about %s: %w", id, err)
	}
	return func() {
		k.sem.Release(weight)
		leave()
	}, nil
}

// Len returns how many locks are held or waited for.
func (l *Set) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.by)
}
