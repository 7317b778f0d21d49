package fabric

import (
	"context"
	"sync"
)

// tasks are goroutines that come and go while an Agent runs, and end with it.
type tasks struct {
	mu  sync.Mutex
	ctx context.Context //nolint:containedctx // that of Run, for what is started later
	all sync.WaitGroup
}

// run lets tasks be started until it is waited for.
func (t *tasks) run(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ctx = ctx
}

// start runs f until Run's context ends or stop is called, which waits for it.
func (t *tasks) start(f func(context.Context) error) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithCancel(t.ctx)
	done := make(chan struct{})
	t.all.Add(1)
	go func() {
		defer t.all.Done()
		defer close(done)
		_ = f(ctx) // it ends only with its context, and says in its status what is wrong
	}()
	return func() {
		cancel()
		<-done
	}
}

func (t *tasks) wait() { t.all.Wait() }
