package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// Source is where an attachment gets its addresses on an overlay: the cluster, where this host claims them.
type Source struct {
	Book    *book.Book
	Request book.AttachRequest
	// Owner is the ID of the endpoint.
	Owner string

	addrs []netip.Prefix
	// had are those of addrs that the attachment has already, spare the others that it has. fresh are those that were
	// claimed for it.
	had, spare, fresh []netip.Addr
}

// Acquire claims an address in each family: the requested one, else the one that the attachment has, else any.
func (s *Source) Acquire(ctx context.Context) error {
	err := s.claim(ctx)
	if err == nil {
		return nil
	}
	return s.Book.Config.Store.View(func(tx store.Tx) error { return book.WithHolders(tx, s.Request, err) })
}

func (s *Source) claim(ctx context.Context) error {
	y, r, n := s.Book, s.Request, s.Request.Network
	if y.Config.Fabric == nil {
		return fmt.Errorf("network %s: %w", book.Label(n), modes.ErrNoCluster)
	}
	for _, asked := range r.Addrs {
		if !slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(asked) }) {
			return fmt.Errorf("address %s: network %s has no subnet for it", asked, book.Label(n))
		}
	}
	kept, err := currentAddrs(y, r)
	if err != nil {
		return err
	}
	for _, group := range book.ByFamily(n) {
		v6 := group[0].Addr().Is6()
		of := func(addrs []netip.Addr) (one netip.Addr) {
			if at := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == v6 }); at >= 0 {
				one = addrs[at]
			}
			return one
		}
		asked, got := of(r.Addrs), of(kept)
		if got.IsValid() && (!asked.IsValid() || asked == got) {
			s.had = append(s.had, got)
		} else if got, err = y.Config.Fabric.Grant(ctx, Of(y, n), s.Owner, asked, v6); err != nil {
			return err
		} else {
			s.fresh = append(s.fresh, got)
		}
		for _, p := range group {
			if p.Contains(got) {
				s.addrs = append(s.addrs, netip.PrefixFrom(got, p.Bits()))
			}
		}
	}
	s.spare = slices.DeleteFunc(kept, func(k netip.Addr) bool { return slices.Contains(s.had, k) })
	return nil
}

// Keep gives the addresses to the endpoint. It refuses if the attachment no longer has one that it had.
func (s *Source) Keep(_ store.Tx, had []netip.Addr, e *modes.Endpoint) error {
	for _, a := range s.had {
		if !slices.Contains(had, a) {
			return fmt.Errorf("network %s: address %s was released meanwhile; try again",
				book.Label(s.Request.Network), a)
		}
	}
	e.Addrs = append(e.Addrs, s.addrs...)
	return nil
}

// Release releases the addresses that were claimed, or, if the endpoint is recorded, those that it did not take over.
func (s *Source) Release(recorded bool) error {
	if recorded {
		return ReleaseUnused(s.Book, s.Request.Network, s.spare...)
	}
	return ReleaseUnused(s.Book, s.Request.Network, s.fresh...)
}

// currentAddrs returns the addresses that the attachment has, or that are held for it. The caller has the container's
// lock, so no other request changes them.
func currentAddrs(y *book.Book, r book.AttachRequest) (addrs []netip.Addr, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		h, err := book.Holds.Get(tx, book.AttachmentKey(r.Attachment, r.Network.ID, r.IfName))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		e, err := book.GetAttachment(tx, r.Attachment, r.Network.ID, r.IfName)
		if err != nil && !errors.Is(err, book.ErrNotFound) {
			return err
		}
		for _, p := range slices.Concat(h.Addrs, e.Addrs) {
			taken, err := book.Claimed(tx, r.Network.ID, p.Addr())
			if err == nil && taken && !slices.Contains(addrs, p.Addr()) {
				addrs = append(addrs, p.Addr())
			}
		}
		return nil
	})
	return addrs, err
}

// ReleaseUnused releases addresses of an overlay, except those that an endpoint of this host has or that are held. If
// that fails, the Fabric finds out later that they have no owner, and releases them (Holds).
func ReleaseUnused(y *book.Book, n modes.Network, addrs ...netip.Addr) error {
	if len(addrs) == 0 || !Claims(y, n.Mode) || y.Config.Fabric == nil {
		return nil
	}
	var errs []error
	for _, a := range addrs {
		taken, err := claimed(y, n.ID, a)
		if err == nil && !taken {
			err = y.Config.Fabric.Release(Of(y, n), a)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// claimed reports whether an endpoint of this host has an address of a network, or it is held.
func claimed(y *book.Book, network string, a netip.Addr) (taken bool, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		taken, err = book.Claimed(tx, network, a)
		return err
	})
	return taken, err
}

// ReleaseOf releases the addresses of an endpoint that came by CNI. Those of others are released when their engine asks
// for it.
func ReleaseOf(y *book.Book, n modes.Network, e modes.Endpoint) error {
	if e.Attachment == "" {
		return nil
	}
	var addrs []netip.Addr
	for _, p := range e.Addrs {
		addrs = append(addrs, p.Addr())
	}
	return ReleaseUnused(y, n, addrs...)
}

// HasAddress reports whether an endpoint of this host has an address of an overlay, or it is held for a stopped
// container.
func HasAddress(y *book.Book, overlay string, a netip.Addr) bool {
	ns, err := y.Networks()
	if err != nil {
		return true // if in doubt, the address is not released
	}
	for _, n := range ns {
		if Claims(y, n.Mode) && Of(y, n).ID == overlay {
			taken, err := claimed(y, n.ID, a)
			return taken || err != nil
		}
	}
	return false
}

// RoomInCluster returns why an overlay has no free address for the next container; nil if it has one of each family.
func RoomInCluster(y *book.Book, n modes.Network) error {
	if y.Config.Fabric == nil {
		return fmt.Errorf("network %s: %w", book.Label(n), modes.ErrNoCluster)
	}
	for _, group := range book.ByFamily(n) {
		if err := y.Config.Fabric.CheckRoom(Of(y, n), group[0].Addr().Is6()); err != nil {
			return err
		}
	}
	return nil
}

// NameInCluster announces the names of an endpoint in the cluster.
func NameInCluster(h *book.Held) error {
	y := h.Book
	if !Claims(y, h.Network.Mode) || y.Config.Fabric == nil {
		return nil
	}
	return y.Config.Fabric.Name(Of(y, h.Network), h.Endpoint)
}

// Overlay returns the overlay that a network is; ok is false if it is none.
func Overlay(y *book.Book, n modes.Network) (o modes.Overlay, ok bool) {
	if !Claims(y, n.Mode) {
		return o, false
	}
	return Of(y, n), true
}
