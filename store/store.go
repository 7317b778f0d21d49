// Package store stores records in one bbolt file, the database. It knows nothing of networks.
//
// A value is JSON, preceded by the CRC-32C of its key and itself, so that a page which a disk or a stray write has
// altered is noticed when it is read, and never taken for a record.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Schema is the version of the records that this program writes. A file with a newer one is refused.
const Schema = 1

const (
	metaBucket = "meta"
	schemaKey  = "schema"

	// lockWait is how long Open waits for the file's lock; a daemon that shuts down releases it sooner.
	lockWait = time.Second
)

var (
	// ErrNotFound says that no record has that key.
	ErrNotFound = errors.New("not found")
	// ErrDamaged says that the file, or a value in it, differs from what was written.
	ErrDamaged = errors.New("damaged")
	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("in use")
	// ErrSchema says that the file was written by a newer program.
	ErrSchema = errors.New("written by a newer netyard")
	// ErrUnexamined says that the check of the file had no result.
	ErrUnexamined = errors.New("the check had no result")
)

// A Store is an open database. It has one writer: the process that opened it.
type Store struct {
	db         *bbolt.DB
	queue      queue
	journal    journal
	copyWriter copyWriter
	read       func(bucket, key string)
	// Damaged is the path that a damaged file was moved to; empty when the file was sound.
	Damaged string
	// Fresh says that there was no file, or an empty one.
	Fresh bool
	// Copy is the state of the copy of the kept records when the file was opened.
	Copy CopyState
}

// CopyState is what Open found out about the copy of the kept records.
type CopyState struct {
	// Missing says that there was no copy. On a host where netyard never ran there is none.
	Missing bool
	// Damaged says that the copy was not whole. If the file was lost as well, only some of the kept records are there.
	Damaged bool
	// Newer says that the copy had changes which the file did not have, since the file lost them or was replaced by an
	// older one. They are in the file again. It stays set over restarts until Recalled.
	Newer bool
	// MayBeLost says that the file was lost, and the copy missing or not whole; Lost says that there surely were
	// records. Both stay set over restarts until LossNoted, since a daemon that handles the loss may be killed.
	MayBeLost, Lost bool
	// Err is why the copy could not be brought up to date. Until that succeeds, changes of kept records are refused.
	Err error
}

// A Tx is a transaction: either all of its writes take effect, or none does.
type Tx struct {
	tx      *bbolt.Tx
	read    func(bucket, key string)
	pending []*pendingWrite // writes that the file does not have yet
	kept    *copyTx         // nil: there is no copy to write
	undo    *undoLog        // nil: a failure ends the whole transaction
}

// Config says where the file is and how it is checked before use.
type Config struct {
	Path string
	// Verify checks the file before it is opened, preferably in another process (see VerifyIn). nil: no check.
	Verify func(ctx context.Context, path string) error
	Now    func() time.Time
	// Init writes the first records of a new file, in the transaction that creates it. nil: there are none.
	Init func(Tx) error
	// Read is called with each record that a transaction reads; nil: nobody wants to know. Tests count with it.
	Read func(bucket, key string)
	// CopiedBuckets lists the buckets whose records have a copy beside the file and survive its loss.
	CopiedBuckets []string
	// NoSync: nothing waits for the disk, so that a crash of the host may lose or damage records; one of the process
	// does not. For tests.
	NoSync bool
	// FlushDelay is how long a write by Bucket.PutSoon waits for a transaction to be part of; default 20 ms.
	FlushDelay time.Duration
}

// Open opens the database, and creates it if there is none. A damaged file is moved aside and replaced by one that has
// only the kept records: Damaged then says where it is, and the caller rebuilds what it can from elsewhere. A file that
// cannot be checked, read or written is left as it is, and Open fails.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	s := &Store{copyWriter: copyWriter{path: c.Path + keptSuffix, buckets: c.CopiedBuckets}, read: c.Read}
	if s.journal.wait = c.FlushDelay; c.FlushDelay == 0 {
		s.journal.wait = flushDelay
	}
	lost, err := findLoss(ctx, c)
	if err != nil {
		return nil, err
	}
	if lost != nil {
		if err := s.replace(c, lost); err != nil {
			return nil, err
		}
	}
	if s.db, err = openDB(c.Path, c.NoSync); err != nil {
		return nil, err
	}
	if err := s.prepare(c); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

func openDB(path string, noSync bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockWait, FreelistType: bbolt.FreelistMapType, NoSync: noSync, NoGrowSync: noSync,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, lockedError(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// prepare makes an open database ready for use.
func (s *Store) prepare(c Config) error {
	if err := s.migrate(c.Init); err != nil {
		return err
	}
	if err := s.openJournal(); err != nil {
		return fmt.Errorf("open %s%s: %w", c.Path, journalSuffix, err)
	}
	if err := s.syncKept(); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", s.copyWriter.path, err), s.journal.close(s))
	}
	return nil
}

// findLoss returns why there is no usable file: fs.ErrNotExist or ErrDamaged; nil: there is one.
func findLoss(ctx context.Context, c Config) (lost, err error) {
	if _, err := os.Stat(c.Path); errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist, nil
	} else if err != nil {
		return nil, fmt.Errorf("find the database: %w", err)
	}
	if c.Verify == nil {
		return nil, nil
	}
	switch err := c.Verify(ctx, c.Path); {
	case err == nil:
		return nil, nil
	case errors.Is(err, ErrLocked):
		return nil, lockedError(c.Path)
	case errors.Is(err, ErrDamaged):
		return ErrDamaged, nil
	default:
		return nil, err
	}
}

