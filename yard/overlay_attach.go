package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
)

// An allotment is what an attachment is to have on a network of a cluster. It is claimed before anything is recorded: that may take a while.
type allotment struct {
	addrs []netip.Prefix
	// had are those of them that the attachment has already, spare what it has besides and is to give up.
	had, spare []netip.Addr
}

// grantAll claims the addresses of an attachment: of each family the one that was asked for, the one it has, or any.
func (y *Yard) grantAll(ctx context.Context, r AttachRequest, owner string) (a allotment, err error) {
	n, err := y.Network(r.NetworkID)
	if err != nil || !y.Claims(n.Mode) {
		return a, err
	}
	if y.c.Fabric == nil {
		return a, fmt.Errorf("network %s: %w", label(n), modes.ErrNoCluster)
	}
	for _, asked := range r.Addrs {
		if !slices.ContainsFunc(n.Subnets, func(s modes.Subnet) bool { return s.Pool.Contains(asked) }) {
			return a, fmt.Errorf("address %s: network %s has no subnet for it", asked, label(n))
		}
	}
	kept, err := y.had(r)
	if err != nil {
		return a, err
	}
	for _, group := range byFamily(n) {
		v6 := group[0].Addr().Is6()
		of := func(addrs []netip.Addr) (one netip.Addr) {
			if at := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == v6 }); at >= 0 {
				one = addrs[at]
			}
			return one
		}
		asked, got := of(r.Addrs), of(kept)
		if got.IsValid() && (!asked.IsValid() || asked == got) {
			a.had = append(a.had, got)
		} else if got, err = y.c.Fabric.Grant(ctx, y.overlay(n), owner, asked, v6); err != nil {
			return a, err
		}
		for _, p := range group {
			if p.Contains(got) {
				a.addrs = append(a.addrs, netip.PrefixFrom(got, p.Bits()))
			}
		}
	}
	a.spare = slices.DeleteFunc(kept, func(k netip.Addr) bool { return slices.Contains(a.had, k) })
	return a, nil
}

// had are the addresses that the attachment has, or that are held for it. The container's lock keeps others off them.
func (y *Yard) had(r AttachRequest) (addrs []netip.Addr, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		h, err := holds.Get(tx, attachmentKey(r.Attachment, r.NetworkID, r.IfName))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		e, err := getAttachment(tx, r.Attachment, r.NetworkID, r.IfName)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		for _, p := range slices.Concat(h.Addrs, e.Addrs) {
			if taken, err := claimed(tx, r.NetworkID, p.Addr()); err == nil && taken && !slices.Contains(addrs, p.Addr()) {
				addrs = append(addrs, p.Addr())
			}
		}
		return nil
	})
	return addrs, err
}

// takeGranted is what an attachment gets that was allotted to it, kept being what it turned out to have.
func takeGranted(n modes.Network, r AttachRequest, kept []netip.Addr) ([]netip.Prefix, error) {
	for _, a := range r.allotted.had {
		if !slices.Contains(kept, a) {
			return nil, fmt.Errorf("network %s: address %s was given up just now; try again", label(n), a)
		}
	}
	return r.allotted.addrs, nil
}

// ungrant gives back what was allotted to an attachment that came to nothing.
func (y *Yard) ungrant(r AttachRequest) error {
	if len(r.allotted.addrs) == 0 {
		return nil
	}
	n, err := y.Network(r.NetworkID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var fresh []netip.Addr
	for _, p := range r.allotted.addrs {
		if !slices.Contains(r.allotted.had, p.Addr()) {
			fresh = append(fresh, p.Addr())
		}
	}
	return y.giveUp(n, fresh...)
}

// giveUp gives addresses of a cluster's network back that nobody of this host has, and nothing is held for. Should it not come to that,
// the Fabric sees after a while that nobody has them (Holds).
func (y *Yard) giveUp(n modes.Network, addrs ...netip.Addr) error {
	if len(addrs) == 0 || !y.Claims(n.Mode) || y.c.Fabric == nil {
		return nil
	}
	var errs []error
	for _, a := range addrs {
		taken, err := y.claimed(n.ID, a)
		if err == nil && !taken {
			err = y.c.Fabric.Release(y.overlay(n), a)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (y *Yard) claimed(network string, a netip.Addr) (taken bool, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		taken, err = claimed(tx, network, a)
		return err
	})
	return taken, err
}

// giveUpOf gives back what an endpoint had that came by CNI; of others an engine says when.
func (y *Yard) giveUpOf(n modes.Network, e modes.Endpoint) error {
	if e.Attachment == "" {
		return nil
	}
	var addrs []netip.Addr
	for _, p := range e.Addrs {
		addrs = append(addrs, p.Addr())
	}
	return y.giveUp(n, addrs...)
}

// Holds says whether an endpoint of this host has an address of a cluster's network, or it is held for a container that is stopped.
func (y *Yard) Holds(overlay string, a netip.Addr) bool {
	ns, err := y.Networks()
	if err != nil {
		return true // better kept for longer
	}
	for _, n := range ns {
		if y.Claims(n.Mode) && y.overlay(n).ID == overlay {
			taken, err := y.claimed(n.ID, a)
			return taken || err != nil
		}
	}
	return false
}

// roomInCluster says why a network could not give the next container its addresses.
func (y *Yard) roomInCluster(n modes.Network) error {
	if y.c.Fabric == nil {
		return fmt.Errorf("network %s: %w", label(n), modes.ErrNoCluster)
	}
	for _, group := range byFamily(n) {
		if err := y.c.Fabric.Room(y.overlay(n), group[0].Addr().Is6()); err != nil {
			return err
		}
	}
	return nil
}

// nameInCluster tells the cluster how an endpoint is called.
func (y *Yard) nameInCluster(network, id string) error {
	n, err := y.Network(network)
	if err != nil || !y.Claims(n.Mode) || y.c.Fabric == nil {
		return err
	}
	e, err := y.Endpoint(network, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return y.c.Fabric.Name(y.overlay(n), e)
}

// Overlay is the network of the cluster that a network is; ok is false when it is none.
func (y *Yard) Overlay(n modes.Network) (o modes.Overlay, ok bool) {
	if !y.Claims(n.Mode) {
		return o, false
	}
	return y.overlay(n), true
}
