package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
)

// A Bucket is a typed corner of the file, ordered by key.
type Bucket[T any] struct{ Name string }

// ErrStop ends Each early and is not an error to its caller.
var ErrStop = errors.New("stop")

// Put writes v under key, replacing what was there.
func (b Bucket[T]) Put(tx Tx, key string, v T) error {
	bk, err := tx.tx.CreateBucketIfNotExists([]byte(b.Name))
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", b.Name, err)
	}
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", b.Name, key, err)
	}
	sealed := seal([]byte(key), p)
	tx.kept.touch(b.Name, bk.Get([]byte(key)), sealed)
	if err := bk.Put([]byte(key), sealed); err != nil {
		return fmt.Errorf("write %s %s: %w", b.Name, key, err)
	}
	return nil
}

// Get reads the record under key, or says ErrNotFound.
func (b Bucket[T]) Get(tx Tx, key string) (v T, err error) {
	var raw []byte
	if bk := tx.tx.Bucket([]byte(b.Name)); bk != nil {
		raw = tx.seen(b.Name, key, bk.Get([]byte(key)))
	}
	if raw == nil {
		return v, fmt.Errorf("%s %s: %w", b.Name, key, ErrNotFound)
	}
	return b.decode(key, raw)
}

// Delete removes the record under key; one that is not there is no error.
func (b Bucket[T]) Delete(tx Tx, key string) error {
	bk := tx.tx.Bucket([]byte(b.Name))
	if bk == nil {
		return nil
	}
	tx.kept.touch(b.Name, bk.Get([]byte(key)), nil)
	if err := bk.Delete([]byte(key)); err != nil {
		return fmt.Errorf("delete %s %s: %w", b.Name, key, err)
	}
	return nil
}

// Each calls fn with every record whose key begins with prefix, in order of key. fn must not write to the bucket.
func (b Bucket[T]) Each(tx Tx, prefix string, fn func(key string, v T) error) error {
	bk := tx.tx.Bucket([]byte(b.Name))
	if bk == nil {
		return nil
	}
	c := bk.Cursor()
	for k, raw := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, raw = c.Next() {
		v, err := b.decode(string(k), tx.seen(b.Name, string(k), raw))
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

// List returns every record whose key begins with prefix, in order of key.
func (b Bucket[T]) List(tx Tx, prefix string) (vs []T, err error) {
	err = b.Each(tx, prefix, func(_ string, v T) error {
		vs = append(vs, v)
		return nil
	})
	return vs, err
}

// Keys returns the keys that begin with prefix, in order, without decoding what is under them.
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

// sumLen is a CRC-32C in hexadecimal and the space behind it: a file stays readable to a person.
const sumLen = 9

// checksum is over the key as well: a value under a key that is not its own is as wrong as one that was altered.
func checksum(key, p []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, table), table, p)
}

func seal(key, p []byte) []byte {
	return append(fmt.Appendf(make([]byte, 0, sumLen+len(p)), "%08x ", checksum(key, p)), p...)
}

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
