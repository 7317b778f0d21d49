// Package store keeps records in one bbolt file. It knows nothing of networks.
//
// A value is JSON behind the CRC-32C of its key and itself, so that a page which a disk or a stray write altered
// is noticed when it is read and never taken for a record.
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

// Schema is the version of the records this program writes. A file of a newer one is refused.
const Schema = 1

const (
	metaBucket = "meta"
	schemaKey  = "schema"

	// lockWait is how long Open waits for the file's lock; a daemon that is shutting down gives it up in less.
	lockWait = time.Second
)

var (
	// ErrNotFound says that no record has that key.
	ErrNotFound = errors.New("not found")
	// ErrDamaged says that the file, or a value in it, is not what was written.
	ErrDamaged = errors.New("damaged")
	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("in use")
	// ErrSchema says that the file was written by a newer program.
	ErrSchema = errors.New("written by a newer netyard")
	// ErrUnexamined says that it could not be found out whether the file is sound.
	ErrUnexamined = errors.New("the examination came to no result")
)

// A Store is one open file. It has one writer: the process that opened it.
type Store struct {
	db     *bbolt.DB
	notes  notes
	keeper keeper
	// Damaged is where a file that could not be trusted was moved to; empty when the file was sound.
	Damaged string
	// Fresh: there was no file, or an empty one.
	Fresh bool
	// Kept is what became of the copy of the kept records.
	Kept KeptState
}

// KeptState is what Open found of the copy of the kept records.
type KeptState struct {
	// Missing: there was no copy. On a host where netyard never ran there is none.
	Missing bool
	// Damaged: it was not whole. If the file was lost as well, only a part of the kept records is there.
	Damaged bool
	// Newer: it had changes that the file had lost, or an older file was put in its place. They are in the file again.
	// It stays so over restarts until Recalled.
	Newer bool
	// MayBeLost: the file was lost, and the copy was missing or not whole. Lost: there were records. Both stay so over
	// restarts until LossNoted: who finds out what was lost may be killed before that.
	MayBeLost, Lost bool
	// Err is why it could not be brought up to date. Changes of kept records are refused for as long as it cannot.
	Err error
}

// A Tx is a transaction: everything it wrote is there, or nothing is.
type Tx struct {
	tx    *bbolt.Tx
	notes []*note // what is newer than in the file
	kept  *keptTx // nil: nothing is to be copied
}

// Config says where the file is and how it is checked before use.
type Config struct {
	Path string
	// Verify examines the file before it is opened. It is best done in another process (see Verify). nil: no
	// examination.
	Verify func(ctx context.Context, path string) error
	Now    func() time.Time
	// Made writes the first records of a new file, in the transaction that makes it. nil: there are none.
	Made func(Tx) error
	// Kept are the buckets whose records have a copy beside the file and outlive it.
	Kept []string
	// Soon is how long what Bucket.Soon was given waits for a transaction that takes it along; default 20 ms.
	Soon time.Duration
}

// Open opens the file, making it if it is not there. A damaged file is moved aside and another takes its place, which
// has nothing but the kept records: Damaged then says where it went, and the caller rebuilds what it can from
// elsewhere. What cannot be examined, read or written is left as it is, and is an error.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	s := &Store{keeper: keeper{path: c.Path + keptSuffix, buckets: c.Kept}}
	if s.notes.wait = c.Soon; c.Soon == 0 {
		s.notes.wait = soonTime
	}
	lost, err := isLost(ctx, c)
	if err != nil {
		return nil, err
	}
	if lost != nil {
		if err := s.replace(c, lost); err != nil {
			return nil, err
		}
	}
	if s.db, err = openDB(c.Path); err != nil {
		return nil, err
	}
	if err := s.prepare(c); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

func openDB(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, lockedError(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return db, nil
}

// prepare makes an open file ready for use.
func (s *Store) prepare(c Config) error {
	if err := s.migrate(c.Made); err != nil {
		return err
	}
	if err := s.openNotes(); err != nil {
		return fmt.Errorf("open %s%s: %w", c.Path, notesSuffix, err)
	}
	if err := s.syncKept(); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", s.keeper.path, err), s.notes.close(s))
	}
	return nil
}

