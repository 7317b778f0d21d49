// Package overlay is a host's part in overlays: it claims their addresses in the cluster, and takes their subnets from
// there.
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

// Space is the address space of overlays: their addresses are claimed in the cluster.
const Space = "netyard-overlay"

// overlayPrefix begins the IDs of pools of overlays. The network's name in the cluster and the subnet follow, so a pool
// needs no record.
const overlayPrefix = "overlay-"

// Option is the option for the network's name in the cluster.
const Option = "overlay"

// A Pool is a subnet of an overlay, as an engine's pool.
type Pool struct {
	ID     string
	Subnet netip.Prefix
	// Gateway is the network's; invalid while there is no such network: then the engine names it.
	Gateway netip.Prefix
}

// IsOverlay reports whether a pool belongs to an overlay.
func IsOverlay(pool string) bool { return strings.HasPrefix(pool, overlayPrefix) }

// PoolID returns the ID of the pool of an overlay's subnet.
func PoolID(name string, subnet netip.Prefix) string {
	return overlayPrefix + name + "@" + subnet.String()
}

// ParseOverlayPool parses the ID of an overlay's pool.
func ParseOverlayPool(id string) (name string, subnet netip.Prefix, err error) {
	name, text, ok := strings.Cut(strings.TrimPrefix(id, overlayPrefix), "@")
	subnet, err = netip.ParsePrefix(text)
	if !ok || err != nil {
		return "", subnet, fmt.Errorf("pool %q is not the pool of an overlay", id)
	}
	return name, subnet, nil
}

// Claims reports whether the addresses of a mode's networks are claimed in the cluster.
func Claims(y *book.Book, mode string) bool {
	return y.Traits(modes.Network{Mode: mode}).Cluster != nil
}

// ParseOverlay reads --ipam-opt; ok is false if it does not name an overlay. With always, that is an error.
func ParseOverlay(always bool, ipRange string, opts map[string]string) (name string, ok bool, err error) {
	name, said := opts[Option]
	switch {
	case !said && !always:
		return "", false, nil
	case !said || name == "":
		return "", false, modes.Refuse("overlay: name the network in the cluster, as --ipam-opt overlay=blue")
	case ipRange != "":
		return "", false, fmt.Errorf("ip-range %s: on an overlay the hosts allocate addresses from the whole subnet; "+
			"leave --ip-range out", ipRange)
	}
	for key := range opts {
		if key != Option {
			return "", false, modes.Refuse("--ipam-opt %s cannot be used with --ipam-opt overlay",
				key)
		}
	}
	return name, true, nil
}

// RequestOverlayPool returns the pool of an overlay: the subnet that the overlay has in the cluster, or, if it is not
// there yet, the named one.
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
		return p, notInCluster(name)
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
		return p, fmt.Errorf("overlay=%s: it has no subnet of that family in the cluster", name)
	}
	return p, subnetMismatch(name, want, has)
}

// notInCluster refuses an overlay without a subnet that is not in the cluster.
func notInCluster(name string) error {
	return fmt.Errorf("overlay=%s: it is not in the cluster yet; give its --subnet on the first host", name)
}

// subnetMismatch refuses a subnet that the overlay does not have in the cluster.
func subnetMismatch(name string, want netip.Prefix, has []netip.Prefix) error {
	return fmt.Errorf("overlay=%s: subnet %s differs from the cluster's %s", name, want, joinPrefixes(has))
}

// gatewayMismatch refuses another gateway than the overlay has in the cluster.
func gatewayMismatch(name string, want netip.Addr, has modes.Subnet) error {
	return fmt.Errorf("overlay=%s: gateway %s differs from the cluster's %s", name, want, has.Gateway.Addr())
}

// findOverlay finds this host's network that is the overlay of a name.
func findOverlay(y *book.Book, name string) (modes.Network, bool, error) {
	ns, err := y.Networks()
	for _, n := range ns {
		if IsOverlayNamed(y, n, name) {
			return n, true, err
		}
	}
	return modes.Network{}, false, err
}

// IsOverlayNamed reports whether a network is the overlay of a name.
func IsOverlayNamed(y *book.Book, n modes.Network, name string) bool {
	return Claims(y, n.Mode) && n.Given(Option) == name && n.Phase == modes.Ready
}

// RequestClaim claims an address of an overlay. An engine requests the gateway's address before the network exists;
// that one is not claimed, since every host has it.
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
	n, here, err := findOverlay(y, name)
	if err != nil {
		return a, err
	}
	if r.Gateway {
		return overlayGateway(ctx, y, name, subnet, r.Addr)
	}
	if !here {
		return a, fmt.Errorf("overlay=%s: this host has no such network", name)
	}
	// The owner is not known yet, so the claim has a random one. The engine does not choose the MAC: it is derived from
	// the address, so that neighbour entries stay valid when the address moves to another host.
	granted, err := y.Config.Fabric.Grant(ctx, Of(y, n), book.RandomID(), r.Addr, subnet.Addr().Is6())
	return netip.PrefixFrom(granted, subnet.Bits()), err
}

// Of returns the overlay that a network of this host is. The network's mode must claim addresses (Claims).
func Of(y *book.Book, n modes.Network) modes.Overlay {
	return *y.Traits(n).Cluster
}

// overlayGateway returns the gateway that an overlay has or will have.
func overlayGateway(
	ctx context.Context, y *book.Book, name string, subnet netip.Prefix, want netip.Addr,
) (netip.Prefix, error) {
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
			return first, gatewayMismatch(name, want, s)
		}
		if s.Pool == subnet {
			return s.Gateway, nil
		}
	}
	return first, nil
}

// ReleaseClaim releases an address of an overlay, unless an endpoint has it: then the release came too late and is
// ignored.
func ReleaseClaim(y *book.Book, pool string, a netip.Addr) error {
	name, _, err := ParseOverlayPool(pool)
	if err != nil {
		return err
	}
	n, here, err := findOverlay(y, name)
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

// ClaimSpace sets the address space of an overlay's subnets, and refuses a subnet of another IPAM.
func ClaimSpace(y *book.Book, n *modes.Network) error {
	if !Claims(y, n.Mode) {
		return nil
	}
	for i, s := range n.Subnets {
		if s.Space != book.Space && s.Space != Space {
			return fmt.Errorf("mode %s: subnet %s belongs to another IPAM; use --ipam-driver %s --ipam-opt overlay=%s",
				n.Mode, s.Pool, Space, n.Given(Option))
		}
		n.Subnets[i].Space = Space
	}
	return nil
}

// Overlays returns the IDs in the cluster of the overlays that are on this host.
func Overlays(y *book.Book) (ids []string, err error) {
	ns, err := y.Networks()
	for _, n := range ns {
		if Claims(y, n.Mode) {
			ids = append(ids, Of(y, n).ID)
		}
	}
	return ids, err
}
