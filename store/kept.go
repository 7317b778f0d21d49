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

// Kept buckets are those whose records have a copy in a second file, so that they survive the loss of the database. The
// copy is written within the transaction that changes one of them: before the commit it is written to a new file and
// synced, and after the commit it replaces the former copy. So an acknowledged change is in both files, and a change
// whose copy cannot be written is refused. A crash in between leaves both copies, and the records of both count.
const (
	// keptSuffix is the suffix of the file with the copy.
	keptSuffix = ".kept"
	// newSuffix is the suffix of a file that is being written.
	newSuffix = ".new"
	// generationKey counts the changes of kept records: if a copy and the database differ, the higher one is newer.
	generationKey = "kept"
	// recallKey exists after a newer copy was put into the database, until Recalled.
	recallKey = "kept-recall"
	// lossKey exists after a lost file was replaced without a whole copy, until LossNoted. Its value is lossSure if
	// there surely were records, and empty if there may have been none.
	lossKey  = "kept-loss"
	lossSure = "sure"
)

// A keptRecord is one record of a copy. Its value is as in the database, with its checksum.
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

// A keptCopy is the content of a copy.
type keptCopy struct {
	generation uint64
	records    map[[2]string][]byte // by bucket and key
	// found says that there is a copy, and whole that nothing of it is missing or altered.
	found, whole bool
	// numbered says that it has a generation. A database of an older netyard has none.
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

// readKeptBoth reads the copy and the one that a crash may have left unpublished, and merges them. A record that only
// one of them has is included, although an unacknowledged change may have deleted it: a restriction is better kept too
// long than lost.
func readKeptBoth(path string) (c keptCopy, err error) {
	if c, err = readKept(path); err != nil {
		return c, err
	}
	next, err := readKept(path + newSuffix)
	if err != nil || !next.whole { // not whole: its transaction was not committed
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

// keptOf returns the kept records as a transaction sees them.
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

// putKept replaces the kept records by those of a copy.
func putKept(tx *bbolt.Tx, buckets []string, c keptCopy) error {
	for _, name := range buckets {
		if err := tx.DeleteBucket([]byte(name)); err != nil && tx.Bucket([]byte(name)) != nil {
			return fmt.Errorf("replace bucket %s: %w", name, err)
		}
	}
	for k, v := range c.records {
		if !slices.Contains(buckets, k[0]) {
			continue // the bucket is not kept any more
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

// A copyWriter writes the copy of the kept records.
type copyWriter struct {
	path    string
	buckets []string
	// mu is held while a new copy is written, until it is published or removed.
	mu sync.Mutex
}

// A copyTx tracks whether a transaction changes kept records, and writes their copy.
type copyTx struct {
	*copyWriter

	dirty, locked bool
}

// markChanged records that a transaction changes a record; nil: there was none before, or is none after.
func (k *copyTx) markChanged(bucket string, from, to []byte) {
	if k != nil && !bytes.Equal(from, to) && slices.Contains(k.buckets, bucket) {
		k.dirty = true
	}
}

// stage writes a new copy with the transaction's changes next to the former one, and syncs it.
func (k *copyTx) stage(tx *bbolt.Tx) error {
	if !k.dirty {
		return nil
	}
	k.mu.Lock() // the transaction before may not have published its copy yet
	k.locked = true
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

// discard removes the copy of a transaction that was not committed.
func (k *copyTx) discard() error {
	if !k.locked {
		return nil
	}
	return k.unstage()
}

// publish replaces the former copy by that of a committed transaction. If that fails, the new one is on the disk all
// the same, and counts.
func (k *copyTx) publish() {
	if k.locked {
		_ = k.copyWriter.publish()
	}
}

// end releases the lock.
func (k *copyTx) end() {
	if k.locked {
		k.mu.Unlock()
	}
}

// syncKept makes the copy and the database agree. The database takes precedence, unless the copy is newer: then the
// database has lost a transaction with a damaged page, or was replaced by an older one. A database without a generation
// is from a netyard that had no copy: it takes precedence, and records that only the copy has are added.
func (s *Store) syncKept() error {
	found, err := readKept(s.copyWriter.path)
	if err != nil {
		return err
	}
	own, same := keptCopy{}, true
	err = s.db.View(func(tx *bbolt.Tx) error {
		own, err = keptOf(tx, s.copyWriter.buckets)
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
			if err := putKept(tx, s.copyWriter.buckets, found); err != nil || !own.numbered {
				return err
			}
			return tx.Bucket([]byte(metaBucket)).Put([]byte(recallKey), []byte{})
		})
		if err != nil {
			return err
		}
		same = same && own.numbered
		own.records, own.generation = found.records, found.generation
	} else if !own.numbered { // if the disk is full, the next start does it
		_ = s.db.Update(func(tx *bbolt.Tx) error { return putMetaNumber(tx, generationKey, own.generation) })
	}
	if err := s.readMarks(); err != nil {
		return err
	}
	if !s.Fresh {
		s.Copy.Missing, s.Copy.Damaged = !found.found, found.found && !found.whole
	}
	same = same && found.whole && found.generation == own.generation &&
		maps.EqualFunc(found.records, own.records, bytes.Equal)
	if same {
		return s.copyWriter.unstage()
	}
	own.found, own.whole = true, true
	if s.Copy.Err = s.copyWriter.write(own); s.Copy.Err == nil {
		s.Copy.Err = s.copyWriter.publish()
	}
	return nil
}

// readMarks reads whether a newer or lost copy is still to be handled.
func (s *Store) readMarks() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(metaBucket))
		s.Copy.Newer = meta.Get([]byte(recallKey)) != nil
		loss := meta.Get([]byte(lossKey))
		s.Copy.MayBeLost, s.Copy.Lost = loss != nil, string(loss) == lossSure
		return nil
	})
}

// LossNoted records that the loss of kept records was handled, see KeptState.MayBeLost.
func LossNoted(tx Tx) error { return tx.deleteMark(lossKey) }

// Recalled records that the other records agree with those of the newer copy again, see KeptState.Newer.
func Recalled(tx Tx) error { return tx.deleteMark(recallKey) }

// deleteMark deletes a key of the meta bucket.
func (tx Tx) deleteMark(key string) error {
	meta := tx.tx.Bucket([]byte(metaBucket))
	tx.replaces(meta, metaBucket, key, nil)
	return meta.Delete([]byte(key))
}

// write writes a new copy next to the former one, and syncs it.
func (k *copyWriter) write(c keptCopy) error {
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

// unstage removes a copy whose transaction was not committed.
func (k *copyWriter) unstage() error {
	if err := os.Remove(k.path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// publish replaces the former copy by the new one.
func (k *copyWriter) publish() error {
	if err := os.Rename(k.path+newSuffix, k.path); err != nil {
		return err
	}
	return syncDir(k.path)
}

// WriteDurable replaces a file atomically: after a crash of the host, either the former or the new content is there.
func WriteDurable(path string, raw []byte) error {
	err := writeSynced(path+newSuffix, raw)
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err != nil {
		_ = os.Remove(path + newSuffix) // err is reported, whether or not this works
		return err
	}
	return syncDir(path)
}

// writeSynced writes a file and syncs it to the disk.
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

// syncDir syncs the directory of a file to the disk.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
