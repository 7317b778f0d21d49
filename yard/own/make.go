// Package own creates and removes networks that belong to no engine.
package own

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/lease"
	"netyard/yard/overlay"
	"netyard/yard/pool"
)

// networkName matches the names that CNI allows for a network (CNI 1.1.0, section 1), which every engine accepts.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// CreateNetwork creates a network that belongs to no engine, with pools of netyard's IPAM. No other network may have
// its name. If one with the same ID and configuration exists already, MakeNetwork succeeds.
func CreateNetwork(ctx context.Context, y *yard.Yard, r book.NetworkRequest) (n modes.Network, err error) {
	if !networkName.MatchString(r.Name) {
		return n, modes.Refuse("name %q: want letters, digits, dots, dashes and underscores, a letter or digit first",
			r.Name)
	}
	n = modes.Network{ID: r.ID, Name: r.Name, Engine: book.Own, Internal: r.Internal, IPv6: r.IPv6}
	if n.Mode, n.Options, err = y.Resolve(r.Mode, r.Options); err != nil {
		return n, err
	}
	if _, err := y.Mode(n.Mode); err != nil {
		return n, err
	}
	if overlay.Claims(y.Book, n.Mode) && n.Options[overlay.Option] == "" {
		n.Options[overlay.Option] = n.Name
	}
	if n.ID == "" {
		n.ID = book.RandomID()
	}
	release, err := y.Locks.Hold(ctx, "name "+n.Name, false)
	if err != nil {
		return n, err
	}
	defer release()
	named, err := NetworksNamed(y, n.Name)
	if err != nil {
		return n, err
	}
	switch at := slices.IndexFunc(named, func(o modes.Network) bool { return o.ID == n.ID }); {
	case at < 0 && len(named) > 0:
		return named[0], fmt.Errorf("network %s: %w", n.Name, book.ErrExists)
	case at >= 0 && named[at].Phase == modes.Ready && matches(y, named[at], n, r):
		return named[at], nil
	case at >= 0:
		grown, done, growErr := grow(ctx, y, named[at], n, r)
		if done {
			return grown, nil
		}
		if err := y.DeleteNetwork(ctx, n.ID); err != nil {
			err = errors.Join(err, growErr)
			return named[at], fmt.Errorf("network %s already exists with a different configuration: %w", n.Name, err)
		}
	}
	if err := makeNew(ctx, y, n, r); err != nil {
		return n, err
	}
	if n, err = y.Network(n.ID); err == nil {
		y.PutCopy(n)
	}
	return n, err
}

// makeNew creates a network that does not exist.
func makeNew(ctx context.Context, y *yard.Yard, n modes.Network, r book.NetworkRequest) (err error) {
	if overlay.Claims(y.Book, n.Mode) {
		if err := overlay.AdoptOverlay(ctx, y.Book, &n, r); err != nil {
			return err
		}
		return y.CreateNetwork(ctx, n)
	}
	if n.Subnets, err = requestPools(ctx, y, n, r); err != nil {
		return err
	}
	if n.DHCP, err = lease.TakeDHCP(ctx, y.Book, r); err != nil {
		return errors.Join(err, releasePools(y, n.Subnets))
	}
	if err := y.CreateNetwork(ctx, n); err != nil {
		return errors.Join(err, releasePools(y, n.Subnets), lease.ReleaseDHCPPools(y.Book, n.DHCP))
	}
	return nil
}

// NetworkNamed finds the only network with this name or full ID.
func NetworkNamed(y *yard.Yard, name string) (modes.Network, error) {
	ns, err := NetworksNamed(y, name)
	switch {
	case err != nil:
		return modes.Network{}, err
	case len(ns) == 1:
		return ns[0], nil
	case len(ns) == 0:
		return modes.Network{}, fmt.Errorf("network %q: %w", name, book.ErrNotFound)
	}
	return modes.Network{}, fmt.Errorf("network %q: %d networks have this name, of %s and %s; use the network's ID",
		name, len(ns), ns[0].Engine, ns[1].Engine)
}

