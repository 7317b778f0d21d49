package yard_test

import (
	"errors"
	"testing"

	"netyard/yard/book"
)

// TestPick shows that a name is preferred to an ID with the same prefix.
func TestPick(t *testing.T) {
	t.Parallel()
	type thing struct{ id, name string }
	all := []thing{{"b1", "web"}, {"c2", "b"}, {"c3", "db"}, {"d4", "db"}, {"d45", ""}}
	for ref, want := range map[string]string{
		"b": "c2", "b1": "b1", "web": "b1", "c3": "c3", "d45": "d45",
		"d4": "d4", "": "none", "x": "none", "db": "many", "c": "many",
	} {
		got, err := book.Pick("thing", ref, all, func(v thing) (string, string) { return v.id, v.name })
		switch {
		case errors.Is(err, book.ErrNotFound):
			got.id = "none"
		case errors.Is(err, book.ErrAmbiguous):
			got.id = "many"
		}
		if got.id != want {
			t.Errorf("%q: %q, %v; want %q", ref, got.id, err, want)
		}
	}
}
