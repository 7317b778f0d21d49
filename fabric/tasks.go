package fabric

import (
	"context"
	"sync"
)

// tasks are goroutines that start and stop while an Agent runs, and end with it.
type tasks struct {
	mu  sync.Mutex
	ctx context.Context //nolint:containedctx // Run's, for goroutines that are started later
	all sync.WaitGroup
}

// run allows start to be called until wait.
func (t *tasks) run(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ctx = ctx
}

// start runs f until Run's context ends or stop is called; stop waits for f to return.
func (t *tasks) start(f func(context.Context) error) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithCancel(t.ctx)
	done := make(chan struct{})
	t.all.Add(1)
	go func() {
		defer t.all.Done()
		defer close(done)
		_ = f(ctx) // it returns only when its context ends; its status has the errors
	}()
	return func() {
		cancel()
		<-done
	}
}

func (t *tasks) wait() { t.all.Wait() }
