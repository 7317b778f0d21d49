package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// noFlush is longer than any test, so that pending writes are flushed only by the test's own transactions.
const noFlush = time.Hour

func putRecord(t *testing.T, s *Store, key string, r record) {
	t.Helper()
	if err := s.Update(func(tx Tx) error { return records.Put(tx, key, r) }); err != nil {
		t.Fatal(err)
	}
}

func putSoon(t *testing.T, s *Store, key string, r record) {
	t.Helper()
	if err := records.PutSoon(s, key, r); err != nil {
		t.Fatal(err)
	}
}

// wantN checks that Get and Each find a record with the number n; -1: not at all.
func wantN(t *testing.T, s *Store, key string, n int, when string) {
	t.Helper()
	got, listed := -1, -1
	err := s.View(func(tx Tx) error {
		r, err := records.Get(tx, key)
		if err == nil {
			got = r.N
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		return records.Each(tx, "", func(k string, r record) error {
			if k == key {
				listed = r.N
			}
			return nil
		})
	})
	if err != nil || got != n || listed != n {
		t.Errorf("%s: Get finds %s with %d, and Each with %d, want %d: %v", when, key, got, listed, n, err)
	}
}

// reopenAfterCrash opens a copy of the files as a crash of the process would leave them now; with hostToo, as a power
// loss would leave them, without what was not synced.
func reopenAfterCrash(t *testing.T, s *Store, hostToo bool) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	for _, suffix := range []string{journalSuffix, ""} {
		if hostToo && suffix == journalSuffix {
			continue
		}
		raw, err := os.ReadFile(s.db.Path() + suffix)
		if err == nil {
			err = os.WriteFile(path+suffix, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return open(t, Config{Path: path, FlushDelay: noFlush})
}

// TestSoon: a write by Soon is seen at once, survives a crash of the process, and is replaced by any later write.
func TestSoon(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Path: filepath.Join(t.TempDir(), "db"), FlushDelay: noFlush})
	putRecord(t, s, "a", record{N: 1})
	putRecord(t, s, "b", record{N: 1})
	putSoon(t, s, "a", record{N: 2})
	putSoon(t, s, "a", record{N: 3})
	wantN(t, s, "a", 3, "pending")
	wantN(t, reopenAfterCrash(t, s, false), "a", 3, "the process crashed")
	wantN(t, reopenAfterCrash(t, s, true), "a", 1, "the host crashed")
	putSoon(t, s, "c", record{N: 1})
	wantN(t, s, "c", -1, "a missing record is not created")

	failed := errors.New("failed")
	err := s.Update(func(tx Tx) error { return errors.Join(failed, records.Put(tx, "b", record{N: 9})) })
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	wantN(t, s, "a", 3, "a transaction failed")
	wantN(t, s, "b", 1, "a transaction failed")
	wantN(t, reopenAfterCrash(t, s, false), "a", 3, "a transaction failed and the process crashed")

	// A reader keeps the view from its start.
	err = s.View(func(tx Tx) error {
		done := make(chan error, 1)
		go func() {
			done <- s.Update(func(tx Tx) error {
				r, err := records.Get(tx, "a")
				if err != nil || r.N != 3 {
					return fmt.Errorf("a transaction sees %d: %w", r.N, err)
				}
				return records.Put(tx, "a", record{N: 4})
			})
		}()
		if err := <-done; err != nil {
			return err
		}
		r, err := records.Get(tx, "a")
		if err != nil || r.N != 3 {
			t.Errorf("a reader that began before sees %d, want 3: %v", r.N, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantN(t, s, "a", 4, "changed later")
	if st, err := os.Stat(s.db.Path() + journalSuffix); err != nil || st.Size() != 0 {
		t.Errorf("the journal file is not empty: %v %v", st, err)
	}
	wantN(t, reopenAfterCrash(t, s, true), "a", 4, "changed later, and the host crashed")

	putSoon(t, s, "a", record{N: 5})
	if err := s.Update(func(tx Tx) error { return records.Delete(tx, "a") }); err != nil {
		t.Fatal(err)
	}
	wantN(t, s, "a", -1, "deleted")
	wantN(t, reopenAfterCrash(t, s, false), "a", -1, "deleted, and the process crashed")

	putSoon(t, s, "b", record{N: 2})
	path := s.db.Path()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path + journalSuffix); err != nil {
		t.Fatal(err)
	}
	if err := Verify(path); err != nil {
		t.Error(err)
	}
	again := open(t, Config{Path: path})
	wantN(t, again, "b", 2, "closed")
	if err := records.PutSoon(s, "b", record{N: 3}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Soon on a closed store: %v", err)
	}
}

// TestSoonStale: pending writes that are in the database already, since the process crashed before it truncated the
// journal, are ignored.
func TestSoonStale(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Path: filepath.Join(t.TempDir(), "db"), FlushDelay: noFlush})
	putRecord(t, s, "a", record{N: 1})
	putSoon(t, s, "a", record{N: 2})
	stale, err := os.ReadFile(s.db.Path() + journalSuffix)
	if err != nil {
		t.Fatal(err)
	}
	putRecord(t, s, "a", record{N: 3})
	plant := func(raw []byte) *Store {
		t.Helper()
		if err := os.WriteFile(s.db.Path()+journalSuffix, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return reopenAfterCrash(t, s, false)
	}
	wantN(t, plant(stale), "a", 3, "stale writes")
	wantN(t, plant([]byte("0")), "a", 3, "an incomplete line")

	// Newer writes after stale ones count, as far as they are complete.
	putSoon(t, s, "a", record{N: 4})
	fresh, err := os.ReadFile(s.db.Path() + journalSuffix)
	if err != nil {
		t.Fatal(err)
	}
	fresh = fresh[1:] // without the byte that was planted
	both := append(append([]byte{}, stale...), fresh...)
	wantN(t, plant(both), "a", 4, "stale writes and newer ones")
	wantN(t, plant(both[:len(both)-3]), "a", 3, "stale writes and an incomplete newer one")
	again := plant(both)
	putSoon(t, again, "a", record{N: 5})
	wantN(t, reopenAfterCrash(t, again, false), "a", 5, "a write after the crash")

	// With a fresh database the journal is discarded.
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path+journalSuffix, both, 0o600); err != nil {
		t.Fatal(err)
	}
	other := open(t, Config{Path: path, FlushDelay: noFlush})
	putRecord(t, other, "a", record{N: 7})
	wantN(t, reopenAfterCrash(t, other, false), "a", 7, "a fresh database")
}

// TestSoonAlone: without any other transaction, pending writes are flushed after a while, also many at once.
func TestSoonAlone(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Path: filepath.Join(t.TempDir(), "db")})
	const many = 50
	var wg sync.WaitGroup
	for i := range many {
		key := fmt.Sprint(i)
		putRecord(t, s, key, record{N: 1})
		wg.Go(func() {
			for n := range 5 {
				if err := records.PutSoon(s, key, record{N: n}); err != nil {
					t.Error(err)
				}
				wantN(t, s, key, n, "written at once")
			}
			if err := s.Update(func(tx Tx) error { return records.Put(tx, key, record{N: 10}) }); err != nil {
				t.Error(err)
			}
			wantN(t, s, key, 10, "changed")
			if err := records.PutSoon(s, key, record{N: 11}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(time.Minute); len(s.journal.pending()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("pending writes are not flushed")
		}
	}
	after := reopenAfterCrash(t, s, true)
	for i := range many {
		wantN(t, after, fmt.Sprint(i), 11, "the host crashed")
	}
}