// isLost says why there is no file that can be used: fs.ErrNotExist, or ErrDamaged; nil: there is one.
func isLost(ctx context.Context, c Config) (lost, err error) {
	if _, err := os.Stat(c.Path); errors.Is(err, fs.ErrNotExist) {
		return fs.ErrNotExist, nil
	} else if err != nil {
		return nil, fmt.Errorf("look for the database: %w", err)
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

// replace makes a file with the kept records alone, moves a damaged one aside, and puts the new one in its place.
// Nothing is moved before there is something to take its place: on a full disk all stays as it is.
func (s *Store) replace(c Config, lost error) error {
	copied, err := readKeptBoth(s.keeper.path)
	if err != nil {
		return err
	}
	fresh := c.Path + newSuffix
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an unfinished database: %w", err)
	}
	if err := makeDB(fresh, c, copied, lost); err != nil {
		return errors.Join(fmt.Errorf("make a database: %w", err), os.RemoveAll(fresh))
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
		if err := os.Rename(s.keeper.path, s.keeper.path+suffix); err != nil {
			return fmt.Errorf("move damaged %s aside: %w", s.keeper.path, err)
		}
	}
	if err := os.Remove(c.Path + notesSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) { // they are of the file that is lost
		return fmt.Errorf("remove former notes: %w", err)
	}
	if err := os.Rename(fresh, c.Path); err != nil {
		return fmt.Errorf("put the new database in place: %w", err)
	}
	if err := syncDir(c.Path); err != nil {
		return fmt.Errorf("put the new database in place: %w", err)
	}
	s.Fresh, s.Kept.Missing, s.Kept.Damaged = true, !copied.found, copied.found && !copied.whole
	return nil
}

// makeDB makes a file that has what Made writes, and the records of a copy; lost is what became of the former one.
func makeDB(path string, c Config, copied keptCopy, lost error) error {
	db, err := openDB(path)
	if err != nil {
		return err
	}
	s := &Store{db: db, keeper: keeper{buckets: c.Kept}}
	err = s.migrate(c.Made)
	if err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			if err := putKept(tx, c.Kept, copied); err != nil || copied.found && copied.whole {
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

func lockedError(path string) error {
	if pid := lockHolder(path); pid != 0 {
		return fmt.Errorf("open %s: %w by process %d", path, ErrLocked, pid)
	}
	return fmt.Errorf("open %s: %w by another process", path, ErrLocked)
}

// migrate brings the records to the current schema. There is one schema yet.
func (s *Store) migrate(made func(Tx) error) error {
	v, err := s.schema()
	switch {
	case err != nil:
		return err
	case v > Schema:
		return fmt.Errorf("open %s: schema %d: %w (this one knows %d)", s.db.Path(), v, ErrSchema, Schema)
	case v == Schema: // a full disk may have no room for a transaction
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

// schema is the version of the file's records; 0 when there is none yet.
func (s *Store) schema() (v int, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(metaBucket)); b != nil {
			v, err = schemaOf(b)
		}
		return err
	})
	return v, err
}

// schemaOf reads the version of the records; 0 when there is none yet.
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

// View reads a consistent picture of the records.
func (s *Store) View(fn func(Tx) error) error {
	newer := s.notes.pending() // before the transaction begins: one that is folded in between says so itself
	return s.db.View(func(tx *bbolt.Tx) error { return fn(Tx{tx: tx, notes: newer}) })
}

// Update changes the file; when fn fails nothing has changed. It holds the only write lock: do no kernel work in fn.
func (s *Store) Update(fn func(Tx) error) error {
	var folded uint64
	kept := &keptTx{keeper: &s.keeper}
	defer kept.end()
	err := s.db.Update(func(tx *bbolt.Tx) (err error) {
		if folded, err = s.notes.into(tx); err != nil {
			return err
		}
		if err := fn(Tx{tx: tx, kept: kept}); err != nil {
			return err
		}
		return kept.stage(tx)
	})
	if err != nil {
		return errors.Join(err, kept.discard())
	}
	s.notes.forget(folded)
	kept.publish()
	return nil
}

// Close gives the file up.
func (s *Store) Close() error {
	return errors.Join(s.notes.close(s), s.db.Close())
}

// metaNumber reads a number of the file's own records; 0: it is not there yet.
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

func putMetaNumber(tx *bbolt.Tx, key string, n uint64) error {
	if err := tx.Bucket([]byte(metaBucket)).Put([]byte(key), strconv.AppendUint(nil, n, 10)); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}
