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
	// notesSuffix is behind the name of the file that has what is not in the file yet.
	notesSuffix = ".notes"
	// foldedKey has the number of the last note that is in the file.
	foldedKey = "folded"
	// soonTime is how long a note waits for a transaction that takes it along, before it gets one of its own: until who
	// asked has heard.
	soonTime = 20 * time.Millisecond
	// againTime is the pause after one that failed.
	againTime = time.Second
)

// A note is a record that is to replace one which is in the file.
type note struct {
	N           uint64
	Bucket, Key string
	Value       []byte // as in the file, with its checksum

	// folded is the transaction that has it; 0: none.
	folded atomic.Int64
}

// notes are what every reader sees and the file does not have yet. They are in a file beside, too, so that they outlive
// the process.
type notes struct {
	wait time.Duration
	live atomic.Pointer[[]*note] // never changed, only replaced

	mu     sync.Mutex // of what follows, and of replacing live
	file   *os.File
	last   uint64
	timer  *time.Timer
	closed bool
}

// Soon replaces the record under key: for every reader at once, and in the file with the transaction that comes next,
// or in a moment. Until then it outlives the process, and not the host: it is for facts that a host which went down
// makes void. That way nobody has to wait for the disk. There has to be a record under the key already, and only one at
// a time may replace it.
func (b Bucket[T]) Soon(s *Store, key string, v T) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", b.Name, key, err)
	}
	if err := s.notes.put(&note{Bucket: b.Name, Key: key, Value: seal([]byte(key), p)}); err != nil {
		return fmt.Errorf("write %s %s: %w", b.Name, key, err)
	}
	s.notes.fold(s.notes.wait, s)
	return nil
}

// put appends a note to the file, and shows it.
func (ns *notes) put(n *note) error {
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
		return errors.Join(err, ns.file.Truncate(st.Size())) // nothing behind half a line would be read
	}
	ns.last = n.N
	ns.show(append(slices.Clone(ns.pending()), n))
	return nil
}

func (ns *notes) pending() []*note {
	if p := ns.live.Load(); p != nil {
		return *p
	}
	return nil
}

func (ns *notes) show(all []*note) { ns.live.Store(&all) }

// fold has the notes put into the file after a while, if no transaction does it before.
func (ns *notes) fold(after time.Duration, s *Store) {
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
		if err := s.Update(func(Tx) error { return nil }); err != nil { // the next one who waits for a transaction is told
			ns.fold(againTime, s)
		}
	})
}

// isIn says whether a transaction has the note. The number of one that was rolled back is that of the next one.
func (n *note) isIn(tx *bbolt.Tx) bool {
	f := n.folded.Load()
	return f != 0 && (f < int64(tx.ID()) || f == int64(tx.ID()) && !tx.Writable())
}

// into writes the notes into a transaction, before anything else: whoever changes a record changes the last one. It
// returns the number of the last.
func (ns *notes) into(tx *bbolt.Tx) (last uint64, err error) {
	all := slices.DeleteFunc(slices.Clone(ns.pending()), func(n *note) bool { return n.isIn(tx) })
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
	if err := putMetaNumber(tx, foldedKey, last); err != nil {
		return 0, err
	}
	for _, n := range all {
		n.folded.Store(int64(tx.ID()))
	}
	return last, nil
}

// forget is for notes that are in the file, up to the last.
func (ns *notes) forget(last uint64) {
	if last == 0 {
		return
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(ns.pending()), func(n *note) bool { return n.N <= last })
	ns.show(rest)
	if len(rest) == 0 && !ns.closed {
		_ = ns.file.Truncate(0) // what stays is known by its number
	}
}

// seen is the record under a key as a transaction sees it, when it finds stored in the file.
func (t Tx) seen(bucket, key string, stored []byte) []byte {
	if stored == nil {
		return nil
	}
	for _, n := range slices.Backward(t.notes) {
		if n.Key == key && n.Bucket == bucket && !n.isIn(t.tx) {
			return n.Value
		}
	}
	return stored
}

// openNotes opens the file beside, and puts what it has into the records: the process before has ended before it could.
// With new records it says nothing.
func (s *Store) openNotes() error {
	ns := &s.notes
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if s.Fresh {
		flags |= os.O_TRUNC
	}
	err := s.db.View(func(tx *bbolt.Tx) (err error) {
		ns.last, err = metaNumber(tx.Bucket([]byte(metaBucket)), foldedKey)
		return err
	})
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(s.db.Path() + notesSuffix)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if ns.file, err = os.OpenFile(s.db.Path()+notesSuffix, flags, 0o600); err != nil {
		return err
	}
	if left := readNotes(raw, ns.last); len(left) > 0 && !s.Fresh {
		ns.last = left[len(left)-1].N
		ns.show(left)
		err = s.Update(func(Tx) error { return nil })
	} else {
		err = ns.file.Truncate(0)
	}
	if err != nil {
		err = errors.Join(err, ns.file.Close())
	}
	return err
}

// readNotes reads the notes behind the last that is in the file, as far as they are sound: after the host went down
// anything may follow.
func readNotes(raw []byte, last uint64) (left []*note) {
	for line := range bytes.Lines(raw) {
		p, err := unseal(nil, bytes.TrimSuffix(line, []byte("\n")))
		n := &note{}
		if err != nil || json.Unmarshal(p, n) != nil {
			break
		}
		if n.N > last {
			left = append(left, n)
		}
	}
	return left
}

// close puts what is left into the file and closes the other one.
func (ns *notes) close(s *Store) error {
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
