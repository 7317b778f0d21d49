package book

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"netyard/modes"
	"netyard/store"
)

// Held is a network and one of its endpoints, loaded once under their locks. Until it is released nobody else changes
// the two records. So a request passes the value on instead of reading the records again, and records its changes with
// Change.
//
// If an endpoint is held, its network is locked shared: requests about several endpoints run at the same time. If a
// network is held, it is locked exclusively, and so all its endpoints are held as well (With).
type Held struct {
	Mode    modes.Mode
	Network modes.Network
	// Endpoint is the record of the endpoint. Its ID is empty if there is none, or if the network is held.
	Endpoint modes.Endpoint
	// Release unlocks both. It may be called more than once.
	Release func()

	// Book has the records.
	Book *Book
}

// Hold locks an endpoint exclusively and its network shared, and loads both.
func (y *Book) Hold(ctx context.Context, network, id string) (*Held, error) {
	h, err := y.HoldNew(ctx, network, id)
	if err == nil && h.Endpoint.ID == "" {
		h.Release()
		return nil, NoEndpoint(network, id)
	}
	return h, err
}

// HoldNew is Hold for an endpoint that need not exist yet.
func (y *Book) HoldNew(ctx context.Context, network, id string) (*Held, error) {
	all, err := y.HoldAll(ctx, Holder{network, id})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// HoldAll is HoldNew for several endpoints. All callers take the locks in the same order, so no two of them wait for
// each other. The first endpoint must be released last.
func (y *Book) HoldAll(ctx context.Context, of ...Holder) (all []*Held, err error) {
	order := slices.Clone(of)
	slices.SortFunc(order, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	releases := map[string]func(){}
	release := func() {
		for _, do := range releases {
			do()
		}
	}
	lock := func(name string, shared bool) {
		if err != nil || releases[name] != nil {
			return
		}
		var do func()
		if do, err = y.Locks.Hold(ctx, name, shared); err == nil {
			releases[name] = sync.OnceFunc(do)
		}
	}
	for _, o := range order {
		lock(o.Network, true)
	}
	for _, o := range order {
		lock(EndpointKey(o.Network, o.Endpoint), false)
	}
	for i, o := range of {
		if err != nil {
			break
		}
		h := &Held{Book: y, Release: releases[EndpointKey(o.Network, o.Endpoint)]}
		if i == 0 {
			h.Release = release
		}
		if at := slices.IndexFunc(all, func(of *Held) bool { return of.Network.ID == o.Network }); at >= 0 {
			h.Mode, h.Network = all[at].Mode, all[at].Network
		}
		if err = h.load(o); i > 0 && errors.Is(err, ErrNotFound) {
			err = nil // its network was deleted meanwhile
		}
		all = append(all, h)
	}
	if err != nil {
		release()
		return nil, err
	}
	return all, nil
}

// HoldNetwork locks a network exclusively, with all its endpoints, and loads it.
func (y *Book) HoldNetwork(ctx context.Context, id string) (*Held, error) {
	h, err := y.HoldNewNetwork(ctx, id)
	if err == nil && h.Network.ID == "" {
		h.Release()
		return nil, noNetwork(id)
	}
	return h, err
}

// HoldNewNetwork is HoldNetwork for a network that need not exist yet.
func (y *Book) HoldNewNetwork(ctx context.Context, id string) (*Held, error) {
	release, err := y.Locks.Hold(ctx, id, false)
	if err != nil {
		return nil, err
	}
	h := &Held{Book: y, Release: sync.OnceFunc(release)}
	if err := h.load(Holder{Network: id}); err != nil && !errors.Is(err, ErrNotFound) {
		release()
		return nil, err
	}
	return h, nil
}

// HoldOther holds another endpoint of the network of one that is held. A request must not wait for the lock of its
// network a second time: one that waits for the exclusive lock may be in between.
func (h *Held) HoldOther(ctx context.Context, id string) (*Held, error) {
	release, err := h.Book.Locks.Hold(ctx, EndpointKey(h.Network.ID, id), false)
	if err != nil {
		return nil, err
	}
	other := &Held{Mode: h.Mode, Network: h.Network, Release: sync.OnceFunc(release), Book: h.Book}
	if other.Endpoint, err = h.Book.Endpoint(h.Network.ID, id); err != nil {
		release()
		return nil, err
	}
	return other, nil
}

// With returns an endpoint of a network that is held. Its lock is the network's.
func (h *Held) With(e modes.Endpoint) *Held {
	return &Held{Mode: h.Mode, Network: h.Network, Endpoint: e, Release: func() {}, Book: h.Book}
}

// load reads the records, but not a network that is loaded already. An endpoint that does not exist is no error.
func (h *Held) load(o Holder) error {
	err := h.Book.Config.Store.View(func(tx store.Tx) (err error) {
		if h.Network.ID == "" {
			h.Network, err = GetNetwork(tx, o.Network)
		}
		if err != nil || o.Endpoint == "" {
			return err
		}
		h.Endpoint, err = GetEndpoint(tx, o.Network, o.Endpoint)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	if h.Mode, err = h.Book.Mode(h.Network.Mode); err != nil {
		return fmt.Errorf("network %s: %v", Label(h.Network), err) //nolint:errorlint // the network is found
	}
	return nil
}

// Change changes the record of the endpoint, in one transaction with what else change writes. change replaces maps and
// slices of the endpoint rather than their elements.
func (h *Held) Change(step string, change func(tx store.Tx, e *modes.Endpoint) error) error {
	var e modes.Endpoint
	err := h.Book.Update(step, func(tx store.Tx) error {
		e = h.Endpoint
		if err := change(tx, &e); err != nil {
			return err
		}
		return replaceEndpoint(tx, h.Endpoint, e)
	})
	if err == nil {
		h.Endpoint = e
	}
	return err
}

// PutIn records the endpoint as it is to be, in a transaction that changes another one as well. h keeps the former
// value.
func (h *Held) PutIn(tx store.Tx, e modes.Endpoint) error { return replaceEndpoint(tx, h.Endpoint, e) }

// Put records the endpoint as it is to be.
func (h *Held) Put(step string, e modes.Endpoint) error {
	return h.Change(step, func(_ store.Tx, now *modes.Endpoint) error {
		*now = e
		return nil
	})
}

// ChangeNetwork changes the record of a network that is held, as Change does that of an endpoint.
func (h *Held) ChangeNetwork(step string, change func(tx store.Tx, n *modes.Network) error) error {
	var n modes.Network
	err := h.Book.Update(step, func(tx store.Tx) error {
		n = h.Network
		if err := change(tx, &n); err != nil {
			return err
		}
		return Networks.Put(tx, n.ID, n)
	})
	if err == nil {
		h.Network = n
	}
	return err
}

// Attached records that the endpoint is set up as its pending record says. It does not wait for the disk: if the host
// loses this record, it has lost the link as well.
func (h *Held) Attached(e modes.Endpoint) error {
	y := h.Book
	y.Config.Step("before endpoint ready")
	if err := Endpoints.PutSoon(y.Config.Store, EndpointKey(e.NetworkID, e.ID), e); err != nil {
		return err
	}
	h.Endpoint = e
	y.Config.Step("after endpoint ready")
	return nil
}

// Traits returns the traits of the network.
func (h *Held) Traits() modes.Traits { return h.Mode.Traits(h.Network) }
