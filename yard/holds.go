package yard

import (
	"errors"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/overlay"
	"netyard/yard/source"
)

// ReleaseHolds ends the holds for which over returns true, and releases their addresses.
func (y *Yard) ReleaseHolds(over func(book.Hold) bool) error {
	hs, err := y.AllHolds()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if !over(h) {
			continue
		}
		if err := y.EndHold(h); err != nil {
			return err
		}
		y.Config.Log.Info("held addresses released",
			"container", h.Container.Name, "container_id", h.Attachment, "addresses", h.Addrs)
	}
	return nil
}

// EndHold ends a hold and releases its addresses.
func (y *Yard) EndHold(h book.Hold) error {
	if err := y.Config.Store.Update(func(tx store.Tx) error { return y.releaseHold(tx, h) }); err != nil {
		return err
	}
	n, err := y.Network(h.NetworkID)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return overlay.ReleaseOf(y.Book, n, modes.Endpoint{Attachment: h.Attachment, Addrs: h.Addrs})
}

func (y *Yard) releaseHold(tx store.Tx, h book.Hold) error {
	if now, err := book.Holds.Get(tx, h.Key()); err != nil || !now.Since.Equal(h.Since) {
		return nil //nolint:nilerr // its container started again meanwhile
	}
	if err := book.EraseHold(tx, h); err != nil {
		return err
	}
	n, err := book.GetNetwork(tx, h.NetworkID)
	if errors.Is(err, book.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range h.Addrs {
		if err := source.ReleaseAddress(y.Book, tx, n, a.Addr(), true); err != nil {
			return err
		}
	}
	return nil
}
