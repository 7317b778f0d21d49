package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	"go.etcd.io/bbolt"
)

// A Bucket is a typed set of records in the database, ordered by key.
type Bucket[T any] struct{ Name string }

// ErrStop ends Each early and is not an error to its caller.
var ErrStop = errors.New("stop")

// fullPages is how full a page is left that has to be split. bbolt's own default leaves half of it free, for inserts
// between those that are there; many records at once, as a container's ports, then take twice the room.
const fullPages = 0.9

// Put writes a record, replacing the one under key.
func (b Bucket[T]) Put(tx Tx, key string, v T) error {
	bk, err := tx.tx.CreateBucketIfNotExists([]byte(b.Name))
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", b.Name, err)
	}
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", b.Name, key, err)
	}
	bk.FillPercent = fullPages
	sealed := seal([]byte(key), p)
	tx.replaces(bk, b.Name, key, sealed)
	if err := bk.Put([]byte(key), sealed); err != nil {
		return fmt.Errorf("write %s %s: %w", b.Name, key, err)
	}
	return nil
}

// replaces notes that a value is about to replace the one under key; nil: that one is deleted.
func (tx Tx) replaces(bk *bbolt.Bucket, bucket, key string, value []byte) {
	was := bk.Get([]byte(key))
	tx.kept.markChanged(bucket, was, value)
	if tx.undo != nil {
		// The page that has it may be written over within the transaction.
		tx.undo.entries = append(tx.undo.entries, replaced{bucket, key, bytes.Clone(was)})
	}
}

// Get reads the record under key; it fails with ErrNotFound if there is none.
func (b Bucket[T]) Get(tx Tx, key string) (v T, err error) {
	var raw []byte
	if bk := tx.tx.Bucket([]byte(b.Name)); bk != nil {
		raw = tx.latest(b.Name, key, bk.Get([]byte(key)))
	}
	if raw == nil {
		return v, fmt.Errorf("%s %s: %w", b.Name, key, ErrNotFound)
	}
	tx.note(b.Name, key)
	return b.decode(key, raw)
}

// note tells who wants to know that a record is read.
func (tx Tx) note(bucket, key string) {
	if tx.read != nil {
		tx.read(bucket, key)
	}
}

// Delete deletes the record under key; a missing one is no error.
func (b Bucket[T]) Delete(tx Tx, key string) error {
	bk := tx.tx.Bucket([]byte(b.Name))
	if bk == nil {
		return nil
	}
	tx.replaces(bk, b.Name, key, nil)
	if err := bk.Delete([]byte(key)); err != nil {
		return fmt.Errorf("delete %s %s: %w", b.Name, key, err)
	}
	return nil
}

// Each calls fn with every record whose key begins with prefix, in the order of keys. fn must not write to the bucket.
func (b Bucket[T]) Each(tx Tx, prefix string, fn func(key string, v T) error) error {
	bk := tx.tx.Bucket([]byte(b.Name))
	if bk == nil {
		return nil
	}
	c := bk.Cursor()
	for k, raw := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, raw = c.Next() {
		tx.note(b.Name, string(k))
		v, err := b.decode(string(k), tx.latest(b.Name, string(k), raw))
		if err == nil {
			err = fn(string(k), v)
		}
		if errors.Is(err, ErrStop) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// List returns the records whose keys begin with prefix, in the order of keys.
func (b Bucket[T]) List(tx Tx, prefix string) (vs []T, err error) {
	err = b.Each(tx, prefix, func(_ string, v T) error {
		vs = append(vs, v)
		return nil
	})
	return vs, err
}

// Keys returns the keys that begin with prefix, in order, without decoding their records.
func (b Bucket[T]) Keys(tx Tx, prefix string) (keys []string) {
	bk := tx.tx.Bucket([]byte(b.Name))
	if bk == nil {
		return nil
	}
	c := bk.Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
		keys = append(keys, string(k))
	}
	return keys
}

func (b Bucket[T]) decode(key string, raw []byte) (v T, err error) {
	p, err := unseal([]byte(key), raw)
	if err == nil {
		err = json.Unmarshal(p, &v)
	}
	if err != nil {
		return v, fmt.Errorf("decode %s %q: %w", b.Name, key, err)
	}
	return v, nil
}

// sumLen is the length of a CRC-32C in hexadecimal and a space, which keep the file readable to people.
const sumLen = 9

// checksum covers the key as well, so that a value under another key is noticed like an altered one.
func checksum(key, p []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, table), table, p)
}

// seal returns a value with its checksum.
func seal(key, p []byte) []byte {
	return append(fmt.Appendf(make([]byte, 0, sumLen+len(p)), "%08x ", checksum(key, p)), p...)
}

// unseal returns a value without its checksum, and fails with ErrDamaged if that is wrong.
func unseal(key, raw []byte) ([]byte, error) {
	if len(raw) < sumLen {
		return nil, fmt.Errorf("%d bytes: %w", len(raw), ErrDamaged)
	}
	want, err := strconv.ParseUint(string(raw[:sumLen-1]), 16, 32)
	if p := raw[sumLen:]; err == nil && raw[sumLen-1] == ' ' && checksum(key, p) == uint32(want) {
		return p, nil
	}
	return nil, fmt.Errorf("checksum: %w", ErrDamaged)
}
