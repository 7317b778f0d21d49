package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
)

// Kept buckets are those whose records have a copy in a file beside the records, so that they outlive the loss of the
// file. The copy is written within the transaction that changes one of them: next to the former copy and synced before
// the commit, in its place after it. So what was acknowledged is in both files, and a copy that cannot be written
// refuses the change. A crash in between leaves both copies, and what either has counts.
const (
	// keptSuffix is behind the name of the file that has the copy.
	keptSuffix = ".kept"
	// newSuffix is behind the name of a file that is being written.
	newSuffix = ".new"
	// generationKey has how often the kept records were changed: of a copy and a file that differ the higher one is
	// the newer.
	generationKey = "kept"
	// recallKey is there from when a newer copy was put into the file until Recalled.
	recallKey = "kept-recall"
	// lossKey is there from when a file was made for one that was lost, with a copy that was not whole, until
	// LossNoted. Its value is lossSure if there were records, and empty if there may have been none.
	lossKey  = "kept-loss"
	lossSure = "sure"
)

// A keptRecord is one record of a copy. Its value is as in the file, with its checksum.
type keptRecord struct {
	Bucket, Key string
	Value       []byte
}

// A keptHead is the first line of a copy.
type keptHead struct {
	Schema     int
	Generation uint64
	Records    int
}

// A keptCopy is what a copy has.
type keptCopy struct {
	generation uint64
	records    map[[2]string][]byte // by bucket and key
	// found: there is a copy. whole: nothing of it is missing or altered.
	found, whole bool
	// numbered: it has a generation. A file that an older netyard made has none.
	numbered bool
}

// readKept reads a copy as far as it is sound.
func readKept(path string) (c keptCopy, err error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read copy of records: %w", err)
	}
	c = keptCopy{found: true, records: map[[2]string][]byte{}}
	lines := bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	var head keptHead
	p, err := unseal(nil, lines[0])
	sound := err == nil && json.Unmarshal(p, &head) == nil
	if sound && head.Schema > Schema {
		return c, fmt.Errorf("read %s: schema %d: %w (this one knows %d)", path, head.Schema, ErrSchema, Schema)
	}
	c.generation = head.Generation
	for _, line := range lines[1:] {
		var r keptRecord
		p, err := unseal(nil, line)
		if err == nil {
			err = json.Unmarshal(p, &r)
		}
		if err == nil {
			_, err = unseal([]byte(r.Key), r.Value)
		}
		if err != nil || r.Bucket == "" {
			sound = false
			continue
		}
		c.records[[2]string{r.Bucket, r.Key}] = r.Value
	}
	c.whole = sound && len(c.records) == head.Records
	return c, nil
}

// readKeptBoth reads the copy, and what a crash left beside it. Of what only one of them has the caller gets it, too:
// a change that nobody was told of may have taken it away, and what was closed is closed rather too long.
func readKeptBoth(path string) (c keptCopy, err error) {
	if c, err = readKept(path); err != nil {
		return c, err
	}
	next, err := readKept(path + newSuffix)
	if err != nil || !next.whole { // torn: its transaction was not committed
		return c, err
	}
	if !c.found {
		return next, nil
	}
	c.generation = max(c.generation, next.generation)
	maps.Copy(c.records, next.records)
	return c, nil
}

