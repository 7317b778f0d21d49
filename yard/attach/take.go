package attach

import (
	"context"
	"errors"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
)

// take notes what an attachment is about to take from the host; nil when that is nothing. A runtime that starts a
// container again does not wait until what it had is back in its place, and one that attaches it twice has not given it
// back at all: so that comes first.
func take(ctx context.Context, y *yard.Yard, e modes.Endpoint) (map[string]string, error) {
	n, err := y.Network(e.NetworkID)
	if err != nil {
		return nil, err
	}
	m, err := y.Mode(n.Mode)
	if err != nil || m.Traits(n).Device == "" {
		return nil, err
	}
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(es, func(o modes.Endpoint) bool { return o.Sandbox == "" && o.Kept == nil })
	for i := 0; i < len(others); {
		gone, err := makeWay(ctx, y, n, others[i], e)
		if err != nil {
			return nil, err
		}
		if gone {
			others = slices.Delete(others, i, i+1)
		} else {
			i++
		}
	}
	return y.Plan().Take(m, n, others)
}

// makeWay ends an endpoint that is going, or in whose place another one comes.
func makeWay(ctx context.Context, y *yard.Yard, n modes.Network, old, e modes.Endpoint) (gone bool, err error) {
	same := old.Attachment == e.Attachment && old.IfName == e.IfName && e.Attachment != ""
	if old.Phase != modes.Deleting && !same {
		return false, nil
	}
	err = y.Update("endpoint making way", func(tx store.Tx) error {
		now, err := book.GetEndpoint(tx, old.NetworkID, old.ID)
		if errors.Is(err, book.ErrNotFound) {
			return nil // it has gone meanwhile
		}
		if err != nil {
			return err
		}
		return park(y, tx, n, now)
	})
	if err != nil {
		return false, err
	}
	return true, finishNow(ctx, y, old, n.ID, e.Into)
}
