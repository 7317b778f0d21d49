package attach

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// inherit returns the addresses that the attachment had before, from its hold or its former endpoint. It records that
// endpoint as deleting.
func (t *attaching) inherit(tx store.Tx) (kept []netip.Addr, err error) {
	r := t.request
	h, _, err := book.EndHold(tx, r.Attachment, r.Network.ID, r.IfName)
	if err != nil {
		return nil, err
	}
	had := h.Addrs
	if t.former != nil {
		old := t.former.Endpoint
		old.Phase, old.Turned = modes.Deleting, t.yard.Config.Now()
		if err := t.former.PutIn(tx, old); err != nil {
			return nil, err
		}
		had = slices.Concat(had, old.Addrs)
	}
	for _, p := range had {
		kept = append(kept, p.Addr())
	}
	return kept, nil
}
