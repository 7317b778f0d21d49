package book

import (
	"context"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Locks has a lock for each ID. They are waited for with a deadline, so that no request hangs behind another one.
type Locks struct {
	mu sync.Mutex
	By map[string]*lock
}

type lock struct {
	sem   *semaphore.Weighted
	users int
}

// Hold acquires the lock of id, exclusively or shared, and returns the function that releases it.
func (l *Locks) Hold(ctx context.Context, id string, shared bool) (release func(), err error) {
	weight := int64(math.MaxInt64)
	if shared {
		weight = 1
	}
	l.mu.Lock()
	if l.By == nil {
		l.By = map[string]*lock{}
	}
	k := l.By[id]
	if k == nil {
		k = &lock{sem: semaphore.NewWeighted(math.MaxInt64)}
		l.By[id] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.By, id)
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
