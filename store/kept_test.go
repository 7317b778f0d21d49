package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

var keepsakes = Bucket[record]{Name: "keepsakes"}

// configOf is the Config of a database with kept records.
func configOf(path string) Config {
	return Config{Path: path, NoSync: true, CopiedBuckets: []string{keepsakes.Name}, Verify: inProcess}
}

// inProcess checks the file in this process.
func inProcess(_ context.Context, path string) error { return Verify(path) }

// putBoth writes records with these keys to both buckets.
func putBoth(keys ...string) func(Tx) error {
	return func(tx Tx) error {
		for _, key := range keys {
			r := record{Name: key}
			if err := errors.Join(records.Put(tx, key, r), keepsakes.Put(tx, key, r)); err != nil {
				return err
			}
		}
		return nil
	}
}

// keysOf returns the keys of both buckets.
func keysOf(t *testing.T, s *Store) (others, kept []string) {
	t.Helper()
	err := s.View(func(tx Tx) error {
		others, kept = records.Keys(tx, ""), keepsakes.Keys(tx, "")
		_, err := keepsakes.List(tx, "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return others, kept
}

func (s *Store) wants(t *testing.T, others, kept string) {
	t.Helper()
	gotOthers, gotKept := keysOf(t, s)
	if got := strings.Join(gotOthers, " "); got != others {
		t.Errorf("records are %q, want %q", got, others)
	}
	if got := strings.Join(gotKept, " "); got != kept {
		t.Errorf("kept records are %q, want %q", got, kept)
	}
}

// newFile creates a database with two records in each bucket, and closes it.
func newFile(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "state.db")
	s := open(t, configOf(path))
	if !s.Fresh || !s.Copy.Missing {
		t.Errorf("a new database: fresh %v, %+v", s.Fresh, s.Copy)
	}
	update(t, s, func(tx Tx) error { return errors.Join(LossNoted(tx), putBoth("a")(tx)) })
	update(t, s, putBoth("b"))
	wantError(t, s.Close(), nil, "")
	return path
}

func replaceBytes(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(raw), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestKeptSurvive: whatever happens to the file, the kept records are there when it is opened again.
func TestKeptSurvive(t *testing.T) {
	zero := func(raw []byte) []byte { return make([]byte, len(raw)) }
	for name, lose := range map[string]func(t *testing.T, path string){
		"missing":    func(t *testing.T, path string) { wantError(t, os.Remove(path), nil, "") },
		"empty":      func(t *testing.T, path string) { wantError(t, os.Truncate(path, 0), nil, "") },
		"a byte":     func(t *testing.T, path string) { wantError(t, os.Truncate(path, 1), nil, "") },
		"a page":     func(t *testing.T, path string) { wantError(t, os.Truncate(path, 4096), nil, "") },
		"two pages":  func(t *testing.T, path string) { wantError(t, os.Truncate(path, 8192), nil, "") },
		"five pages": func(t *testing.T, path string) { wantError(t, os.Truncate(path, 5*4096), nil, "") },
		"zeros":      func(t *testing.T, path string) { replaceBytes(t, path, zero) },
		"text": func(t *testing.T, path string) {
			replaceBytes(t, path, func([]byte) []byte { return []byte("x\n") })
		},
		"zeros, long": func(t *testing.T, path string) {
			replaceBytes(t, path, func([]byte) []byte { return make([]byte, 1<<20) })
		},
		"a value": func(t *testing.T, path string) {
			edit(t, path, put("keepsakes", "a", func([]byte) []byte { return []byte("x") }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := newFile(t)
			lose(t, path)
			s := open(t, configOf(path))
			s.wants(t, "", "a b")
			if !s.Fresh || s.Copy != (CopyState{}) || (s.Damaged == "") != (name == "missing") {
				t.Errorf("fresh %v, %+v, damaged %q", s.Fresh, s.Copy, s.Damaged)
			}
			update(t, s,
				func(tx Tx) error { return errors.Join(keepsakes.Delete(tx, "a"), keepsakes.Put(tx, "c", record{})) })
			wantError(t, s.Close(), nil, "")
			wantError(t, os.Remove(path), nil, "")
			open(t, configOf(path)).wants(t, "", "b c")
		})
	}
}

// TestKeptRefused: a change of a kept record is refused if the copy cannot be written; other changes are not.
func TestKeptRefused(t *testing.T) {
	path := newFile(t)
	s := open(t, configOf(path))
	wantError(t, os.MkdirAll(path+keptSuffix+newSuffix+"/full", 0o700), nil, "")
	if err := s.Update(putBoth("c")); err == nil {
		t.Error("a kept record was changed without a copy")
	}
	s.wants(t, "a b", "a b")
	update(t, s, putBoth("a", "b")) // the same records as before
	update(t, s, func(tx Tx) error {
		return errors.Join(records.Put(tx, "d", record{}), keepsakes.Delete(tx, "no such"))
	})
	s.wants(t, "a b d", "a b")
	wantError(t, os.RemoveAll(path+keptSuffix+newSuffix), nil, "")
	update(t, s, putBoth("c"))
	wantError(t, s.Close(), nil, "")
	wantError(t, os.Remove(path), nil, "")
	open(t, configOf(path)).wants(t, "", "a b c")
}

// TestKeptFailed: a transaction that fails leaves the copy as it was, and no unpublished one.
func TestKeptFailed(t *testing.T) {
	path := newFile(t)
	s := open(t, configOf(path))
	boom := errors.New("boom")
	err := s.Update(func(tx Tx) error { return errors.Join(putBoth("c")(tx), boom) })
	wantError(t, err, boom, "boom")
	if _, err := os.Stat(path + keptSuffix + newSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unpublished copy is left: %v", err)
	}
	wantError(t, s.Close(), nil, "")
	wantError(t, os.Remove(path), nil, "")
	open(t, configOf(path)).wants(t, "", "a b")
}

// mountTiny mounts a file system of size kilobytes.
func mountTiny(t *testing.T, size int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
		if os.Geteuid() != 0 {
			t.Skipf("needs root: mount a file system: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillUp fills a file system.
func fillUp(t *testing.T, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 512); err == nil; {
		_, err = f.Write(buf)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return file
}

// TestKeptFullDisk: on a full disk a change is refused and changes nothing, and the database can be opened; a damaged
// file stays where it is, since it cannot be replaced.
func TestKeptFullDisk(t *testing.T) {
	dir := mountTiny(t, 512)
	path := filepath.Join(dir, "state.db")
	s := open(t, configOf(path))
	update(t, s, putBoth("a", "b"))
	filler := fillUp(t, dir)
	if err := s.Update(putBoth("c")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a change on a full disk: %v", err)
	}
	s.wants(t, "a b", "a b")
	wantError(t, s.Close(), nil, "")
	s = open(t, configOf(path))
	s.wants(t, "a b", "a b")
	wantError(t, s.Close(), nil, "")

	replaceHead(t, path)
	before := names(t, dir)
	for range 3 {
		if _, err := Open(t.Context(), configOf(path)); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a damaged file on a full disk: %v", err)
		}
	}
	if now := names(t, dir); now != before {
		t.Errorf("the directory has %s, and had %s", now, before)
	}
	wantError(t, os.Remove(filler), nil, "")
	s = open(t, configOf(path))
	s.wants(t, "", "a b")
	if s.Damaged == "" {
		t.Error("the damaged file was not moved aside")
	}
	wantError(t, s.Close(), nil, "")
}

// replaceHead damages both meta pages in place.
func replaceHead(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 8192), 0)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// TestKeptReadOnly: on a read-only file system, Open fails and changes nothing, whether the file is sound, damaged or
// missing.
func TestKeptReadOnly(t *testing.T) {
	dir := mountTiny(t, 512)
	path := filepath.Join(dir, "state.db")
	for name, lose := range map[string]func(){
		"sound": func() {}, "damaged": func() { replaceHead(t, path) },
		"missing": func() { wantError(t, os.Remove(path), nil, "") },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, configOf(path))
			update(t, s, putBoth("a"))
			wantError(t, s.Close(), nil, "")
			lose()
			before := names(t, dir)
			if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), configOf(path)); !errors.Is(err, syscall.EROFS) {
				t.Errorf("open: %v", err)
			}
			if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, ""); err != nil {
				t.Fatal(err)
			}
			if now := names(t, dir); now != before {
				t.Errorf("the directory has %s, and had %s", now, before)
			}
			s = open(t, configOf(path))
			if _, kept := keysOf(t, s); len(kept) != 1 {
				t.Errorf("kept records are %v", kept)
			}
			wantError(t, s.Close(), nil, "")
		})
	}
}

