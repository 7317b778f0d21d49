package yard

import (
	"errors"
	"net/netip"
	"time"

	"netyard/modes"
	"netyard/store"
)

// A hold keeps the addresses of a container that is stopped, until it is started again or removed.
type hold struct {
	NetworkID, Attachment, IfName string
	Addrs                         []netip.Prefix
	Container                     modes.Container
	Since                         time.Time
}

var holds = store.Bucket[hold]{Name: "holds"}

func (h hold) key() string { return attachmentKey(h.Attachment, h.NetworkID, h.IfName) }

// holdPrefix begins what a hold writes where an endpoint would write its id.
const holdPrefix = "hold|"

// claim is what a hold writes where an endpoint would write its id.
func (h hold) claim() string { return holdPrefix + h.key() }

func putHold(tx store.Tx, h hold) error {
	for _, a := range h.Addrs {
		key := claimKey(h.NetworkID, a.Addr())
		if taken, err := claims.Get(tx, key); err == nil && taken != h.claim() {
			continue // another endpoint has it by now
		}
		if err := claims.Put(tx, key, h.claim()); err != nil {
			return err
		}
	}
	return holds.Put(tx, h.key(), h)
}

// takeHold ends a hold and returns it with the addresses that it still has; their leases are the caller's now.
func takeHold(tx store.Tx, attachment, network, ifName string) (h hold, found bool, err error) {
	h, err = holds.Get(tx, attachmentKey(attachment, network, ifName))
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	var still []netip.Prefix
	for _, a := range h.Addrs {
		if by, err := claims.Get(tx, claimKey(network, a.Addr())); err == nil && by == h.claim() {
			still = append(still, a)
		}
	}
	err = eraseHold(tx, h)
	h.Addrs = still
	return h, true, err
}

func eraseHold(tx store.Tx, h hold) error {
	for _, a := range h.Addrs {
		if err := dropClaim(tx, claimKey(h.NetworkID, a.Addr()), h.claim()); err != nil {
			return err
		}
	}
	return holds.Delete(tx, h.key())
}

func (y *Yard) allHolds() (hs []hold, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		hs, err = holds.List(tx, "")
		return err
	})
	return hs, err
}

// releaseHolds frees the addresses of the holds that are over.
func (y *Yard) releaseHolds(over func(hold) bool) error {
	hs, err := y.allHolds()
	if err != nil {
		return err
	}
	for _, h := range hs {
		if !over(h) {
			continue
		}
		y.c.Log.Info("free the addresses of a container that was removed", "container", h.Container.Name, "attachment", h.Attachment, "addresses", h.Addrs)
		if err := y.endHold(h); err != nil {
			return err
		}
	}
	return nil
}

// endHold frees the addresses of a hold.
func (y *Yard) endHold(h hold) error {
	if err := y.c.Store.Update(func(tx store.Tx) error { return y.releaseHold(tx, h) }); err != nil {
		return err
	}
	n, err := y.Network(h.NetworkID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.giveUpOf(n, modes.Endpoint{Attachment: h.Attachment, Addrs: h.Addrs})
}

func (y *Yard) releaseHold(tx store.Tx, h hold) error {
	if now, err := holds.Get(tx, h.key()); err != nil || !now.Since.Equal(h.Since) {
		return nil //nolint:nilerr // it was taken meanwhile
	}
	if err := eraseHold(tx, h); err != nil {
		return err
	}
	n, err := getNetwork(tx, h.NetworkID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range h.Addrs {
		if err := y.releaseLease(tx, n, a.Addr(), true); err != nil {
			return err
		}
	}
	return nil
}

// eraseHolds forgets the holds of a network that goes, pools and all.
func eraseHolds(tx store.Tx, network string) error {
	all, err := holds.List(tx, "")
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.NetworkID != network {
			continue
		}
		if err := eraseHold(tx, h); err != nil {
			return err
		}
	}
	return nil
}
