package yard_test

import (
	"errors"
	"testing"

	"netyard/yard/book"
)

// TestPick shows that a name is preferred to an ID with the same prefix, and a prefix of the item's own ID to one of
// another ID.
func TestPick(t *testing.T) {
	t.Parallel()
	type thing struct{ id, name, other string }
	all := []thing{
		{"b1", "web", "e1"}, {"c2", "b", "b2"}, {"c3", "db", "f1"}, {"d4", "db", "f1"}, {"d45", "", ""},
	}
	for ref, want := range map[string]string{
		"b": "c2", "b1": "b1", "web": "b1", "c3": "c3", "d45": "d45",
		"d4": "d4", "": "none", "x": "none", "db": "many", "c": "many",
		"e": "b1", "e1": "b1", "b2": "c2", "f1": "many",
	} {
		got, err := book.Pick("thing", ref, all, func(v thing) []string { return []string{v.id, v.other} },
			func(v thing) bool { return v.name == ref })
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
