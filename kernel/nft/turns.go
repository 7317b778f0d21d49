package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/exchange"
)

const (
	// replyMargin is the part of a request's time that is left after waiting, to undo what it began and to answer.
	replyMargin = time.Second
	// pollInterval is how often RunLater checks whether the current exchange takes too long to wait for.
	pollInterval = 50 * time.Millisecond
)

// ErrBusy means that a change of the firewall could not be made in time.
var ErrBusy = errors.New("the kernel's firewall is busy")

// turns is a lock that is granted in the order of the requests.
type turns struct {
	mu      sync.Mutex
	taken   bool
	waiting []chan struct{}
}

// queue adds a place at the end. The channel is closed when its turn comes.
func (t *turns) queue() chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	place := make(chan struct{})
	if t.taken {
		t.waiting = append(t.waiting, place)
		return place
	}
	t.taken = true
	close(place)
	return place
}

// leave gives up a place, or the turn if it has come meanwhile.
func (t *turns) leave(place chan struct{}) {
	t.mu.Lock()
	i := slices.Index(t.waiting, place)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 {
		t.next()
	}
}

// next ends a turn, and begins the next one.
func (t *turns) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.taken = false
		return
	}
	close(t.waiting[0])
	t.waiting = t.waiting[1:]
}

// A Turn is a change of the ruleset that runs alone. It changes what is wanted in memory and what the kernel has.
type Turn struct {
	// Act says what it does, for errors and the log.
	Act string
	// Do makes the change, or leaves everything as it was.
	Do func() error
	// Undo reverts the change if its caller no longer waited for the end.
	Undo func() error
}

// Run makes a change in its turn. If ctx has a deadline, Run returns ErrBusy before it; if the change is made after
// that all the same, it is undone before any other turn. Without a deadline Run waits as long as the change takes.
func (f *Firewall) Run(ctx context.Context, t Turn) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		return f.RunNow(t.Do)
	}
	left := time.Until(deadline)
	ctx, cancel := context.WithTimeout(ctx, left-min(replyMargin, left/4))
	defer cancel()
	place := f.turns.queue()
	select {
	case <-place:
	case <-ctx.Done():
		f.turns.leave(place)
		return f.busy(ctx, t.Act)
	}
	done := make(chan error, 1)
	var decided atomic.Bool // by the end of the change or by the end of the wait, whichever is first
	go func() {
		defer f.turns.next()
		err := f.inTurn(t.Do)
		if decided.CompareAndSwap(false, true) {
			done <- err
		} else if err == nil {
			f.undoLate(t)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if !decided.CompareAndSwap(false, true) {
			return <-done
		}
		return f.busy(ctx, t.Act)
	}
}

// RunLater makes a change that removes or undoes something. It is made in its turn in any case; while the kernel is
// busy, RunLater does not wait for it, and returns nil.
func (f *Firewall) RunLater(t Turn) error {
	place := f.turns.queue()
	done := make(chan error, 1)
	var decided atomic.Bool // by the end of the change or by the end of the wait, whichever is first
	go func() {
		<-place
		defer f.turns.next()
		err := f.inTurn(t.Do)
		if !decided.CompareAndSwap(false, true) && err != nil { // nobody will repeat the request
			f.applyInMemory(t.Act, t.Do, err)
		}
		done <- err
	}()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for end := time.Now().Add(core.NetlinkTimeout); ; {
		select {
		case err := <-done:
			return err
		case now := <-tick.C:
			if f.out.Took() < exchange.Slow && now.Before(end) {
				continue
			}
			if !decided.CompareAndSwap(false, true) {
				return <-done
			}
			return nil
		}
	}
}

// RunNow makes a change in its turn, however long that takes.
func (f *Firewall) RunNow(do func() error) error {
	<-f.turns.queue()
	defer f.turns.next()
	return f.inTurn(do)
}

// inTurn runs a change with an empty transaction, so that messages which an earlier turn did not send are not sent with
// it. Afterwards, if a socket had to be replaced, it takes ownership of the tables again, and compares them.
func (f *Firewall) inTurn(do func() error) error {
	f.tx = exchange.NewTransaction()
	err := do()
	if f.Loaded && f.out.Orphaned {
		f.report("take ownership of the tables again", f.reconcile())
	}
	return err
}

// undoLate undoes a change that was made after its caller got ErrBusy, within the same turn.
func (f *Firewall) undoLate(t Turn) {
	if err := f.inTurn(t.Undo); err != nil {
		f.applyInMemory("undo: "+t.Act, t.Undo, err)
	}
}

// applyInMemory makes a change in memory alone. It is used when the change failed in the kernel after its request was
// answered, so that nobody will repeat it. The watcher makes the kernel match later.
func (f *Firewall) applyInMemory(act string, do func() error, cause error) {
	f.inMemory = true
	err := do()
	f.inMemory, f.mayDiffer = false, true
	f.tx = exchange.NewTransaction()
	f.report(act, errors.Join(cause, err))
}

// report logs a failed change that nobody waits for. The kernel may then differ from memory, so the watcher has to
// compare.
func (f *Firewall) report(act string, err error) {
	if err == nil {
		return
	}
	f.log.Warn("firewall change failed", "act", act, "err", err)
	f.poke()
}

// busy returns the error of a change that was not made in time.
func (f *Firewall) busy(ctx context.Context, act string) error {
	return fmt.Errorf("%s: %w%s; nothing was changed, try again: %w", act, ErrBusy, f.out.ForHowLong(), ctx.Err())
}
