package yard

import (
	"context"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sync/semaphore"
)

// locks has a lock for each id. They are waited for with a deadline: no request may hang behind another one.
type locks struct {
	mu sync.Mutex
	by map[string]*lock
}

type lock struct {
	sem   *semaphore.Weighted
	users int
}

// hold waits for the lock of id, alone or with others who share it, and returns what gives it back.
func (l *locks) hold(ctx context.Context, id string, shared bool) (release func(), err error) {
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
