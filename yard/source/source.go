// Package source gives endpoints their addresses and takes them back, from the source of each pool: netyard's own IPAM,
// a DHCP server, or the cluster.
package source

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/live"
	"netyard/yard/overlay"
)

// A Source is where the addresses of a network's pools come from: netyard's own IPAM, a DHCP server, or the cluster. A
// value serves one attachment.
type Source interface {
	// Acquire gets the addresses that take a while to get. No lock of the network is held.
	Acquire(ctx context.Context) error
	// Keep gives the endpoint its addresses, in the transaction that records it. had are the addresses that its
	// attachment had before.
	Keep(tx store.Tx, had []netip.Addr, e *modes.Endpoint) error
	// Release releases what the endpoint does not have: all that was acquired, or, if the endpoint is recorded, what
	// its attachment had.
	Release(recorded bool) error
}

// Acquired are the addresses of one attachment, from all sources of its network.
type Acquired struct {
	y       *book.Book
	request book.AttachRequest
	sources []Source
}

// Acquire gets the addresses of an attachment. owner is the ID of the endpoint that will have them. If one cannot be
// got, it releases the others.
func Acquire(ctx context.Context, j *live.Check, r book.AttachRequest, owner string) (*Acquired, error) {
	y := j.Book
	if err := shareable(r.Network); err != nil {
		return nil, err
	}
	a := &Acquired{y: y, request: r}
	switch {
	case overlay.Claims(y, r.Network.Mode):
		a.sources = []Source{&overlay.Source{Book: y, Request: r, Owner: owner}}
	case len(r.Network.DHCP) > 0:
		a.sources = []Source{&lease.Source{Check: j, Request: r}, &own{y: y, request: r}}
	default:
		a.sources = []Source{&own{y: y, request: r}}
	}
	for _, s := range a.sources {
		if err := s.Acquire(ctx); err != nil {
			a.Release(false)
			return nil, err
		}
	}
	return a, nil
}

// Keep gives the endpoint its addresses, in the transaction that records it. had are the addresses that its attachment
// had before.
func (a *Acquired) Keep(tx store.Tx, had []netip.Addr, e *modes.Endpoint) error {
	for _, s := range a.sources {
		if err := s.Keep(tx, had, e); err != nil {
			return err
		}
	}
	for _, asked := range a.request.Addrs {
		if !has(*e, asked) {
			return fmt.Errorf("address %s: network %s has no subnet for it", asked, book.Label(a.request.Network))
		}
	}
	return nil
}

// Release releases what the endpoint does not have. It is called once, on each way out: recorded says that Keep was
// part of a transaction that succeeded. What cannot be released is found later, as an orphan.
func (a *Acquired) Release(recorded bool) {
	for _, s := range a.sources {
		if err := s.Release(recorded); err != nil {
			a.y.Config.Log.Warn("address not released", "network", a.request.Network.ID,
				"container", a.request.Attachment, "err", err)
		}
	}
}

// has reports whether an endpoint has an address.
func has(e modes.Endpoint, a netip.Addr) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}