// NetworksNamed finds all networks with this name, or the one with this full ID. Two engines may each have a network of
// the same name, and Docker alone may have several.
func NetworksNamed(y *yard.Yard, name string) ([]modes.Network, error) {
	ns, err := y.Networks()
	if at := slices.IndexFunc(ns, func(n modes.Network) bool { return n.ID == name }); at >= 0 {
		return ns[at : at+1], err
	}
	return slices.DeleteFunc(ns, func(n modes.Network) bool { return n.Name != name }), err
}

// matches reports whether a network has the requested configuration, as far as the request specifies it.
func matches(y *yard.Yard, old, n modes.Network, r book.NetworkRequest) bool {
	if overlay.Claims(y.Book, n.Mode) {
		return old.Mode == n.Mode && maps.Equal(old.Options, n.Options) && r.DHCP == nil && overlay.IsOverlayAs(old, r)
	}
	if old.Mode != n.Mode || old.Internal != n.Internal || !maps.Equal(old.Options, n.Options) ||
		(r.DHCP != nil) != (len(old.DHCP) > 0) {
		return false
	}
	if len(r.Subnets) == 0 {
		return r.NoSubnets == (len(old.Subnets) == 0)
	}
	return slices.EqualFunc(old.Subnets, r.Subnets, func(s modes.Subnet, w book.SubnetRequest) bool {
		w.NoGateway = needsNoGateway(y, n, w)
		return s.Pool == w.Pool.Subnet && s.Gateway.IsValid() != w.NoGateway &&
			(w.NoGateway || !w.Gateway.IsValid() || s.Gateway.Addr() == w.Gateway) &&
			hasBounds(y, old, s.Pool, w.Pool) &&
			maps.EqualFunc(s.Aux, w.Aux, func(p netip.Prefix, a netip.Addr) bool { return p.Addr() == a })
	})
}

// grow adds the requested subnets that a network lacks. done: it then has the requested configuration.
func grow(
	ctx context.Context, y *yard.Yard, old, n modes.Network, r book.NetworkRequest,
) (grown modes.Network, done bool, err error) {
	if !r.Grow || old.Phase != modes.Ready {
		return old, false, nil
	}
	common, part, lacks := old, r, r // the subnets that both have, and those that the network lacks
	common.Subnets, part.Subnets, lacks.Subnets = nil, nil, nil
	for _, w := range r.Subnets {
		at := slices.IndexFunc(old.Subnets, func(s modes.Subnet) bool { return s.Pool == w.Pool.Subnet })
		if at < 0 {
			lacks.Subnets = append(lacks.Subnets, w)
			continue
		}
		common.Subnets, part.Subnets = append(common.Subnets, old.Subnets[at]), append(part.Subnets, w)
	}
	part.NoSubnets = len(part.Subnets) == 0
	if !matches(y, common, n, part) {
		return old, false, nil
	}
	if len(lacks.Subnets) == 0 {
		return old, true, nil
	}
	subnets, err := requestPools(ctx, y, n, lacks)
	if err != nil || len(subnets) == 0 {
		return old, err == nil, err
	}
	if grown, err = y.AddSubnets(ctx, old.ID, subnets); err != nil {
		return old, false, errors.Join(err, releasePools(y, subnets))
	}
	y.PutCopy(grown)
	return grown, true, nil
}

// hasBounds reports whether a subnet's pool has the requested range, first and last address.
func hasBounds(y *yard.Yard, n modes.Network, subnet netip.Prefix, w ipam.PoolRequest) bool {
	same := false
	err := y.Config.Store.View(func(tx store.Tx) error {
		p, err := y.Config.IPAM.PoolOf(tx, subnet, n.ID)
		same = p.Range == w.Range && p.First == w.First && p.Last == w.Last
		return err
	})
	return err == nil && same
}

