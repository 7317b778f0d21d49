// Package overlay is a host's part of networks that are in a cluster: addresses claimed, networks adopted.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// OverlaySpace is the address space of networks that are on several hosts: their addresses are claimed in a cluster.
const OverlaySpace = "netyard-overlay"

// overlayPrefix begins the names of pools of a cluster's; they go on with the network's name there, and the subnet. So
// a pool says all that there is to know of it, and is in no file.
const overlayPrefix = "overlay-"

// OptOverlay names a network in the cluster.
const OptOverlay = "overlay"

// An Pool is a subnet of a network of a cluster, as an engine's pool.
type Pool struct {
	ID     string
	Subnet netip.Prefix
	// Gateway is the network's; invalid while there is no such network: then it is the engine's to say.
	Gateway netip.Prefix
}

// IsOverlay says whether a pool is one of an overlay network.
func IsOverlay(pool string) bool { return strings.HasPrefix(pool, overlayPrefix) }

// PoolID is the id of an overlay network's pool.
func PoolID(name string, subnet netip.Prefix) string {
	return overlayPrefix + name + "@" + subnet.String()
}

// ParseOverlayPool takes such a name apart.
func ParseOverlayPool(id string) (name string, subnet netip.Prefix, err error) {
	name, text, ok := strings.Cut(strings.TrimPrefix(id, overlayPrefix), "@")
	subnet, err = netip.ParsePrefix(text)
	if !ok || err != nil {
		return "", subnet, fmt.Errorf("pool %q is not one of an overlay", id)
	}
	return name, subnet, nil
}

// Claims says whether the addresses of a mode's networks are a cluster's.
func Claims(y *book.Book, mode string) bool {
	return y.Traits(modes.Network{Mode: mode}).Cluster != nil
}

// ParseOverlay reads --ipam-opt; ok is false when it does not ask for a cluster's network. always: it has to.
func ParseOverlay(always bool, ipRange string, opts map[string]string) (name string, ok bool, err error) {
	name, said := opts[OptOverlay]
	switch {
	case !said && !always:
		return "", false, nil
	case !said || name == "":
		return "", false, fmt.Errorf("%w: overlay: say the network's name in the cluster, as --ipam-opt overlay=blue", modes.ErrOption)
	case ipRange != "":
		return "", false, fmt.Errorf("ip-range %s: on an overlay the hosts take addresses of the whole subnet", ipRange)
	}
	for key := range opts {
		if key != OptOverlay {
			return "", false, fmt.Errorf("%w: unknown --ipam-opt %s beside overlay", modes.ErrOption, key)
		}
	}
	return name, true, nil
}

// RequestOverlayPool is the subnet of a network of the cluster: the one that it has, or, if it is not there yet, the
// one that is named.
func RequestOverlayPool(ctx context.Context, y *book.Book, name, subnet string, v6 bool) (p Pool, err error) {
	if y.Config.Fabric == nil {
		return p, fmt.Errorf("overlay=%s: %w", name, modes.ErrNoCluster)
	}
	var want netip.Prefix
	if subnet != "" {
		if want, err = netip.ParsePrefix(subnet); err != nil {
			return p, fmt.Errorf("subnet %q: %w", subnet, err)
		}
		want, v6 = want.Masked(), want.Addr().Is6()
	}
	o, err := y.Config.Fabric.Find(ctx, modes.Overlay{Name: name})
	if errors.Is(err, modes.ErrNoOverlay) && want.IsValid() {
		return Pool{ID: PoolID(name, want), Subnet: want}, nil
	}
	if errors.Is(err, modes.ErrNoOverlay) {
		return p, fmt.Errorf("overlay=%s: it is not in the cluster yet, so the first of its hosts has to say its --subnet", name)
	}
	if err != nil {
		return p, err
	}
	var has []netip.Prefix
	for _, s := range o.Subnets {
		if s.Pool.Addr().Is6() != v6 {
			continue
		}
		has = append(has, s.Pool)
		if !want.IsValid() || want == s.Pool {
			return Pool{ID: PoolID(name, s.Pool), Subnet: s.Pool, Gateway: s.Gateway}, nil
		}
	}
	if len(has) == 0 {
		return p, fmt.Errorf("overlay=%s: in the cluster it has no subnet of that family", name)
	}
	return p, otherSubnet(name, want, has)
}

// otherSubnet refuses a subnet that the cluster's network has not.
func otherSubnet(name string, want netip.Prefix, has []netip.Prefix) error {
	return fmt.Errorf("overlay=%s: subnet %s is to be it, and in the cluster it has %s", name, want, listed(has))
}