// replace creates a file with only the kept records, moves a damaged one aside, and puts the new one in its place.
// Nothing is moved before the new file is complete, so that on a full disk everything stays as it is.
func (s *Store) replace(c Config, lost error) error {
	copied, err := readKeptBoth(s.copyWriter.path)
	if err != nil {
		return err
	}
	fresh := c.Path + newSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an unfinished database: %w", err)
	}
	if err := makeDB(fresh, c, copied, lost); err != nil {
		return errors.Join(fmt.Errorf("create a database: %w", err), os.RemoveAll(fresh))
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	suffix := ".damaged-" + now().UTC().Format("20060102T150405.000")
	if errors.Is(lost, ErrDamaged) {
		if err := os.Rename(c.Path, c.Path+suffix); err != nil {
			return errors.Join(fmt.Errorf("move damaged %s aside: %w", c.Path, err), os.RemoveAll(fresh))
		}
		s.Damaged = c.Path + suffix
	}
	if copied.found && !copied.whole {
		if err := os.Rename(s.copyWriter.path, s.copyWriter.path+suffix); err != nil {
			return fmt.Errorf("move damaged %s aside: %w", s.copyWriter.path, err)
		}
	}
	// The journal belongs to the file that is lost.
	if err := os.Remove(c.Path + journalSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the former journal: %w", err)
	}
	if err := os.Rename(fresh, c.Path); err != nil {
		return fmt.Errorf("put the new database in place: %w", err)
	}
	if err := syncDir(c.Path); err != nil {
		return fmt.Errorf("put the new database in place: %w", err)
	}
	s.Fresh, s.Copy.Missing, s.Copy.Damaged = true, !copied.found, copied.found && !copied.whole
	return nil
}

// makeDB creates a file with what Made writes and the records of a copy; lost says what happened to the former file.
func makeDB(path string, c Config, copied keptCopy, lost error) error {
	db, err := openDB(path, false)
	if err != nil {
		return err
	}
	s := &Store{db: db, copyWriter: copyWriter{buckets: c.CopiedBuckets}}
	err = s.migrate(c.Init)
	if err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			if err := putKept(tx, c.CopiedBuckets, copied); err != nil || copied.found && copied.whole {
				return err
			}
			loss := ""
			if copied.found || errors.Is(lost, ErrDamaged) {
				loss = lossSure
			}
			return tx.Bucket([]byte(metaBucket)).Put([]byte(lossKey), []byte(loss))
		})
	}
	return errors.Join(err, db.Close())
}

// lockedError names the process that has the file open.
func lockedError(path string) error {
	if pid := lockHolder(path); pid != 0 {
		return fmt.Errorf("open %s: %w by process %d", path, ErrLocked, pid)
	}
	return fmt.Errorf("open %s: %w by another process", path, ErrLocked)
}

// migrate brings the records to the current schema. There is only one so far.
func (s *Store) migrate(made func(Tx) error) error {
	v, err := s.schema()
	switch {
	case err != nil:
		return err
	case v > Schema:
		return fmt.Errorf("open %s: schema %d: %w (this one knows %d)", s.db.Path(), v, ErrSchema, Schema)
	case v == Schema: // without a transaction, for which a full disk may have no room
		return nil
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
		if err != nil {
			return fmt.Errorf("create bucket %s: %w", metaBucket, err)
		}
		s.Fresh = true
		if err := b.Put([]byte(schemaKey), []byte(strconv.Itoa(Schema))); err != nil || made == nil {
			return err
		}
		return made(Tx{tx: tx})
	})
}

// schema returns the version of the file's records; 0 when there is none yet.
func (s *Store) schema() (v int, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(metaBucket)); b != nil {
			v, err = schemaOf(b)
		}
		return err
	})
	return v, err
}

// schemaOf reads the version of the records from the meta bucket; 0 when there is none yet.
func schemaOf(meta *bbolt.Bucket) (int, error) {
	raw := meta.Get([]byte(schemaKey))
	if raw == nil {
		return 0, nil
	}
	v, err := strconv.Atoi(string(raw))
	if err != nil {
		return 0, fmt.Errorf("read schema version %q: %w", raw, ErrDamaged)
	}
	return v, nil
}

// View calls fn with a consistent view of the records.
func (s *Store) View(fn func(Tx) error) error {
	newer := s.journal.pending() // read before the transaction begins: isIn tells those that are flushed in between
	return s.db.View(func(tx *bbolt.Tx) error { return fn(Tx{tx: tx, read: s.read, pending: newer}) })
}

// A Revision identifies the records as they are at one moment: when it is the same again, none has changed meanwhile.
type Revision struct {
	written int
	pending uint64
}

// Revision returns the revision of the records.
func (s *Store) Revision() (r Revision) {
	s.journal.mu.Lock()
	r.pending = s.journal.last
	s.journal.mu.Unlock()
	_ = s.db.View(func(tx *bbolt.Tx) error { // it fails only when the database is closed
		r.written = tx.ID()
		return nil
	})
	return r
}

// Close flushes pending writes and closes the files.
func (s *Store) Close() error {
	return errors.Join(s.journal.close(s), s.db.Close())
}

// metaNumber reads a number from the meta bucket; 0: it is not there yet.
func metaNumber(meta *bbolt.Bucket, key string) (uint64, error) {
	raw := meta.Get([]byte(key))
	if raw == nil {
		return 0, nil
	}
	v, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s %q: %w", key, raw, ErrDamaged)
	}
	return v, nil
}

// putMetaNumber writes a number to the meta bucket.
func putMetaNumber(tx *bbolt.Tx, key string, n uint64) error {
	if err := tx.Bucket([]byte(metaBucket)).Put([]byte(key), strconv.AppendUint(nil, n, 10)); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}
