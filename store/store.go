// Package store keeps records in one bbolt file. It knows nothing of networks.
//
// A value is JSON behind the CRC-32C of its key and itself, so that a page which a disk or a stray write altered
// is noticed when it is read and never taken for a record.
package store

import (
	"context"
	"errors"
	"fmt"
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
)

// A Store is one open file. It has one writer: the process that opened it.
type Store struct {
	db    *bbolt.DB
	notes notes
	// Damaged is where a file that could not be trusted was moved to; empty when the file was sound.
	Damaged string
	// Fresh: there was no file, or an empty one.
	Fresh bool
}

// A Tx is a transaction: everything it wrote is there, or nothing is.
type Tx struct {
	tx    *bbolt.Tx
	notes []*note // what is newer than in the file
}

// Config says where the file is and how it is checked before use.
type Config struct {
	Path string
	// Verify examines the file before it is opened. It is best done in another process (see Verify):
	// bbolt reads damaged pages through a memory map, and what that does to a process cannot always be recovered from.
	// nil: no examination.
	Verify func(ctx context.Context, path string) error
	Now    func() time.Time
	// Made writes the first records of a new file, in the transaction that makes it. nil: there are none.
	Made func(Tx) error
	// Soon is how long what Bucket.Soon was given waits for a transaction that takes it along; default 20 ms.
	Soon time.Duration
}

// Open opens the file, making it if it is not there. A damaged file is moved aside and an empty one takes its place:
// Damaged then says where it went, and the caller rebuilds what it can from elsewhere.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	damaged, err := setAsideDamaged(ctx, c)
	if err != nil {
		return nil, err
	}
	db, err := bbolt.Open(c.Path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, lockedError(c.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	s := &Store{db: db, Damaged: damaged}
	if s.notes.wait = c.Soon; c.Soon == 0 {
		s.notes.wait = soonTime
	}
	if err := s.migrate(c.Made); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := s.openNotes(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s%s: %w", c.Path, notesSuffix, err), db.Close())
	}
	return s, nil
}

// setAsideDamaged moves a file that fails its examination out of the way and says where to.
func setAsideDamaged(ctx context.Context, c Config) (string, error) {
	if _, err := os.Stat(c.Path); errors.Is(err, os.ErrNotExist) || c.Verify == nil {
		return "", nil
	}
	err := c.Verify(ctx, c.Path)
	switch {
	case err == nil:
		return "", nil
	case errors.Is(err, ErrLocked):
		return "", lockedError(c.Path)
	case !errors.Is(err, ErrDamaged):
		return "", err
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	aside := c.Path + ".damaged-" + now().UTC().Format("20060102T150405.000")
	if err := os.Rename(c.Path, aside); err != nil {
		return "", fmt.Errorf("move damaged %s aside: %w", c.Path, err)
	}
	return aside, nil
}

func lockedError(path string) error {
	if pid := lockHolder(path); pid != 0 {
		return fmt.Errorf("open %s: %w by process %d", path, ErrLocked, pid)
	}
	return fmt.Errorf("open %s: %w by another process", path, ErrLocked)
}

// migrate brings the records to the current schema. There is one schema yet.
func (s *Store) migrate(made func(Tx) error) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(metaBucket))
		if err != nil {
			return fmt.Errorf("create bucket %s: %w", metaBucket, err)
		}
		s.Fresh = b.Get([]byte(schemaKey)) == nil
		v, err := schemaOf(b)
		if err != nil {
			return err
		}
		if v > Schema {
			return fmt.Errorf("open %s: schema %d: %w (this one knows %d)", s.db.Path(), v, ErrSchema, Schema)
		}
		if err := b.Put([]byte(schemaKey), []byte(strconv.Itoa(Schema))); err != nil || !s.Fresh || made == nil {
			return err
		}
		return made(Tx{tx: tx})
	})
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
	return s.db.View(func(tx *bbolt.Tx) error { return fn(Tx{tx, newer}) })
}

// Update changes the file; when fn fails nothing has changed. It holds the only write lock: do no kernel work in fn.
func (s *Store) Update(fn func(Tx) error) error {
	var folded uint64
	err := s.db.Update(func(tx *bbolt.Tx) (err error) {
		if folded, err = s.notes.into(tx); err != nil {
			return err
		}
		return fn(Tx{tx: tx})
	})
	if err == nil {
		s.notes.forget(folded)
	}
	return err
}

// Close gives the file up.
func (s *Store) Close() error {
	return errors.Join(s.notes.close(s), s.db.Close())
}
