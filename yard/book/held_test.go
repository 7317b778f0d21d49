package book_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"netyard/modes"
	"netyard/modes/none"
	"netyard/store"
	"netyard/yard/book"
)

// newBook returns a book without a kernel, with two networks that have an endpoint each, and one of an unknown mode.
func newBook(t *testing.T) *book.Book {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	must(t, st.Update(func(tx store.Tx) error {
		return errors.Join(
			book.Networks.Put(tx, "n1", modes.Network{ID: "n1", Mode: "none"}),
			book.Networks.Put(tx, "n2", modes.Network{ID: "n2", Mode: "none"}),
			book.Networks.Put(tx, "odd", modes.Network{ID: "odd", Mode: "odd"}),
			book.PutEndpoint(tx, modes.Endpoint{ID: "e1", NetworkID: "n1"}),
			book.PutEndpoint(tx, modes.Endpoint{ID: "e2", NetworkID: "n2"}),
		)
	}))
	return book.New(book.Config{Store: st, Modes: map[string]modes.Mode{"none": none.New(modes.Env{})}})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHold shows what is loaded under the locks, and that a change is on record and in the value.
func TestHold(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	h, err := y.Hold(t.Context(), "n1", "e1")
	must(t, err)
	if h.Network.ID != "n1" || h.Endpoint.ID != "e1" || h.Mode == nil {
		t.Errorf("held: %v", h)
	}
	busy, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := y.Hold(busy, "n1", "e1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held twice: %v", err)
	}
	e := h.Endpoint
	e.MAC = "02:00:00:00:00:01"
	must(t, h.Put("test", e))
	if is, err := y.Endpoint("n1", "e1"); err != nil || is.MAC != e.MAC || h.Endpoint.MAC != e.MAC {
		t.Errorf("on record: %v %v; held: %v", is, err, h.Endpoint)
	}
	failed := errors.New("it failed")
	if err := h.Change("test", func(_ store.Tx, e *modes.Endpoint) error {
		e.MAC = ""
		return failed
	}); !errors.Is(err, failed) || h.Endpoint.MAC != e.MAC {
		t.Errorf("a change that failed: %v; held: %v", err, h.Endpoint)
	}
	h.Release()
	h.Release()
	h, err = y.HoldNetwork(t.Context(), "n1") // fails if a lock is still held
	must(t, err)
	h.Release()
}

// TestHoldMissing shows that what does not exist is not found, and leaves no lock behind.
func TestHoldMissing(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	for range 2 {
		for what, hold := range map[string]func() (*book.Held, error){
			"an endpoint":       func() (*book.Held, error) { return y.Hold(t.Context(), "n1", "nope") },
			"a network":         func() (*book.Held, error) { return y.HoldNetwork(t.Context(), "nope") },
			"both":              func() (*book.Held, error) { return y.HoldNew(t.Context(), "nope", "nope") },
			"another, by other": func() (*book.Held, error) { return missingOther(t, y) },
		} {
			if h, err := hold(); h != nil || !errors.Is(err, book.ErrNotFound) {
				t.Errorf("%s: %v %v", what, h, err)
			}
		}
	}
	h, err := y.HoldNew(t.Context(), "n1", "nope")
	if err != nil || h.Endpoint.ID != "" || h.Network.ID != "n1" {
		t.Errorf("a new endpoint: %v %v", h, err)
	}
	h.Release()
	h, err = y.HoldNewNetwork(t.Context(), "nope")
	if err != nil || h.Network.ID != "" {
		t.Errorf("a new network: %v %v", h, err)
	}
	h.Release()
	if n := y.Locks.Len(); n > 0 {
		t.Errorf("%d locks are left", n)
	}
}

func missingOther(t *testing.T, y *book.Book) (*book.Held, error) {
	t.Helper()
	h, err := y.Hold(t.Context(), "n1", "e1")
	must(t, err)
	defer h.Release()
	return h.HoldOther(t.Context(), "nope")
}

// TestHoldUnknownMode shows that a network whose mode this netyard does not have is not taken for a missing one.
func TestHoldUnknownMode(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	for what, hold := range map[string]func(context.Context, string) (*book.Held, error){
		"HoldNetwork": y.HoldNetwork, "HoldNewNetwork": y.HoldNewNetwork,
	} {
		if _, err := hold(t.Context(), "odd"); err == nil || errors.Is(err, book.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestHoldAll shows that two requests which hold the same endpoints in another order do not wait for each other for
// ever, and that all but the first endpoint can be released alone.
func TestHoldAll(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	a, b := book.Holder{Network: "n1", Endpoint: "e1"}, book.Holder{Network: "n2", Endpoint: "e2"}
	done := make(chan error)
	for _, of := range [][]book.Holder{{a, b}, {b, a}} {
		go func() {
			for range 200 {
				all, err := y.HoldAll(t.Context(), of...)
				if err != nil {
					done <- err
					return
				}
				all[0].Release()
			}
			done <- nil
		}()
	}
	for range 2 {
		must(t, <-done)
	}
	all, err := y.HoldAll(t.Context(), a, b)
	must(t, err)
	all[1].Release()
	h, err := y.Hold(t.Context(), "n2", "e2")
	must(t, err)
	h.Release()
	all[0].Release()
	if n := y.Locks.Len(); n > 0 {
		t.Errorf("%d locks are left", n)
	}
}
