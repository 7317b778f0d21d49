package cni

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TombstoneDir is where what was deleted while the daemon was away is written down, beside its socket. A reboot takes
// it away, and the containers with it.
func TombstoneDir(socket string) string { return filepath.Join(filepath.Dir(socket), "tombstones") }

// A Tombstone says that a runtime deleted an attachment and the daemon did not hear of it.
type Tombstone struct {
	Request
	// Deleted is when: an attachment of the same name that was made later is another one.
	Deleted time.Time `json:"deleted"`
	// Gone: the runtime named a sandbox, so that it has done with it.
	Gone bool `json:"gone"`
	path string
}

const stoneSuffix = ".json"

// Put writes a tombstone, for the daemon to find when it is back.
func (t Tombstone) Put(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make tombstone directory: %w", err)
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	sum := sha256.Sum256(append([]byte(t.ContainerID+"|"+t.IfName+"|"), t.Config...))
	name := filepath.Join(dir, fmt.Sprintf("%x", sum[:16]))
	if err := os.WriteFile(name+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	if err := os.Rename(name+".new", name+stoneSuffix); err != nil {
		return fmt.Errorf("write tombstone: %w", err)
	}
	return nil
}

// Tombstones reads all that are there. What cannot be read as one is removed: nobody could ever do anything about it.
func Tombstones(dir string) (ts []Tombstone, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tombstones: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), stoneSuffix) {
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

// Remove ends a tombstone.
func (t Tombstone) Remove() error {
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove tombstone: %w", err)
	}
	return nil
}
