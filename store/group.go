package store

import (
	"errors"
	"sync"

	"go.etcd.io/bbolt"
)

// Changes that wait while another transaction is written share the next one: syncing the disk takes longer than all
// else, and one sync serves them all. Each function still runs in its caller's goroutine, one at a time, and what a
// failing one wrote is undone, so a caller cannot tell whether it was alone.

// errNothing ends a transaction in which every change failed.
var errNothing = errors.New("no change succeeded")

// errUnfinished is the result of a change whose function did not return: it panicked, or ended its goroutine.
var errUnfinished = errors.New("the change did not finish")

// A change is one call of Update.
type change struct {
	do func(Tx) error
	// lead receives when its caller is to write a transaction, with this change and all others that wait.
	lead chan struct{}
	// begin receives the transaction when it is the change's turn in one that another caller writes; ran is closed when
	// it has run.
	begin chan Tx
	ran   chan struct{}
	// done is closed when the transaction has ended; err is the result.
	done chan struct{}
	err  error
}

// A queue has the changes that wait for the next transaction.
type queue struct {
	mu      sync.Mutex
	busy    bool // a transaction is being written
	waiting []*change
}

// enter adds a change. leads: no transaction is being written, so its caller writes the next one.
func (q *queue) enter(c *change) (leads bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, c)
	leads = !q.busy
	q.busy = true
	return leads
}

// take returns all changes that wait.
func (q *queue) take() (all []*change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all, q.waiting = q.waiting, nil
	return all
}

// leave has the first of the changes that wait lead the next transaction.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.busy = false
		return
	}
	q.waiting[0].lead <- struct{}{}
}

// Update changes records; if fn fails, nothing changes. No two of these functions run at the same time, so fn must not
// do kernel work. When Update returns nil the changes are on the disk.
func (s *Store) Update(fn func(Tx) error) error {
	c := &change{
		do: fn, lead: make(chan struct{}, 1), begin: make(chan Tx), ran: make(chan struct{}), done: make(chan struct{}),
		err: errUnfinished,
	}
	if s.queue.enter(c) {
		return s.lead(c)
	}
	select {
	case <-c.lead:
		return s.lead(c)
	case tx := <-c.begin:
		c.run(tx)
		<-c.done
		return c.err
	}
}

// run calls the change's function.
func (c *change) run(tx Tx) {
	defer close(c.ran)
	c.err = c.do(tx)
}

// lead writes a transaction with a change and all that wait.
func (s *Store) lead(own *change) error {
	all := s.queue.take()
	err := errUnfinished // if the function of own panics
	defer func() {
		for _, c := range all {
			c.finish(c == own, err)
		}
		s.queue.leave()
	}()
	err = s.write(own, all)
	return own.result(err)
}

// finish gives a change the result of its transaction.
func (c *change) finish(leads bool, err error) {
	select {
	case <-c.ran:
	default:
		if !leads { // its caller waits for its turn
			c.do = func(Tx) error { return err }
			c.begin <- Tx{}
			<-c.ran
		}
	}
	c.err = c.result(err)
	close(c.done)
}

// result returns a change's own error, or else that of its transaction.
func (c *change) result(err error) error {
	if c.err != nil && (!errors.Is(c.err, errUnfinished) || err == nil) {
		return c.err
	}
	return err
}

// write writes a transaction with some changes.
func (s *Store) write(own *change, all []*change) error {
	var flushed uint64
	kept := &copyTx{copyWriter: &s.copyWriter}
	defer kept.end()
	err := s.db.Update(func(tx *bbolt.Tx) (err error) {
		if flushed, err = s.journal.writeTo(tx); err != nil {
			return err
		}
		t := Tx{tx: tx, read: s.read, kept: kept}
		if len(all) > 1 {
			t.undo = &undoLog{}
		}
		if err := t.runAll(own, all); err != nil {
			return err
		}
		return kept.stage(tx)
	})
	if err != nil {
		return errors.Join(err, kept.discard())
	}
	s.journal.dropFlushed(flushed)
	kept.publish()
	return nil
}

// runAll calls the functions of changes, one after the other, and undoes what failing ones wrote.
func (tx Tx) runAll(own *change, all []*change) error {
	succeeded := false
	for _, c := range all {
		if c == own {
			c.run(tx)
		} else {
			c.begin <- tx
			<-c.ran
		}
		succeeded = succeeded || c.err == nil
		if tx.undo == nil {
			continue
		}
		if c.err != nil {
			if err := tx.undo.apply(tx.tx); err != nil {
				return err
			}
		}
		tx.undo.entries = nil
	}
	if !succeeded {
		return errNothing
	}
	return nil
}

// An undoLog has what a change replaced, in order. One that is alone needs none: its transaction ends with it.
type undoLog struct{ entries []replaced }

// A replaced value is one that a change wrote over or deleted; nil: there was none.
type replaced struct {
	bucket, key string
	value       []byte
}

// apply puts the values back.
func (u *undoLog) apply(tx *bbolt.Tx) error {
	for i := len(u.entries) - 1; i >= 0; i-- {
		e := u.entries[i]
		b := tx.Bucket([]byte(e.bucket))
		var err error
		if e.value == nil {
			err = b.Delete([]byte(e.key))
		} else {
			err = b.Put([]byte(e.key), e.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
