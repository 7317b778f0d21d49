package yard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// inherit returns the addresses that the attachment had, and the endpoint that had them, which is to go.
func (y *Yard) inherit(tx store.Tx, r AttachRequest) (kept []netip.Addr, former string, err error) {
	addrs := func(ps []netip.Prefix) {
		for _, p := range ps {
			kept = append(kept, p.Addr())
		}
	}
	h, found, err := takeHold(tx, r.Attachment, r.NetworkID, r.IfName)
	if err != nil {
		return nil, "", err
	}
	if found {
		addrs(h.Addrs)
	}
	old, err := getAttachment(tx, r.Attachment, r.NetworkID, r.IfName)
	if errors.Is(err, ErrNotFound) {
		return kept, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	addrs(old.Addrs)
	old.Phase, old.Turned = modes.Deleting, y.c.Now()
	return kept, old.ID, putEndpoint(tx, old)
}

// allot chooses the addresses of an attachment: one of each group, the one that was asked for, the one it had, or the
// next free one.
func (y *Yard) allot(tx store.Tx, n modes.Network, r AttachRequest, kept []netip.Addr) (addrs []netip.Prefix, err error) {
	groups := r.Pools
	if groups == nil {
		groups = byFamily(n)
	}
	if err := ownPools(n); err != nil {
		return nil, err
	}
	if y.Claims(n.Mode) {
		return takeGranted(n, r, kept)
	}
	addrs = append(addrs, r.leased...)
	for _, group := range groups {
		a, err := y.allotOne(tx, n, r, group, kept)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	for _, a := range r.Addrs {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return nil, fmt.Errorf("address %s: network %s has no subnet for it", a, label(n))
		}
	}
	for _, a := range kept {
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			if err := y.releaseLease(tx, n, a, true); err != nil {
				return nil, err
			}
		}
	}
	return addrs, nil
}

// byFamily are the subnets of a network, those of IPv4 and those of IPv6: a container gets an address of each.
func byFamily(n modes.Network) (groups [][]netip.Prefix) {
	for _, v4 := range []bool{true, false} {
		var group []netip.Prefix
		for _, s := range n.Subnets {
			if s.Pool.Addr().Is4() == v4 && s.Space != DHCPSpace {
				group = append(group, s.Pool)
			}
		}
		if group != nil {
			groups = append(groups, group)
		}
	}
	return groups
}

// ownPools refuses a network whose addresses another IPAM hands out: nobody could tell it of those that are given here.
func ownPools(n modes.Network) error {
	for _, s := range n.Subnets {
		if s.Space != Space && s.Space != DHCPSpace && s.Space != OverlaySpace {
			return fmt.Errorf("network %s: the addresses of %s are given by %s's own IPAM; only a network that was created with --ipam-driver netyard can be shared",
				label(n), s.Pool, n.Engine)
		}
	}
	return nil
}

// Shareable says why containers cannot be attached to a network by CNI; nil when they can.
func Shareable(n modes.Network) error { return ownPools(n) }

func (y *Yard) allotOne(tx store.Tx, n modes.Network, r AttachRequest, group []netip.Prefix, kept []netip.Addr) (a netip.Prefix, err error) {
	name := r.Container.Name
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
		pool, err := y.c.IPAM.PoolOf(tx, p, n.ID)
		if err != nil {
			return a, err
		}
		return y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Addr: asked, Name: name})
	}
	if again {
		return netip.PrefixFrom(had, of.Bits()), nil
	}
	err = ipam.ErrExhausted
	for _, p := range group {
		pool, poolErr := y.c.IPAM.PoolOf(tx, p, n.ID)
		if poolErr != nil {
			return a, poolErr
		}
		if a, err = y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: pool.ID, Name: name}); !errors.Is(err, ipam.ErrExhausted) {
			break
		}
	}
	return a, err
}

// heldAllotment says of addresses that could not be allotted who has them.
func heldAllotment(tx store.Tx, r AttachRequest, cause error) error {
	held, err := holdersOf(tx, r.NetworkID, cause, r.Addrs...)
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// errTried undoes what was only tried.
var errTried = errors.New("only tried")

// Room says why a network could not give the next container its addresses; nil when it could.
func (y *Yard) Room(network string) error {
	n, err := y.Network(network)
	if err != nil {
		return err
	}
	if n.Phase != modes.Ready {
		return fmt.Errorf("network %s is being created or deleted", label(n))
	}
	if y.Claims(n.Mode) {
		return y.roomInCluster(n)
	}
	err = y.c.Store.Update(func(tx store.Tx) error {
		if _, err := y.allot(tx, n, AttachRequest{NetworkID: n.ID, Attachment: "-"}, nil); err != nil {
			return err
		}
		return errTried
	})
	if errors.Is(err, errTried) {
		return nil
	}
	return err
}