// TestKeptTorn: a crash while the copy is being written. Before the commit, the database and the copy have the former
// state; after it there are two copies, and if the database is lost just then, the records of both count.
func TestKeptTorn(t *testing.T) {
	path := newFile(t)
	former, err := os.ReadFile(path + keptSuffix)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, configOf(path))
	update(t, s, func(tx Tx) error { return errors.Join(keepsakes.Delete(tx, "a"), keepsakes.Put(tx, "c", record{})) })
	wantError(t, s.Close(), nil, "")
	next, err := os.ReadFile(path + keptSuffix)
	if err != nil {
		t.Fatal(err)
	}
	crash := func(next []byte) {
		t.Helper()
		err := errors.Join(os.WriteFile(path+keptSuffix, former, 0o600),
			os.WriteFile(path+keptSuffix+newSuffix, next, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	crash(next)
	s = open(t, configOf(path))
	s.wants(t, "a b", "b c")
	if left := names(t, filepath.Dir(path)); strings.Contains(left, newSuffix) {
		t.Errorf("an unpublished copy is left: %s", left)
	}
	wantError(t, s.Close(), nil, "")
	crash(next)
	wantError(t, os.Remove(path), nil, "")
	s = open(t, configOf(path))
	s.wants(t, "", "a b c")
	wantError(t, s.Close(), nil, "")
	for cut := range len(next) - 1 { // all lengths; the last newline may be missing
		crash(next[:cut])
		wantError(t, os.Remove(path), nil, "")
		s = open(t, configOf(path))
		s.wants(t, "", "a b")
		wantError(t, s.Close(), nil, "")
	}
}

// TestKeptDamaged: if the database is lost and the copy damaged, the copy's sound records are there, and Kept.Damaged
// is set. With a sound database nothing is lost, and the copy is written again.
func TestKeptDamaged(t *testing.T) {
	flip := func(at int) func([]byte) []byte {
		return func(raw []byte) []byte {
			raw[at] ^= 1
			return raw
		}
	}
	path := newFile(t)
	whole, err := os.ReadFile(path + keptSuffix)
	if err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]record{"a": {Name: "a"}, "b": {Name: "b"}}
	for at := range len(whole) {
		err := errors.Join(os.WriteFile(path, db, 0o600), os.WriteFile(path+keptSuffix, whole, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		replaceBytes(t, path+keptSuffix, flip(at))
		if at%7 == 0 {
			s := open(t, configOf(path))
			s.wants(t, "a b", "a b")
			if !s.Copy.Damaged || s.Fresh || s.Copy.Newer {
				t.Errorf("byte %d: %+v", at, s.Copy)
			}
			wantError(t, s.Close(), nil, "")
			if now, err := os.ReadFile(path + keptSuffix); err != nil || string(now) != string(whole) {
				t.Errorf("byte %d: the copy is not whole again", at)
			}
			continue
		}
		wantError(t, os.Remove(path), nil, "")
		s := open(t, configOf(path))
		got := map[string]record{}
		if err := s.View(func(tx Tx) error {
			return keepsakes.Each(tx, "", func(key string, r record) error { got[key] = r; return nil })
		}); err != nil {
			t.Fatal(err)
		}
		if !s.Copy.Damaged || len(got) > 2 {
			t.Errorf("byte %d: records %v, %+v", at, got, s.Copy)
		}
		maps.DeleteFunc(got, func(key string, r record) bool { return all[key] == r })
		if len(got) > 0 {
			t.Errorf("byte %d: wrong records %v", at, got)
		}
		wantError(t, s.Close(), nil, "")
		aside, _ := filepath.Glob(path + keptSuffix + ".damaged-*")
		if len(aside) != 1 {
			t.Fatalf("byte %d: copies that were moved aside: %v", at, aside)
		}
		wantError(t, os.Remove(aside[0]), nil, "")
	}
}

// TestKeptNewer: the records of the copy win over a database that was replaced by an older one, or that lost its last
// transaction.
func TestKeptNewer(t *testing.T) {
	path := newFile(t)
	older, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, configOf(path))
	update(t, s, putBoth("c"))
	wantError(t, s.Close(), nil, "")
	wantError(t, os.WriteFile(path, older, 0o600), nil, "")
	s = open(t, configOf(path))
	s.wants(t, "a b", "a b c")
	if !s.Copy.Newer || s.Fresh {
		t.Errorf("kept state %+v", s.Copy)
	}
	update(t, s, func(tx Tx) error { return errors.Join(Recalled(tx), putBoth("d")(tx)) })
	wantError(t, s.Close(), nil, "")
	s = open(t, configOf(path))
	s.wants(t, "a b d", "a b c d")
	if s.Copy != (CopyState{}) {
		t.Errorf("kept state %+v", s.Copy)
	}
	wantError(t, s.Close(), nil, "")
	raw, err := os.ReadFile(path) // with one meta page torn, bbolt goes back to the transaction before
	if err != nil {
		t.Fatal(err)
	}
	copy(raw[mustMeta(t, raw).tx%2*4096+pageHead:], make([]byte, metaLen))
	wantError(t, os.WriteFile(path, raw, 0o600), nil, "")
	open(t, configOf(path)).wants(t, "a b", "a b c d")
}

// TestKeptUpgrade: a database without a copy gets one; a copy of a newer netyard is refused and left alone.
func TestKeptUpgrade(t *testing.T) {
	path := newFile(t)
	wantError(t, os.Remove(path+keptSuffix), nil, "")
	s := open(t, configOf(path))
	s.wants(t, "a b", "a b")
	if s.Fresh || !s.Copy.Missing {
		t.Errorf("kept state %+v", s.Copy)
	}
	wantError(t, s.Close(), nil, "")
	whole := keptCopy{records: map[[2]string][]byte{}, generation: 9}
	raw, err := whole.encode()
	if err != nil {
		t.Fatal(err)
	}
	newer := append(seal(nil, []byte(`{"Schema":2,"Generation":9,"Records":0}`)), '\n')
	if cmp.Equal(raw, newer) {
		t.Fatal("the schema is not in the copy")
	}
	wantError(t, os.WriteFile(path+keptSuffix, newer, 0o600), nil, "")
	for range 2 {
		if _, err := Open(t.Context(), configOf(path)); !errors.Is(err, ErrSchema) {
			t.Errorf("a newer copy: %v", err)
		}
		if now, err := os.ReadFile(path + keptSuffix); err != nil || !cmp.Equal(now, newer) {
			t.Errorf("the newer copy was changed: %v", err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// TestKeptNewerOverRestarts: Kept.Newer stays set over restarts until Recalled.
func TestKeptNewerOverRestarts(t *testing.T) {
	path := newFile(t)
	older, err := os.ReadFile(path)
	wantError(t, err, nil, "")
	s := open(t, configOf(path))
	update(t, s, putBoth("c"))
	wantError(t, s.Close(), nil, "")
	wantError(t, os.WriteFile(path, older, 0o600), nil, "")
	for range 3 {
		s = open(t, configOf(path))
		if !s.Copy.Newer {
			t.Fatalf("kept state %+v", s.Copy)
		}
		wantError(t, s.Close(), nil, "")
	}
	s = open(t, configOf(path))
	update(t, s, Recalled)
	wantError(t, s.Close(), nil, "")
	if s = open(t, configOf(path)); s.Copy.Newer {
		t.Errorf("kept state %+v", s.Copy)
	}
}

// TestKeptOfOlderProgram: a database of a netyard that had no copy wins over the copy, however new that is, since the
// admin may have changed the records since; records that only the copy has are added.
func TestKeptOfOlderProgram(t *testing.T) {
	path := newFile(t)
	s := open(t, configOf(path))
	update(t, s, putBoth("c"))
	update(t, s, putBoth("d"))
	wantError(t, s.Close(), nil, "")
	wantError(t, os.Remove(path), nil, "")
	old := configOf(path)
	old.CopiedBuckets, old.Path = nil, path+".old" // where there is no copy
	s = open(t, old)
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(metaBucket)).Delete([]byte(generationKey)) })
	wantError(t, err, nil, "")
	update(t, s, func(tx Tx) error { return keepsakes.Put(tx, "c", record{Name: "changed"}) })
	update(t, s, func(tx Tx) error { return keepsakes.Put(tx, "x", record{Name: "x"}) })
	wantError(t, s.Close(), nil, "")
	wantError(t, os.Rename(old.Path, path), nil, "")
	for range 2 {
		s = open(t, configOf(path))
		s.wants(t, "", "a b c d x")
		err := s.View(func(tx Tx) error {
			r, err := keepsakes.Get(tx, "c")
			if r.Name != "changed" {
				t.Errorf("the copy's record replaced the database's: %+v", r)
			}
			return err
		})
		wantError(t, err, nil, "")
		if s.Copy.Newer {
			t.Errorf("kept state %+v", s.Copy)
		}
		wantError(t, s.Close(), nil, "")
	}
}

// TestLossOverRestarts: Kept.MayBeLost and Kept.Lost stay set over restarts until LossNoted.
func TestLossOverRestarts(t *testing.T) {
	for name, c := range map[string]struct {
		lose      func(path string) error
		may, sure bool
	}{
		"the copy is whole":         {os.Remove, false, false},
		"both are missing":          {func(path string) error { return errors.Join(os.Remove(path), os.Remove(path+keptSuffix)) }, true, false},
		"the copy is torn":          {func(path string) error { return errors.Join(os.Remove(path), os.Truncate(path+keptSuffix, 40)) }, true, true},
		"damaged, the copy missing": {func(path string) error { return errors.Join(os.Truncate(path, 100), os.Remove(path+keptSuffix)) }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := newFile(t)
			wantError(t, c.lose(path), nil, "")
			for range 3 {
				s := open(t, configOf(path))
				if s.Copy.MayBeLost != c.may || s.Copy.Lost != c.sure {
					t.Errorf("kept state %+v", s.Copy)
				}
				wantError(t, s.Close(), nil, "")
			}
			s := open(t, configOf(path))
			update(t, s, LossNoted)
			wantError(t, s.Close(), nil, "")
			if s = open(t, configOf(path)); s.Copy.MayBeLost || s.Copy.Lost {
				t.Errorf("after LossNoted: %+v", s.Copy)
			}
		})
	}
}
