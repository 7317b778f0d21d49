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

// never is longer than any test: nothing is put into the file but by a transaction of the test's.
const never = time.Hour

func putRecord(t *testing.T, s *Store, key string, r record) {
	t.Helper()
	if err := s.Update(func(tx Tx) error { return records.Put(tx, key, r) }); err != nil {
		t.Fatal(err)
	}
}

func soon(t *testing.T, s *Store, key string, r record) {
	t.Helper()
	if err := records.Soon(s, key, r); err != nil {
		t.Fatal(err)
	}
}

// wantN wants a record to be seen, alone and among all, with that number; -1: not at all.
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
		t.Errorf("%s: record %s is %d, and %d among all, want %d: %v", when, key, got, listed, n, err)
	}
}

// died is the file as the process leaves it that is killed now; hostToo: as it is after a power loss, with nothing that
// was not waited for.
func died(t *testing.T, s *Store, hostToo bool) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	for _, suffix := range []string{notesSuffix, ""} {
		if hostToo && suffix == notesSuffix {
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
	return open(t, Config{Path: path, Soon: never})
}

// TestSoon: what is to be in the file soon is seen at once, outlives the process, and is behind whatever comes later.
func TestSoon(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Path: filepath.Join(t.TempDir(), "db"), Soon: never})
	putRecord(t, s, "a", record{N: 1})
	putRecord(t, s, "b", record{N: 1})
	soon(t, s, "a", record{N: 2})
	soon(t, s, "a", record{N: 3})
	wantN(t, s, "a", 3, "noted")
	wantN(t, died(t, s, false), "a", 3, "the process died")
	wantN(t, died(t, s, true), "a", 1, "the host went down")
	soon(t, s, "c", record{N: 1})
	wantN(t, s, "c", -1, "what is not there is not replaced")

	failed := errors.New("failed")
	if err := s.Update(func(tx Tx) error { return errors.Join(failed, records.Put(tx, "b", record{N: 9})) }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	wantN(t, s, "a", 3, "a transaction failed")
	wantN(t, s, "b", 1, "a transaction failed")
	wantN(t, died(t, s, false), "a", 3, "a transaction failed and the process died")

	// A reader of before goes on seeing what it saw.
	err := s.View(func(tx Tx) error {
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
			t.Errorf("a reader of before sees %d, want 3: %v", r.N, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantN(t, s, "a", 4, "changed later")
	if st, err := os.Stat(s.db.Path() + notesSuffix); err != nil || st.Size() != 0 {
		t.Errorf("the file beside still has something: %v %v", st, err)
	}
	wantN(t, died(t, s, true), "a", 4, "changed later, and the host went down")

	soon(t, s, "a", record{N: 5})
	if err := s.Update(func(tx Tx) error { return records.Delete(tx, "a") }); err != nil {
		t.Fatal(err)
	}
	wantN(t, s, "a", -1, "deleted")
	wantN(t, died(t, s, false), "a", -1, "deleted, and the process died")

	soon(t, s, "b", record{N: 2})
	path := s.db.Path()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path + notesSuffix); err != nil {
		t.Fatal(err)
	}
	if err := Verify(path); err != nil {
		t.Error(err)
	}
	again := open(t, Config{Path: path})
	wantN(t, again, "b", 2, "closed")
	if err := records.Soon(s, "b", record{N: 3}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed store notes: %v", err)
	}
}

// TestSoonStale: a process that died between a transaction and the end of what it took along leaves notes that are old
// news.
func TestSoonStale(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Path: filepath.Join(t.TempDir(), "db"), Soon: never})
	putRecord(t, s, "a", record{N: 1})
	soon(t, s, "a", record{N: 2})
	stale, err := os.ReadFile(s.db.Path() + notesSuffix)
	if err != nil {
		t.Fatal(err)
	}
	putRecord(t, s, "a", record{N: 3})
	plant := func(raw []byte) *Store {
		t.Helper()
		if err := os.WriteFile(s.db.Path()+notesSuffix, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return died(t, s, false)
	}
	wantN(t, plant(stale), "a", 3, "old news")
	wantN(t, plant([]byte("0")), "a", 3, "half a line")

	// Behind it, what is newer counts, as far as it is whole.
	soon(t, s, "a", record{N: 4})
	fresh, err := os.ReadFile(s.db.Path() + notesSuffix)
	if err != nil {
		t.Fatal(err)
	}
	fresh = fresh[1:] // of what was planted
	both := append(append([]byte{}, stale...), fresh...)
	wantN(t, plant(both), "a", 4, "old news and new")
	wantN(t, plant(both[:len(both)-3]), "a", 3, "old news and half of new")
	again := plant(both)
	soon(t, again, "a", record{N: 5})
	wantN(t, died(t, again, false), "a", 5, "the next one is newer still")

	// With records that were made anew it is nobody's.
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path+notesSuffix, both, 0o600); err != nil {
		t.Fatal(err)
	}
	other := open(t, Config{Path: path, Soon: never})
	putRecord(t, other, "a", record{N: 7})
	wantN(t, died(t, other, false), "a", 7, "new records")
}

// TestSoonAlone: without any other transaction it is in the file after a while, and many at once are each in it.
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
				if err := records.Soon(s, key, record{N: n}); err != nil {
					t.Error(err)
				}
				wantN(t, s, key, n, "written at once")
			}
			if err := s.Update(func(tx Tx) error { return records.Put(tx, key, record{N: 10}) }); err != nil {
				t.Error(err)
			}
			wantN(t, s, key, 10, "changed")
			if err := records.Soon(s, key, record{N: 11}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(time.Minute); len(s.notes.pending()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not put into the file")
		}
	}
	after := died(t, s, true)
	for i := range many {
		wantN(t, after, fmt.Sprint(i), 11, "the host went down")
	}
}
