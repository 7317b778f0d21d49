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

// claimDevice returns the state of the host's device that the attachment moves into its sandbox, for its return; nil:
// it moves none. It first finishes the removal of former endpoints that have the device: a runtime that restarts a
// container does not wait until its device is back on the host, and one that attaches it twice has not returned it at
// all.
func claimDevice(ctx context.Context, y *yard.Yard, e modes.Endpoint) (map[string]string, error) {
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
		gone, err := endFormer(ctx, y, n, others[i], e)
		if err != nil {
			return nil, err
		}
		if gone {
			others = slices.Delete(others, i, i+1)
		} else {
			i++
		}
	}
	return y.Plan().TakeDevice(m, n, others)
}

// endFormer removes an endpoint that is being deleted, or that e replaces. gone: it removed it.
func endFormer(ctx context.Context, y *yard.Yard, n modes.Network, old, e modes.Endpoint) (gone bool, err error) {
	same := old.Attachment == e.Attachment && old.IfName == e.IfName && e.Attachment != ""
	if old.Phase != modes.Deleting && !same {
		return false, nil
	}
	err = y.Update("endpoint making way", func(tx store.Tx) error {
		now, err := book.GetEndpoint(tx, old.NetworkID, old.ID)
		if errors.Is(err, book.ErrNotFound) {
			return nil // it was removed meanwhile
		}
		if err != nil {
			return err
		}
		return recordDeleting(y, tx, n, now)
	})
	if err != nil {
		return false, err
	}
	return true, finishNow(ctx, y, old, n.ID, e.Into)
}
