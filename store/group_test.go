package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.etcd.io/bbolt"
)

// numbers has the records of these tests; "sum" changes with each of theirs.
var numbers = Bucket[int]{Name: "numbers"}

func add(n int) func(Tx) error {
	return func(tx Tx) error {
		sum, err := numbers.Get(tx, "sum")
		if err != nil {
			return err
		}
		if err := numbers.Put(tx, fmt.Sprint(n), n); err != nil {
			return err
		}
		return numbers.Put(tx, "sum", sum+n)
	}
}

// together runs changes that wait while another transaction is written. It returns their results and the number of
// transactions that they took.
func together(t *testing.T, s *Store, changes ...func(Tx) error) (results []error, transactions int) {
	t.Helper()
	results = make([]error, len(changes))
	synctest.Test(t, func(*testing.T) {
		begun, goOn := make(chan struct{}), make(chan struct{})
		before := 0
		go func() {
			_ = s.Update(func(tx Tx) error {
				before = tx.tx.ID()
				close(begun)
				<-goOn
				return numbers.Put(tx, "first", 1)
			})
		}()
		<-begun
		for i, change := range changes {
			results[i] = errUnfinished
			go func() {
				defer func() {
					if p := recover(); p != nil {
						results[i] = fmt.Errorf("panic: %v", p)
					}
				}()
				results[i] = s.Update(change)
			}()
			synctest.Wait() // it waits for its turn
		}
		close(goOn)
		synctest.Wait()
		_ = s.db.View(func(tx *bbolt.Tx) error {
			transactions = tx.ID() - before
			return nil
		})
	})
	return results, transactions
}

// TestTogether shows that changes which wait share a transaction, and that one that fails in whatever way changes
// nothing, and nothing for the others.
func TestTogether(t *testing.T) {
	t.Parallel()
	errNo := errors.New("no")
	fails := func(end func() error) func(Tx) error {
		return func(tx Tx) error {
			err := errors.Join(add(100)(tx), numbers.Delete(tx, "first"), numbers.Put(tx, "1", 7))
			err = errors.Join(err, numbers.Put(tx, "1", 8))
			if err != nil {
				return err
			}
			return end()
		}
	}
	refused := fails(func() error { return errNo })
	for _, c := range []struct {
		name    string
		changes []func(Tx) error
		want    string
		sum     int
		most    int
	}{
		{"all succeed", []func(Tx) error{add(1), add(2), add(3)}, "<nil> <nil> <nil>", 6, 1},
		{"the first fails", []func(Tx) error{refused, add(1), add(2)}, "no <nil> <nil>", 3, 1},
		{"one fails", []func(Tx) error{add(1), refused, add(2)}, "<nil> no <nil>", 3, 1},
		{"all fail", []func(Tx) error{refused, refused}, "no no", 0, 0},
		{"one panics", []func(Tx) error{add(1), fails(func() error { panic("oh") }), add(2)}, "<nil> panic: oh <nil>", 3, 1},
		{
			"one ends its goroutine",
			[]func(Tx) error{add(1), fails(func() error { runtime.Goexit(); return nil }), add(2)},
			"<nil> " + errUnfinished.Error() + " <nil>", 3, 1,
		},
		{
			"the one that leads panics",
			[]func(Tx) error{fails(func() error { panic("oh") }), add(1), add(2)},
			"panic: oh " + errUnfinished.Error() + " " + errUnfinished.Error(), 0, 0,
		},
		{"one is alone", []func(Tx) error{refused}, "no", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			update(t, s, func(tx Tx) error { return numbers.Put(tx, "sum", 0) })
			results, transactions := together(t, s, c.changes...)
			got := map[string]int{}
			if got := strings.Trim(fmt.Sprint(results), "[]"); got != c.want {
				t.Errorf("results %q, want %q", got, c.want)
			}
			if transactions != c.most {
				t.Errorf("transactions %d, want %d", transactions, c.most)
			}
			_ = s.View(func(tx Tx) error {
				return numbers.Each(tx, "", func(key string, n int) error { got[key] = n; return nil })
			})
			want := map[string]int{"first": 1, "sum": c.sum}
			for i := 1; i*(i+1)/2 <= c.sum; i++ {
				want[fmt.Sprint(i)] = i
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("records %v, want %v", got, want)
			}
			update(t, s, add(50)) // the next one is served
		})
	}
}

// TestTogetherRefused shows that all who share a transaction learn that it failed.
func TestTogetherRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, Config{Path: path, CopiedBuckets: []string{"numbers"}})
	update(t, s, func(tx Tx) error { return numbers.Put(tx, "sum", 0) })
	if err := os.MkdirAll(path+keptSuffix+newSuffix+"/x", 0o700); err != nil { // a copy cannot be written
		t.Fatal(err)
	}
	errNo := errors.New("no")
	results, transactions := together(t, s, add(1), func(Tx) error { return errNo }, add(2))
	for i, err := range results {
		text := "write copy of records"
		if i == 1 {
			text = errNo.Error()
		}
		if err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if transactions > 0 {
		t.Errorf("transactions: %d", transactions)
	}
	_ = s.View(func(tx Tx) error {
		if sum, err := numbers.Get(tx, "sum"); err != nil || sum != 0 {
			t.Errorf("sum %d, %v", sum, err)
		}
		return nil
	})
}

// TestManyWriters shows that no change of many concurrent ones is lost, and that kept records are copied.
func TestManyWriters(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, Config{Path: path, CopiedBuckets: []string{"numbers"}})
	update(t, s, func(tx Tx) error { return numbers.Put(tx, "sum", 0) })
	const writers, each = 16, 20
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := s.Update(add(1 + w*each + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	copied, err := readKept(path + keptSuffix)
	if err != nil || !copied.whole || len(copied.records) != writers*each+1 {
		t.Errorf("copy: %d records, whole %t, %v", len(copied.records), copied.whole, err)
	}
	s = open(t, Config{Path: path})
	_ = s.View(func(tx Tx) error {
		sum, err := numbers.Get(tx, "sum")
		if n := writers * each; err != nil || sum != n*(n+1)/2 {
			t.Errorf("sum %d, %v", sum, err)
		}
		return nil
	})
}

// BenchmarkUpdate measures durable changes by one and by several clients at a time, for each change.
func BenchmarkUpdate(b *testing.B) {
	for _, clients := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "state.db")})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = s.Close() })
			next := make(chan int)
			var all sync.WaitGroup
			for range clients {
				all.Go(func() {
					for n := range next {
						err := s.Update(func(tx Tx) error { return numbers.Put(tx, fmt.Sprint(n%1000), n) })
						if err != nil {
							b.Error(err)
						}
					}
				})
			}
			for i := 0; b.Loop(); i++ {
				next <- i
			}
			close(next)
			all.Wait()
		})
	}
}
