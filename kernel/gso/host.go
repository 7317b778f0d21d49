package gso

import (
	"maps"
	"slices"
	"sync/atomic"

	"netyard/kernel/core"
)

// known is the way out of a host as it was last seen. New links are made for it; the links of all endpoints are
// compared with it whenever a link on it or a default route changes.
type known struct{ way atomic.Pointer[Way] }

// Look reads the way out from a view, and remembers it.
func Look(v *core.View) error {
	_, err := core.Dump(v, read)
	return err
}

// Of returns the limit of a network by what a view has seen; a narrow view has not seen the way out.
func Of(v *core.View, want Want) Limit {
	if !want.Big {
		return unwanted()
	}
	if v.Narrow {
		limit, err := Known(v.Handle, want)
		v.Note(0, err)
		return limit
	}
	way, _ := core.Dump(v, read)
	return way.Limit(want)
}

func read(v *core.View) (*Way, error) {
	way := NewWay(slices.Collect(maps.Values(v.Links())), v.Routes())
	core.Stored[known](v.Handle).way.Store(way)
	return way, nil
}

// Known returns the limit of a network by what was last seen of the host. It looks if nobody has.
func Known(h *core.Handle, want Want) (Limit, error) {
	if !want.Big {
		return unwanted(), nil
	}
	if way := core.Stored[known](h).way.Load(); way != nil {
		return way.Limit(want), nil
	}
	return Now(h, want)
}

// Now returns the limit of a network as the host is now.
func Now(h *core.Handle, want Want) (Limit, error) {
	v, err := core.NewView(h, false)
	if err != nil {
		return Limit{}, err
	}
	return Of(v, want), nil
}

// IsOut reports whether a link was on the way out when that was last seen.
func IsOut(h *core.Handle, name string) bool {
	way := core.Stored[known](h).way.Load()
	return way != nil && way.out[name]
}
