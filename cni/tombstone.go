package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TombstoneDir returns the directory of tombstones, which is beside the daemon's socket. A reboot removes it, as it
// removes the containers.
func TombstoneDir(socket string) string { return filepath.Join(filepath.Dir(socket), "tombstones") }

// A Tombstone records that a runtime deleted an attachment while the daemon did not answer.
type Tombstone struct {
	Request
	// Deleted is the time of the deletion. An attachment of the same name that was made later is not meant.
	Deleted time.Time `json:"deleted"`
	// Gone says that the runtime named a sandbox, so that the deletion is final (see attach.DetachRequest).
	Gone bool `json:"gone"`
	path string
}

const tombstoneSuffix = ".json"

// Put writes a tombstone, which the daemon reads when it runs again.
func (t Tombstone) Put(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create tombstone directory: %w", err)
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	sum := fnv.New128a() // writes never fail
	_, _ = sum.Write(append([]byte(t.ContainerID+"|"+t.IfName+"|"), t.Config...))
	name := filepath.Join(dir, fmt.Sprintf("%x", sum.Sum(nil)))
	if err := os.WriteFile(name+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	if err := os.Rename(name+".new", name+tombstoneSuffix); err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	return nil
}

// Tombstones returns all tombstones in a directory. It removes files that it cannot read as tombstones, since nobody
// could process them.
func Tombstones(dir string) (ts []Tombstone, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tombstones: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), tombstoneSuffix) {
			continue
		}
		t := Tombstone{path: filepath.Join(dir, e.Name())}
		raw, err := os.ReadFile(t.path)
		if err == nil {
			err = json.Unmarshal(raw, &t)
		}
		if err != nil {
			if err := t.Remove(); err != nil {
				return ts, err
			}
			continue
		}
		ts = append(ts, t)
	}
	return ts, nil
}

// Remove deletes a tombstone's file. A file that does not exist is not an error.
func (t Tombstone) Remove() error {
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove tombstone: %w", err)
	}
	return nil
}