func (c keptCopy) encode() ([]byte, error) {
	head, err := json.Marshal(keptHead{Schema: Schema, Generation: c.generation, Records: len(c.records)})
	if err != nil {
		return nil, err
	}
	out := append(seal(nil, head), '\n')
	keys := slices.SortedFunc(maps.Keys(c.records), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	for _, k := range keys {
		line, err := json.Marshal(keptRecord{Bucket: k[0], Key: k[1], Value: c.records[k]})
		if err != nil {
			return nil, err
		}
		out = append(append(out, seal(nil, line)...), '\n')
	}
	return out, nil
}

// keptOf collects the kept records as a transaction sees them.
func keptOf(tx *bbolt.Tx, buckets []string) (c keptCopy, err error) {
	c = keptCopy{found: true, whole: true, records: map[[2]string][]byte{}}
	meta := tx.Bucket([]byte(metaBucket))
	if c.generation, err = metaNumber(meta, generationKey); err != nil {
		return c, err
	}
	c.numbered = meta.Get([]byte(generationKey)) != nil
	for _, name := range buckets {
		b := tx.Bucket([]byte(name))
		if b == nil {
			continue
		}
		err := b.ForEach(func(k, v []byte) error {
			c.records[[2]string{name, string(k)}] = bytes.Clone(v)
			return nil
		})
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// putKept makes the kept records those of a copy.
func putKept(tx *bbolt.Tx, buckets []string, c keptCopy) error {
	for _, name := range buckets {
		if err := tx.DeleteBucket([]byte(name)); err != nil && tx.Bucket([]byte(name)) != nil {
			return fmt.Errorf("replace bucket %s: %w", name, err)
		}
	}
	for k, v := range c.records {
		if !slices.Contains(buckets, k[0]) {
			continue // nobody keeps it any more
		}
		b, err := tx.CreateBucketIfNotExists([]byte(k[0]))
		if err == nil {
			err = b.Put([]byte(k[1]), v)
		}
		if err != nil {
			return fmt.Errorf("write %s %s: %w", k[0], k[1], err)
		}
	}
	return putMetaNumber(tx, generationKey, c.generation)
}

// A keeper writes the copy of the kept records.
type keeper struct {
	path    string
	buckets []string
	// mu: from the first write of a copy until it is in its place, or gone.
	mu sync.Mutex
}

// A keptTx is a transaction's part of the copy.
type keptTx struct {
	*keeper

	dirty, held bool
}

// touch notes that a record of a bucket changes from what it was; nil: there was none, or is none.
func (k *keptTx) touch(bucket string, from, to []byte) {
	if k != nil && !bytes.Equal(from, to) && slices.Contains(k.buckets, bucket) {
		k.dirty = true
	}
}

// stage writes the copy as a transaction leaves it next to the former one, and syncs it.
func (k *keptTx) stage(tx *bbolt.Tx) error {
	if !k.dirty {
		return nil
	}
	k.mu.Lock() // the former transaction may not have put its copy in place yet
	k.held = true
	generation, err := metaNumber(tx.Bucket([]byte(metaBucket)), generationKey)
	if err == nil {
		err = putMetaNumber(tx, generationKey, generation+1)
	}
	if err != nil {
		return err
	}
	c, err := keptOf(tx, k.buckets)
	if err == nil {
		err = k.write(c)
	}
	if err != nil {
		return fmt.Errorf("write copy of records: %w", err)
	}
	return nil
}

// discard takes away the copy of a transaction that was not committed.
func (k *keptTx) discard() error {
	if !k.held {
		return nil
	}
	return k.unstage()
}

// publish puts the copy of a committed transaction in its place. If that fails it is on the disk all the same, and
// counts.
func (k *keptTx) publish() {
	if k.held {
		_ = k.keeper.publish()
	}
}

func (k *keptTx) end() {
	if k.held {
		k.mu.Unlock()
	}
}

// syncKept makes the copy and the file have the same. The file is right, unless the copy is newer: then the file has
// lost a transaction, with a page of its own, or an older one was put in its place. A file without a generation is of a
// netyard that knew of no copy: it is right, but for what the copy alone has.
func (s *Store) syncKept() error {
	found, err := readKept(s.keeper.path)
	if err != nil {
		return err
	}
	own, same := keptCopy{}, true
	err = s.db.View(func(tx *bbolt.Tx) error {
		own, err = keptOf(tx, s.keeper.buckets)
		return err
	})
	if err != nil {
		return err
	}
	if found.generation > own.generation {
		if !found.whole {
			maps.Copy(own.records, found.records)
			found.records = own.records
		}
		if !own.numbered {
			maps.Copy(found.records, own.records)
		}
		err := s.db.Update(func(tx *bbolt.Tx) error {
			if err := putKept(tx, s.keeper.buckets, found); err != nil || !own.numbered {
				return err
			}
			return tx.Bucket([]byte(metaBucket)).Put([]byte(recallKey), []byte{})
		})
		if err != nil {
			return err
		}
		same = same && own.numbered
		own.records, own.generation = found.records, found.generation
	} else if !own.numbered { // if there is no room for it, the next start does it
		_ = s.db.Update(func(tx *bbolt.Tx) error { return putMetaNumber(tx, generationKey, own.generation) })
	}
	if err := s.readMarks(); err != nil {
		return err
	}
	if !s.Fresh {
		s.Kept.Missing, s.Kept.Damaged = !found.found, found.found && !found.whole
	}
	same = same && found.whole && found.generation == own.generation && maps.EqualFunc(found.records, own.records, bytes.Equal)
	if same {
		return s.keeper.unstage()
	}
	own.found, own.whole = true, true
	if s.Kept.Err = s.keeper.write(own); s.Kept.Err == nil {
		s.Kept.Err = s.keeper.publish()
	}
	return nil
}

// readMarks finds out what is still to be done about a copy that was newer, or not whole.
func (s *Store) readMarks() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(metaBucket))
		s.Kept.Newer = meta.Get([]byte(recallKey)) != nil
		loss := meta.Get([]byte(lossKey))
		s.Kept.MayBeLost, s.Kept.Lost = loss != nil, string(loss) == lossSure
		return nil
	})
}

// LossNoted says that the loss of kept records was dealt with, see KeptState.MayBeLost.
func LossNoted(tx Tx) error { return tx.tx.Bucket([]byte(metaBucket)).Delete([]byte(lossKey)) }

// Recalled notes that the other records agree with those of the newer copy again, see KeptState.Newer.
func Recalled(tx Tx) error { return tx.tx.Bucket([]byte(metaBucket)).Delete([]byte(recallKey)) }

func (k *keeper) write(c keptCopy) error {
	raw, err := c.encode()
	if err != nil {
		return err
	}
	err = writeSynced(k.path+newSuffix, raw)
	if err == nil {
		err = syncDir(k.path)
	}
	if err != nil {
		return errors.Join(err, k.unstage())
	}
	return nil
}

// unstage takes away a copy whose transaction was not committed.
func (k *keeper) unstage() error {
	if err := os.Remove(k.path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// publish puts the copy in the place of the former one.
func (k *keeper) publish() error {
	if err := os.Rename(k.path+newSuffix, k.path); err != nil {
		return err
	}
	return syncDir(k.path)
}

// WriteDurable puts a file in the place of another, whole or not at all: after a crash of the host either is there.
func WriteDurable(path string, raw []byte) error {
	err := writeSynced(path+newSuffix, raw)
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err != nil {
		_ = os.Remove(path + newSuffix) // the error is what counts
		return err
	}
	return syncDir(path)
}

// writeSynced writes a file and waits for the disk.
func writeSynced(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir waits until the disk has the names in the directory of a file.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
