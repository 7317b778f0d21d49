package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/yard/book"
)

// AdoptOverlay fills in a network that is to be an overlay. The first host names the subnets; a request without subnets
// takes the configuration from the cluster, where the network must exist.
func AdoptOverlay(ctx context.Context, y *book.Book, n *modes.Network, r book.NetworkRequest) error {
	name := n.Options[Option]
	if y.Config.Fabric == nil {
		return fmt.Errorf("overlay=%s: %w", name, modes.ErrNoCluster)
	}
	if r.DHCP != nil {
		return modes.Refuse("overlay=%s: its addresses come from the cluster, not from a DHCP server",
			name)
	}
	if old, here, err := findOverlay(y, name); err != nil {
		return err
	} else if here {
		return modes.Refuse("overlay=%s: it is on this host already, as network %s",
			name, book.Label(old))
	}
	o, err := y.Config.Fabric.Find(ctx, modes.Overlay{Name: name})
	isNew := errors.Is(err, modes.ErrNoOverlay)
	switch {
	case err != nil && !isNew:
		return err
	case isNew && len(r.Subnets) == 0:
		return modes.Refuse("%w", notInCluster(name))
	case len(r.Subnets) == 0:
		n.Internal = o.Internal
	}
	for _, w := range r.Subnets {
		s, err := overlaySubnet(name, o, isNew, w)
		if err != nil {
			return err
		}
		n.Subnets = append(n.Subnets, s)
	}
	if !isNew {
		n.Subnets = slices.Clone(o.Subnets)
	}
	for i := range n.Subnets {
		n.Subnets[i].Space = Space
	}
	_, v6 := n.Families()
	if r.IPv6 && !v6 {
		return modes.Refuse("overlay=%s: ipv6: give an IPv6 subnet too, the same on all hosts, as --subnet fd20::/64",
			name)
	}
	n.IPv6 = v6
	return nil
}

// overlaySubnet returns a requested subnet with the gateway that it has or will have.
func overlaySubnet(name string, o modes.Overlay, isNew bool, w book.SubnetRequest) (s modes.Subnet, err error) {
	p := w.Pool.Subnet
	refuse := func(why string) error {
		return modes.Refuse("overlay=%s: subnet %s: %s", name, p, why)
	}
	switch {
	case w.NoGateway:
		return s, refuse("it needs a gateway: every host has the gateway's address")
	case w.Pool.Range.IsValid() || w.Pool.First.IsValid() || w.Pool.Last.IsValid():
		return s, refuse("the hosts allocate addresses from the whole subnet; leave the range out")
	case len(w.Aux) > 0:
		return s, refuse("aux-address: the other hosts would give it to their containers")
	case isNew && w.Gateway.IsValid():
		return modes.Subnet{Pool: p, Gateway: netip.PrefixFrom(w.Gateway, p.Bits())}, nil
	case isNew:
		return modes.Subnet{Pool: p, Gateway: netip.PrefixFrom(p.Addr().Next(), p.Bits())}, nil
	}
	at := slices.IndexFunc(o.Subnets, func(s modes.Subnet) bool { return s.Pool == p })
	if at < 0 {
		var has []netip.Prefix
		for _, s := range o.Subnets {
			has = append(has, s.Pool)
		}
		return s, modes.Refuse("%w", subnetMismatch(name, p, has))
	}
	if s = o.Subnets[at]; w.Gateway.IsValid() && s.Gateway.Addr() != w.Gateway {
		return s, modes.Refuse("%w", gatewayMismatch(name, w.Gateway, s))
	}
	return s, nil
}

// joinPrefixes lists prefixes in words.
func joinPrefixes(ps []netip.Prefix) (text string) {
	for i, p := range ps {
		if i > 0 {
			text += ", "
		}
		text += p.String()
	}
	return text
}

// IsOverlayAs reports whether an overlay matches a request in all that the request specifies.
func IsOverlayAs(old modes.Network, r book.NetworkRequest) bool {
	if len(r.Subnets) > 0 && old.Internal != r.Internal {
		return false
	}
	return !slices.ContainsFunc(r.Subnets, func(w book.SubnetRequest) bool {
		return !slices.ContainsFunc(old.Subnets, func(s modes.Subnet) bool {
			return s.Pool == w.Pool.Subnet && !w.NoGateway && (!w.Gateway.IsValid() || w.Gateway == s.Gateway.Addr())
		})
	})
}
