package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

const (
	// journalSuffix is the suffix of the file with the writes that the database does not have yet.
	journalSuffix = ".notes"
	// flushedKey holds the number of the last pending write that is in the database.
	flushedKey = "folded"
	// flushDelay is how long a pending write waits for a transaction to be part of, before it gets one of its own: long
	// enough for the caller to be answered.
	flushDelay = 20 * time.Millisecond
	// retryDelay is the pause after a flush that failed.
	retryDelay = time.Second
)

// A pendingWrite is a record that is to replace one in the database.
type pendingWrite struct {
	N           uint64
	Bucket, Key string
	Value       []byte // as in the database, with its checksum

	// flushedIn is the transaction that contains it; 0: none.
	flushedIn atomic.Int64
}

// A journal holds the writes that every reader sees and the database does not have yet. They are also in a file, so
// that they survive the process.
type journal struct {
	wait time.Duration
	live atomic.Pointer[[]*pendingWrite] // the slice is never modified, only replaced

	mu     sync.Mutex // guards the fields below, and replacing live
	file   *os.File
	last   uint64
	timer  *time.Timer
	closed bool
}

// PutSoon replaces the record under key: at once for every reader, and in the database with the next transaction, or
// after a short delay. Until then it survives a crash of the process, but not of the host; so it is for facts that do
// not outlive the host's boot. The caller does not wait for the disk. There must be a record under the key already, and
// only one caller at a time may replace it.
func (b Bucket[T]) PutSoon(s *Store, key string, v T) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", b.Name, key, err)
	}
	if err := s.journal.put(&pendingWrite{Bucket: b.Name, Key: key, Value: seal([]byte(key), p)}); err != nil {
		return fmt.Errorf("write %s %s: %w", b.Name, key, err)
	}
	s.journal.flushAfter(s.journal.wait, s)
	return nil
}

// put appends a pending write to the journal file, and makes it visible to readers.
func (ns *journal) put(n *pendingWrite) error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.closed {
		return os.ErrClosed
	}
	n.N = ns.last + 1
	line, err := json.Marshal(n)
	if err != nil {
		return err
	}
	st, err := ns.file.Stat()
	if err != nil {
		return err
	}
	if _, err := ns.file.Write(append(seal(nil, line), '\n')); err != nil {
		return errors.Join(err, ns.file.Truncate(st.Size())) // readJournal stops at an incomplete line
	}
	ns.last = n.N
	ns.setPending(append(slices.Clone(ns.pending()), n))
	return nil
}

// pending returns the pending writes, oldest first.
func (ns *journal) pending() []*pendingWrite {
	if p := ns.live.Load(); p != nil {
		return *p
	}
	return nil
}

func (ns *journal) setPending(all []*pendingWrite) { ns.live.Store(&all) }

// flushAfter flushes the pending writes after a delay, unless a transaction does it before.
func (ns *journal) flushAfter(after time.Duration, s *Store) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.closed || ns.timer != nil {
		return
	}
	ns.timer = time.AfterFunc(after, func() {
		ns.mu.Lock()
		ns.timer = nil
		idle := ns.closed || len(ns.pending()) == 0
		ns.mu.Unlock()
		if idle {
			return
		}
		if err := s.Update(func(Tx) error { return nil }); err != nil { // the next Update reports it
			ns.flushAfter(retryDelay, s)
		}
	})
}

// isIn says whether a transaction sees the write in the database. A writing transaction may have the ID of one that was
// rolled back, so for it an equal ID does not count.
func (n *pendingWrite) isIn(tx *bbolt.Tx) bool {
	f := n.flushedIn.Load()
	return f != 0 && (f < int64(tx.ID()) || f == int64(tx.ID()) && !tx.Writable())
}

// writeTo puts the pending writes into a transaction, before its own writes, so that those replace the latest records.
// It returns the number of the last one.
func (ns *journal) writeTo(tx *bbolt.Tx) (last uint64, err error) {
	all := slices.DeleteFunc(slices.Clone(ns.pending()), func(n *pendingWrite) bool { return n.isIn(tx) })
	if len(all) == 0 {
		return 0, nil
	}
	for _, n := range all {
		bk := tx.Bucket([]byte(n.Bucket))
		if bk == nil || bk.Get([]byte(n.Key)) == nil {
			continue
		}
		if err := bk.Put([]byte(n.Key), n.Value); err != nil {
			return 0, fmt.Errorf("write %s %s: %w", n.Bucket, n.Key, err)
		}
	}
	last = all[len(all)-1].N
	if err := putMetaNumber(tx, flushedKey, last); err != nil {
		return 0, err
	}
	for _, n := range all {
		n.flushedIn.Store(int64(tx.ID()))
	}
	return last, nil
}

// dropFlushed drops the pending writes up to the number last, which are in the database now.
func (ns *journal) dropFlushed(last uint64) {
	if last == 0 {
		return
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(ns.pending()), func(n *pendingWrite) bool { return n.N <= last })
	ns.setPending(rest)
	if len(rest) == 0 && !ns.closed {
		_ = ns.file.Truncate(0) // if it fails, flushedKey tells which are old
	}
}

// latest returns the record under a key as a transaction sees it; stored is the one in the database.
func (t Tx) latest(bucket, key string, stored []byte) []byte {
	if stored == nil {
		return nil
	}
	for _, n := range slices.Backward(t.pending) {
		if n.Key == key && n.Bucket == bucket && !n.isIn(t.tx) {
			return n.Value
		}
	}
	return stored
}

// openJournal opens the journal file and flushes the writes that the process before left in it. With a fresh database
// they are discarded.
func (s *Store) openJournal() error {
	ns := &s.journal
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if s.Fresh {
		flags |= os.O_TRUNC
	}
	err := s.db.View(func(tx *bbolt.Tx) (err error) {
		ns.last, err = metaNumber(tx.Bucket([]byte(metaBucket)), flushedKey)
		return err
	})
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(s.db.Path() + journalSuffix)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if ns.file, err = os.OpenFile(s.db.Path()+journalSuffix, flags, 0o600); err != nil {
		return err
	}
	if left := readJournal(raw, ns.last); len(left) > 0 && !s.Fresh {
		ns.last = left[len(left)-1].N
		ns.setPending(left)
		err = s.Update(func(Tx) error { return nil })
	} else {
		err = ns.file.Truncate(0)
	}
	if err != nil {
		err = errors.Join(err, ns.file.Close())
	}
	return err
}

// readJournal reads the writes with numbers above last, up to the first unsound line: after a crash of the host
// anything may follow.
func readJournal(raw []byte, last uint64) (left []*pendingWrite) {
	for line := range bytes.Lines(raw) {
		p, err := unseal(nil, bytes.TrimSuffix(line, []byte("\n")))
		n := &pendingWrite{}
		if err != nil || json.Unmarshal(p, n) != nil {
			break
		}
		if n.N > last {
			left = append(left, n)
		}
	}
	return left
}

// close flushes the pending writes and closes the journal file.
func (ns *journal) close(s *Store) error {
	var err error
	if len(ns.pending()) > 0 {
		err = s.Update(func(Tx) error { return nil })
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.closed = true
	if ns.timer != nil {
		ns.timer.Stop()
	}
	return errors.Join(err, ns.file.Close())
}
