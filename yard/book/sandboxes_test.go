package book_test

import (
	"fmt"
	"slices"
	"testing"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/index"
)

// neighbours returns the IDs of the other endpoints in the sandbox of e1.
func neighbours(t *testing.T, y *book.Book) (ids []string) {
	t.Helper()
	must(t, y.Config.Store.View(func(tx store.Tx) error {
		e, err := book.GetEndpoint(tx, "n1", "e1")
		if err != nil {
			return err
		}
		others, err := book.Neighbours(tx, e)
		for _, o := range others {
			ids = append(ids, o.ID)
		}
		return err
	}))
	return ids
}

// TestNeighbours shows that the endpoints of a sandbox are known while they are in it, whatever becomes of them.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	put := func(e modes.Endpoint) func(store.Tx) error {
		return func(tx store.Tx) error { return book.PutEndpoint(tx, e) }
	}
	e1 := modes.Endpoint{ID: "e1", NetworkID: "n1", Sandbox: "/run/a"}
	e2 := modes.Endpoint{ID: "e2", NetworkID: "n2", Sandbox: "/run/a"}
	longer, left, going := e2, e2, e2
	longer.Sandbox, left.Sandbox, going.Phase = "/run/ab", "", modes.Deleting
	for _, step := range []struct {
		name   string
		change func(store.Tx) error
		want   []string
	}{
		{"neither has joined", put(modes.Endpoint{ID: "e1", NetworkID: "n1"}), nil},
		{"one has joined", put(e1), nil},
		{"both have", put(e2), []string{"e2"}},
		{"the same again", put(e2), []string{"e2"}},
		{"the other's path begins alike", put(longer), nil},
		{"it is back", put(e2), []string{"e2"}},
		{"it has left", put(left), nil},
		{"it joins again", put(e2), []string{"e2"}},
		{"it is being deleted", put(going), nil},
		{"the deletion is taken back", put(e2), []string{"e2"}},
		{"it is deleted", func(tx store.Tx) error { return book.EraseEndpoint(tx, e2) }, nil},
	} {
		must(t, y.Config.Store.Update(step.change))
		if got := neighbours(t, y); !slices.Equal(got, step.want) {
			t.Errorf("%s: neighbours %v, want %v", step.name, got, step.want)
		}
	}
}

// TestIndexEndpoints shows that the records of a netyard that had no index get one.
func TestIndexEndpoints(t *testing.T) {
	t.Parallel()
	y := newBook(t)
	must(t, y.Config.Store.Update(func(tx store.Tx) error {
		for i, key := range []string{"e1", "e3", "e4"} {
			e := modes.Endpoint{ID: key, NetworkID: "n1", Sandbox: "/run/a", Phase: modes.Ready}
			e.MAC = fmt.Sprintf("02:00:00:00:00:%02x", i)
			if err := book.Endpoints.Put(tx, book.EndpointKey("n1", key), e); err != nil {
				return err
			}
		}
		return nil
	}))
	for range 2 { // the second time there is nothing to do
		must(t, y.IndexEndpoints())
		if got := neighbours(t, y); !slices.Equal(got, []string{"e3", "e4"}) {
			t.Errorf("neighbours %v", got)
		}
	}
	must(t, y.Config.Store.View(func(tx store.Tx) error {
		id, err := index.WithMAC(tx, "n1", "02:00:00:00:00:01")
		if id != "e3" {
			t.Errorf("the hardware address is %q's", id)
		}
		return err
	}))
}