// requestPools requests a new network's subnets and gateways from the IPAM. If one fails, it releases the others.
func requestPools(
	ctx context.Context, y *yard.Yard, n modes.Network, r book.NetworkRequest,
) (subnets []modes.Subnet, err error) {
	if r.NoSubnets || y.Addressless(n.Mode) {
		return nil, nil
	}
	wanted := r.Subnets
	for _, v6 := range []bool{false, true} {
		given := slices.ContainsFunc(wanted, func(s book.SubnetRequest) bool {
			return s.Pool.Subnet.Addr().Is6() == v6
		})
		if !given && (v6 && r.IPv6 || !v6 && len(r.Subnets) == 0) {
			wanted = append(slices.Clone(wanted), book.SubnetRequest{Pool: ipam.PoolRequest{V6: v6}})
		}
	}
	for _, w := range wanted {
		w.NoGateway = needsNoGateway(y, n, w)
		s, err := requestPool(ctx, y, n, w)
		if s.Pool.IsValid() {
			subnets = append(subnets, s)
		}
		if err != nil {
			return nil, errors.Join(err, releasePools(y, subnets))
		}
	}
	return subnets, nil
}

// needsNoGateway reports whether the host gets no address in a subnet.
func needsNoGateway(y *yard.Yard, n modes.Network, w book.SubnetRequest) bool {
	v4, v6 := y.Gatewayless(n)
	return w.NoGateway || !w.Gateway.IsValid() && (modes.Families{V4: v4, V6: v6}).Has(familyOf(w))
}

// familyOf returns the unspecified address of a subnet's family.
func familyOf(w book.SubnetRequest) netip.Addr {
	if w.Pool.Subnet.Addr().Is6() || w.Pool.V6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// requestPool requests a subnet and its auxiliary and gateway addresses from the IPAM.
func requestPool(ctx context.Context, y *yard.Yard, n modes.Network, w book.SubnetRequest) (s modes.Subnet, err error) {
	if p := n.Options[book.OptParent]; p != "" && w.Pool.Domain == "" { // another parent may have the same subnet
		w.Pool.Domain = p
	}
	p, err := pool.RequestPool(ctx, y, w.Pool)
	if err != nil {
		return s, err
	}
	s = modes.Subnet{Pool: p.Subnet, Space: book.Space}
	for _, name := range slices.Sorted(maps.Keys(w.Aux)) { // before the gateway, which may be any address that is left
		if a := w.Aux[name]; a == w.Gateway {
			return s, modes.Refuse("aux-address %s=%s: it is the gateway", name, a)
		}
		kept, err := pool.RequestAddress(ctx, y, ipam.AddressRequest{Pool: p.ID, Addr: w.Aux[name]})
		if err != nil {
			return s, modes.Refuse("aux-address %s: %w", name, err)
		}
		if s.Aux == nil {
			s.Aux = map[string]netip.Prefix{}
		}
		s.Aux[name] = kept
	}
	if w.NoGateway && !w.Gateway.IsValid() {
		return s, nil
	}
	gw, err := pool.RequestAddress(ctx, y, ipam.AddressRequest{Pool: p.ID, Addr: w.Gateway, Gateway: true})
	if !w.NoGateway {
		s.Gateway = gw
	}
	return s, err
}

// releasePools releases the pools of a network that could not be created.
func releasePools(y *yard.Yard, subnets []modes.Subnet) error {
	return y.Update("pool released", func(tx store.Tx) error {
		var errs []error
		for _, s := range subnets {
			if p, err := y.Config.IPAM.PoolOf(tx, s.Pool, ""); err == nil {
				errs = append(errs, y.Config.IPAM.ReleasePool(tx, p.ID))
			}
		}
		return errors.Join(errs...)
	})
}

// RemoveNetwork removes a network that MakeNetwork created. It refuses one that containers are attached to.
func RemoveNetwork(ctx context.Context, y *yard.Yard, ref string) (modes.Network, error) {
	n, err := y.FindNetwork(ref)
	if err != nil {
		return n, err
	}
	if n.Engine != book.Own {
		return n, fmt.Errorf("network %s belongs to %s, which must remove it: %s network rm %s",
			book.Label(n), n.Engine, n.Engine, book.Label(n))
	}
	return n, y.DeleteNetwork(ctx, n.ID)
}