// otherGateway refuses another gateway than the cluster's network has.
func otherGateway(name string, want netip.Addr, has modes.Subnet) error {
	return fmt.Errorf("overlay=%s: gateway %s is to be it, and in the cluster it has %s", name, want, has.Gateway.Addr())
}

// overlayOf is the network of this host that is one of the cluster's.
func overlayOf(y *book.Book, name string) (modes.Network, bool, error) {
	ns, err := y.Networks()
	for _, n := range ns {
		if IsOverlayNamed(y, n, name) {
			return n, true, err
		}
	}
	return modes.Network{}, false, err
}

// IsOverlayNamed says whether a network is the overlay network of a name.
func IsOverlayNamed(y *book.Book, n modes.Network, name string) bool {
	return Claims(y, n.Mode) && n.Given(OptOverlay) == name && n.Phase == modes.Ready
}

// RequestClaim is an address of a cluster's network. The gateway's is asked for before the network is there, and
// nobody's own.
func RequestClaim(ctx context.Context, y *book.Book, r ipam.AddressRequest) (a netip.Prefix, err error) {
	name, subnet, err := ParseOverlayPool(r.Pool)
	if err != nil {
		return a, err
	}
	if y.Config.Fabric == nil {
		return a, fmt.Errorf("overlay=%s: %w", name, modes.ErrNoCluster)
	}
	if r.Addr.IsValid() && !subnet.Contains(r.Addr) {
		return a, fmt.Errorf("address %s is not in subnet %s", r.Addr, subnet)
	}
	n, here, err := overlayOf(y, name)
	if err != nil {
		return a, err
	}
	if r.Gateway {
		return overlayGateway(ctx, y, name, subnet, r.Addr)
	}
	if !here {
		return a, fmt.Errorf("overlay=%s: no network of this host is that", name)
	}
	// Nobody knows yet who it is for. The engine does not choose the hardware address: that follows from the address,
	// so that neighbours who know it need not learn anything when the address moves to another host.
	granted, err := y.Config.Fabric.Grant(ctx, Of(y, n), book.RandomID(), r.Addr, subnet.Addr().Is6())
	return netip.PrefixFrom(granted, subnet.Bits()), err
}

// Of is a network of this host as the cluster has it.
func Of(y *book.Book, n modes.Network) modes.Overlay {
	return *y.Traits(n).Cluster
}

// overlayGateway is the gateway that a network of the cluster has, or what it will have.
func overlayGateway(ctx context.Context, y *book.Book, name string, subnet netip.Prefix, want netip.Addr) (netip.Prefix, error) {
	first := netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	if want.IsValid() {
		first = netip.PrefixFrom(want, subnet.Bits())
	}
	o, err := y.Config.Fabric.Find(ctx, modes.Overlay{Name: name})
	if errors.Is(err, modes.ErrNoOverlay) {
		return first, nil
	}
	if err != nil {
		return first, err
	}
	for _, s := range o.Subnets {
		if s.Pool == subnet && want.IsValid() && s.Gateway.Addr() != want {
			return first, otherGateway(name, want, s)
		}
		if s.Pool == subnet {
			return s.Gateway, nil
		}
	}
	return first, nil
}

// ReleaseClaim gives an address of a cluster's network back, unless an endpoint has it: then the release is a late one.
func ReleaseClaim(y *book.Book, pool string, a netip.Addr) error {
	name, _, err := ParseOverlayPool(pool)
	if err != nil {
		return err
	}
	n, here, err := overlayOf(y, name)
	if err != nil || !here || y.Config.Fabric == nil {
		return err
	}
	var taken bool
	err = y.Config.Store.View(func(tx store.Tx) (err error) {
		taken, err = book.Claimed(tx, n.ID, a)
		return err
	})
	if err != nil || taken {
		return err
	}
	return y.Config.Fabric.Release(Of(y, n), a)
}

// ClaimSpace notes that a network's addresses are a cluster's, and refuses one whose addresses somebody else gives.
func ClaimSpace(y *book.Book, n *modes.Network) error {
	if !Claims(y, n.Mode) {
		return nil
	}
	for i, s := range n.Subnets {
		if s.Space != book.Space && s.Space != OverlaySpace {
			return fmt.Errorf("mode %s: the addresses of %s would be given by another IPAM; use --ipam-driver %s --ipam-opt overlay=%s",
				n.Mode, s.Pool, OverlaySpace, n.Given(OptOverlay))
		}
		n.Subnets[i].Space = OverlaySpace
	}
	return nil
}

// Overlays are the networks of the cluster that are on this host, by their ids there.
func Overlays(y *book.Book) (ids []string, err error) {
	ns, err := y.Networks()
	for _, n := range ns {
		if Claims(y, n.Mode) {
			ids = append(ids, Of(y, n).ID)
		}
	}
	return ids, err
}
