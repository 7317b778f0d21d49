package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/overlay"
	"netyard/yard/pool"
)

// inherit returns the addresses that the attachment had before, from its hold or its former endpoint. It records that
// endpoint as deleting.
func (t *attaching) inherit(y *yard.Yard, tx store.Tx) (kept []netip.Addr, err error) {
	r := t.request
	h, _, err := book.EndHold(tx, r.Attachment, r.Network.ID, r.IfName)
	if err != nil {
		return nil, err
	}
	had := h.Addrs
	if t.former != nil {
		old := t.former.Endpoint
		old.Phase, old.Turned = modes.Deleting, y.Config.Now()
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

// allot chooses the addresses of an attachment. It gets one from each group of pools: the requested one, the one it had
// before, or the next free one.
func allot(
	y *yard.Yard, tx store.Tx, r book.AttachRequest, kept []netip.Addr,
) (addrs []netip.Prefix, err error) {
	n, groups := r.Network, r.Pools
	if groups == nil {
		groups = book.ByFamily(n)
	}
	if err := ownPools(n); err != nil {
		return nil, err
	}
	if overlay.Claims(y.Book, n.Mode) {
		return overlay.AssignGranted(r, kept)
	}
	addrs = append(addrs, r.Leased...)
	for _, group := range groups {
		a, err := allotOne(y, tx, r, group, kept)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	for _, a := range r.Addrs {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return nil, fmt.Errorf("address %s: network %s has no subnet for it", a, book.Label(n))
		}
	}
	for _, a := range kept {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			if err := y.ReleaseLease(tx, n, a, true); err != nil {
				return nil, err
			}
		}
	}
	return addrs, nil
}

// ownPools refuses a network whose addresses another IPAM allots: it could not know of those that are allotted here.
func ownPools(n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space && s.Space != book.DHCPSpace && s.Space != overlay.Space {
			return fmt.Errorf("network %s: the addresses of %s are allotted by %s's own IPAM; "+
				"only a network that was created with --ipam-driver netyard can be shared",
				book.Label(n), s.Pool, n.Engine)
		}
	}
	return nil
}

// Shareable returns why containers cannot be attached to a network by CNI; nil: they can.
func Shareable(n modes.Network) error { return ownPools(n) }

// allotOne chooses the address that an attachment gets from one group of pools.
func allotOne(
	y *yard.Yard, tx store.Tx, r book.AttachRequest, group []netip.Prefix, kept []netip.Addr,
) (a netip.Prefix, err error) {
	n, name := r.Network, r.Container.Name
	if name == "" {
		name = r.Attachment
	}
	in := func(addrs []netip.Addr) (netip.Addr, netip.Prefix, bool) {
		for _, a := range addrs {
			for _, p := range group {
				if p.Contains(a) {
					return a, p, true
				}
			}
		}
		return netip.Addr{}, netip.Prefix{}, false
	}
	had, of, again := in(kept)
	if asked, p, ok := in(r.Addrs); ok && (!again || asked != had) {
		pool, err := y.Config.IPAM.PoolOf(tx, p, n.ID)
		if err != nil {
			return a, err
		}
		return y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Addr: asked, Name: name})
	}
	if again {
		return netip.PrefixFrom(had, of.Bits()), nil
	}
	err = ipam.ErrExhausted
	for _, p := range group {
		pool, poolErr := y.Config.IPAM.PoolOf(tx, p, n.ID)
		if poolErr != nil {
			return a, poolErr
		}
		a, err = y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Name: name})
		if !errors.Is(err, ipam.ErrExhausted) {
			break
		}
	}
	return a, err
}

// withHolders adds to the cause why addresses could not be allotted the endpoints that have them.
func withHolders(tx store.Tx, r book.AttachRequest, cause error) error {
	held, err := pool.HoldersOf(tx, r.Network.ID, cause, r.Addrs...)
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// errTried rolls back a trial transaction.
var errTried = errors.New("trial only")

// Room returns why a network could not give the next container its addresses; nil: it could.
func Room(y *yard.Yard, network string) error {
	n, err := y.Network(network)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready {
		return fmt.Errorf("network %s is being created or deleted", book.Label(n))
	}
	if overlay.Claims(y.Book, n.Mode) {
		return overlay.RoomInCluster(y.Book, n)
	}
	err = y.Config.Store.Update(func(tx store.Tx) error {
		if _, err := allot(y, tx, book.AttachRequest{Network: n, Attachment: "-"}, nil); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}
