package attach

import (
	"context"

	"netyard/modes"
)

// claimDevice returns the state of the host's device that the attachment moves into its sandbox, for its return; nil:
// it moves none. It first finishes the removal of former endpoints that have the device: a runtime that restarts a
// container does not wait until its device is back on the host, and one that attaches it twice has not returned it at
// all.
func (t *attaching) claimDevice(ctx context.Context, e modes.Endpoint) (map[string]string, error) {
	if t.Traits().Device == "" {
		return nil, nil
	}
	es, err := t.yard.EndpointsOf(t.Network.ID)
	if err != nil {
		return nil, err
	}
	var others []modes.Endpoint
	for _, o := range es {
		switch {
		case t.former != nil && o.ID == t.former.Endpoint.ID:
			err = t.endFormer(ctx, e.Into)
		case o.Sandbox == "" && o.Kept == nil:
		case o.Phase == modes.Deleting:
			err = t.finishOther(ctx, o, e.Into)
		default:
			others = append(others, o)
		}
		if err != nil {
			return nil, err
		}
	}
	return t.yard.Plan().TakeDevice(t.Mode, t.Network, others)
}

// endFormer removes the endpoint that the new one replaces. Its addresses are held until the new one takes them.
func (t *attaching) endFormer(ctx context.Context, into int) error {
	if err := recordDeleting(t.yard, "endpoint making way", t.former); err != nil {
		return err
	}
	old := t.former
	t.former = nil
	return t.finishNow(ctx, old, into)
}
