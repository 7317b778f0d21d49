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
)

const (
	// margin is what a request keeps of its time, to take back what it began and to answer.
	margin = time.Second
	// glance is how often who waits for what is going to be done in any case looks whether it takes long.
	glance = 50 * time.Millisecond
)

// ErrBusy says that a change of the firewall could not be made in time.
var ErrBusy = errors.New("the kernel's firewall is busy")

// turns lets one after the other have something, in the order in which they came.
type turns struct {
	mu      sync.Mutex
	taken   bool
	waiting []chan struct{}
}

// queue takes a place: the channel is closed when it is its turn.
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

// leave gives up a place, or the turn that came meanwhile.
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

// next ends a turn.
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

// A Turn is a change of the ruleset as one of them does it: alone, from what is wanted in memory to what the kernel
// has.
type Turn struct {
	Act string
	// Do makes the change, or leaves everything as it was.
	Do func() error
	// Undo takes it back, for who did not wait for its end.
	Undo func() error
}

// Run does a change in its turn. Who has a deadline hears in time that the kernel is busy; whatever of the change comes
// to be done after that is taken back before anything else is. Who has none waits as long as it takes.
func (f *Firewall) Run(ctx context.Context, t Turn) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		return f.RunNow(t.Do)
	}
	left := time.Until(deadline)
	ctx, cancel := context.WithTimeout(ctx, left-min(margin, left/4))
	defer cancel()
	place := f.turns.queue()
	select {
	case <-place:
	case <-ctx.Done():
		f.turns.leave(place)
		return f.busy(ctx, t.Act)
	}
	done := make(chan error, 1)
	var settled atomic.Bool // by the end of the change or by that of the wait, whichever is first
	go func() {
		defer f.turns.next()
		err := f.inTurn(t.Do)
		if settled.CompareAndSwap(false, true) {
			done <- err
		} else if err == nil {
			f.Late("take back: "+t.Act, t.Undo)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if !settled.CompareAndSwap(false, true) {
			return <-done
		}
		return f.busy(ctx, t.Act)
	}
}

// RunLater is for what takes something away or back: it is done in its turn in any case, and not waited for when the
// kernel is busy.
func (f *Firewall) RunLater(t Turn) error {
	place := f.turns.queue()
	done := make(chan error, 1)
	var settled atomic.Bool // by the end of the change or by that of the wait, whichever is first
	go func() {
		<-place
		defer f.turns.next()
		err := f.inTurn(t.Do)
		if !settled.CompareAndSwap(false, true) && err != nil { // nobody will ask for it again
			f.insist(t.Act, t.Do, err)
		}
		done <- err
	}()
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for end := time.Now().Add(core.NetlinkTimeout); ; {
		select {
		case err := <-done:
			return err
		case now := <-tick.C:
			if f.out.took() < slow && now.Before(end) {
				continue
			}
			if !settled.CompareAndSwap(false, true) {
				return <-done
			}
			return nil
		}
	}
}

// RunNow does a change in its turn, however long that takes.
func (f *Firewall) RunNow(do func() error) error {
	<-f.turns.queue()
	defer f.turns.next()
	return f.inTurn(do)
}

// inTurn begins with an empty transaction: what somebody put together and did not send is not to go with another's. It
// ends with tables that are netyard's: when a socket had to be replaced they are nobody's.
func (f *Firewall) inTurn(do func() error) error {
	f.Tx = newTransaction()
	err := do()
	if f.Loaded && f.out.orphaned {
		f.report("claim the tables again", f.settle())
	}
	return err
}

// Late makes a change that nobody waits for.
func (f *Firewall) Late(act string, do func() error) {
	if err := f.inTurn(do); err != nil {
		f.insist(act, do, err)
	}
}

// insist is for a change that was answered before it was made, and failed: nobody will ask for it again. It is made in
// memory alone, and the watcher makes the kernel follow, as soon as that can be done.
func (f *Firewall) insist(act string, do func() error, cause error) {
	f.inMemory = true
	err := do()
	f.inMemory, f.doubt = false, true
	f.Tx = newTransaction()
	f.report(act, errors.Join(cause, err))
}

// report is for changes whose outcome nobody waits for. One that failed leaves the kernel other than memory: the
// watcher compares.
func (f *Firewall) report(act string, err error) {
	if err == nil {
		return
	}
	f.log.Warn("change the firewall", "to", act, "err", err)
	f.poke()
}

// busy is why a change was not made in time.
func (f *Firewall) busy(ctx context.Context, act string) error {
	return fmt.Errorf("%s: %w%s; nothing was changed, try again: %w", act, ErrBusy, f.out.forHowLong(), ctx.Err())
}
