package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/overlay"
)

// own is netyard's own IPAM. It takes no time, so it gives the addresses in the transaction that records the endpoint.
type own struct {
	y       *book.Book
	request book.AttachRequest
	// not are the host's own addresses, which the endpoint cannot have.
	not []netip.Addr
}

// Acquire finds out which addresses the endpoint cannot have.
func (s *own) Acquire(context.Context) error {
	host, err := HostAddrs(s.y, s.request.Network)
	for _, asked := range s.request.Addrs {
		if link, own := host[asked]; own {
			return hostsOwn(link, asked)
		}
	}
	s.not = slices.Collect(maps.Keys(host))
	return err
}

// Release does nothing: what Keep did is undone with its transaction.
func (*own) Release(bool) error { return nil }

// Keep gives the endpoint an address from each group of pools, and releases those that its attachment had and the
// endpoint does not get.
func (s *own) Keep(tx store.Tx, had []netip.Addr, e *modes.Endpoint) error {
	groups := s.request.Pools
	if groups == nil {
		groups = book.ByFamily(s.request.Network)
	}
	for _, group := range groups {
		a, err := s.choose(tx, group, had, *e)
		if errors.Is(err, ipam.ErrTaken) || errors.Is(err, ipam.ErrExhausted) {
			return book.WithHolders(tx, s.request, err)
		}
		if err != nil {
			return err
		}
		e.Addrs = append(e.Addrs, a)
	}
	for _, a := range had {
		if !has(*e, a) {
			if err := ReleaseAddress(s.y, tx, s.request.Network, a, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// choose chooses the address that an attachment gets from one group of pools: the requested one, the one that it had,
// or the next free one. e has those that it got from the groups before.
func (s *own) choose(
	tx store.Tx, group []netip.Prefix, had []netip.Addr, e modes.Endpoint,
) (a netip.Prefix, err error) {
	r := s.request
	name := r.Container.Name
	if name == "" {
		name = r.Attachment
	}
	in := func(addrs []netip.Addr) (netip.Addr, netip.Prefix, bool) {
		for _, a := range addrs {
			for _, p := range group {
				if p.Contains(a) && !has(e, a) {
					return a, p, true
				}
			}
		}
		return netip.Addr{}, netip.Prefix{}, false
	}
	before, of, again := in(had)
	again = again && !slices.Contains(s.not, before)
	if asked, p, ok := in(r.Addrs); ok && (!again || asked != before) {
		pool, err := s.y.Config.IPAM.PoolOf(tx, p, r.Network.ID)
		if err != nil {
			return a, err
		}
		return s.y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Addr: asked, Name: name})
	}
	if again {
		return netip.PrefixFrom(before, of.Bits()), nil
	}
	err = ipam.ErrExhausted
	for _, p := range group {
		pool, poolErr := s.y.Config.IPAM.PoolOf(tx, p, r.Network.ID)
		if poolErr != nil {
			return a, poolErr
		}
		a, err = s.y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Name: name, Not: s.not})
		if !errors.Is(err, ipam.ErrExhausted) {
			break
		}
	}
	return a, err
}

// shareable refuses attachments to a network whose addresses another IPAM allots: it could not know of theirs.
func shareable(n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space && s.Space != book.DHCPSpace && s.Space != overlay.Space {
			return fmt.Errorf("network %s: the addresses of %s are managed by %s's own IPAM; "+
				"only networks created with --ipam-driver netyard can be shared",
				book.Label(n), s.Pool, n.Engine)
		}
	}
	return nil
}

// errTried rolls back a trial transaction.
var errTried = errors.New("trial only")

// Room returns why a network could not give the next container its addresses; nil: it could.
func Room(ctx context.Context, y *book.Book, network string) error {
	n, err := y.Network(network)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready {
		return fmt.Errorf("network %s is being created or deleted", book.Label(n))
	}
	if overlay.Claims(y, n.Mode) {
		return overlay.RoomInCluster(y, n)
	}
	if err := shareable(n); err != nil {
		return err
	}
	s := own{y: y, request: book.AttachRequest{Network: n, Attachment: "-"}}
	if err := s.Acquire(ctx); err != nil {
		return err
	}
	err = y.Config.Store.Update(func(tx store.Tx) error {
		if err := s.Keep(tx, nil, &modes.Endpoint{}); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}
