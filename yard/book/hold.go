package book

import (
	"errors"
	"net/netip"
	"time"

	"netyard/modes"
	"netyard/store"
)

// A Hold reserves the addresses of a stopped container until it is started again or removed.
type Hold struct {
	NetworkID, Attachment, IfName string
	Addrs                         []netip.Prefix
	Container                     modes.Container
	Since                         time.Time
}

// Holds has the holds by attachment, network and interface.
var Holds = store.Bucket[Hold]{Name: "holds"}

// Key returns the key of the hold.
func (h Hold) Key() string { return AttachmentKey(h.Attachment, h.NetworkID, h.IfName) }

// holdPrefix begins the value of a hold's claim, where an endpoint's claim has the endpoint's ID.
const holdPrefix = "hold|"

// claim returns the value of the hold's claims.
func (h Hold) claim() string { return holdPrefix + h.Key() }

// PutHold records a hold, with claims on those of its addresses that are free.
func PutHold(tx store.Tx, h Hold) error {
	for _, a := range h.Addrs {
		key := ClaimKey(h.NetworkID, a.Addr())
		if taken, err := Claims.Get(tx, key); err == nil && taken != h.claim() {
			continue // an endpoint or another hold has it by now
		}
		if err := Claims.Put(tx, key, h.claim()); err != nil {
			return err
		}
	}
	return Holds.Put(tx, h.Key(), h)
}

// EndHold deletes a hold and returns it with the addresses that it still has. Their leases now belong to the caller.
func EndHold(tx store.Tx, attachment, network, ifName string) (h Hold, found bool, err error) {
	h, err = Holds.Get(tx, AttachmentKey(attachment, network, ifName))
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	var still []netip.Prefix
	for _, a := range h.Addrs {
		if by, err := Claims.Get(tx, ClaimKey(network, a.Addr())); err == nil && by == h.claim() {
			still = append(still, a)
		}
	}
	err = EraseHold(tx, h)
	h.Addrs = still
	return h, true, err
}

// EraseHold deletes a hold and its claims.
func EraseHold(tx store.Tx, h Hold) error {
	for _, a := range h.Addrs {
		if err := DropClaim(tx, ClaimKey(h.NetworkID, a.Addr()), h.claim()); err != nil {
			return err
		}
	}
	return Holds.Delete(tx, h.Key())
}

// AllHolds returns all holds.
func (y *Book) AllHolds() (hs []Hold, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		hs, err = Holds.List(tx, "")
		return err
	})
	return hs, err
}

// EraseHolds deletes the holds of a network that is removed with its pools.
func EraseHolds(tx store.Tx, network string) error {
	all, err := Holds.List(tx, "")
	if err != nil {
		return err
	}
	for _, h := range all {
		if h.NetworkID != network {
			continue
		}
		if err := EraseHold(tx, h); err != nil {
			return err
		}
	}
	return nil
}
