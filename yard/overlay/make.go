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

// TakeOverlay makes of what is asked for a network of the cluster's. Where no subnets are said the network has to be
// there, and everything is as it has it; the first of its hosts says them.
func TakeOverlay(ctx context.Context, y *book.Book, n *modes.Network, r book.NetworkRequest) error {
	name := n.Options[OptOverlay]
	if y.Config.Fabric == nil {
		return fmt.Errorf("overlay=%s: %w", name, modes.ErrNoCluster)
	}
	if r.DHCP != nil {
		return fmt.Errorf("%w: overlay=%s: its addresses are the cluster's, and no DHCP server's", modes.ErrOption, name)
	}
	if old, here, err := overlayOf(y, name); err != nil {
		return err
	} else if here {
		return fmt.Errorf("%w: overlay=%s: it is on this host already, as network %s", modes.ErrOption, name, book.Label(old))
	}
	o, err := y.Config.Fabric.Find(ctx, modes.Overlay{Name: name})
	isNew := errors.Is(err, modes.ErrNoOverlay)
	switch {
	case err != nil && !isNew:
		return err
	case isNew && len(r.Subnets) == 0:
		return fmt.Errorf("%w: overlay=%s: it is not in the cluster yet, so the first of its hosts has to say its --subnet", modes.ErrOption, name)
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
		n.Subnets[i].Space = OverlaySpace
	}
	_, v6 := n.Families()
	if r.IPv6 && !v6 {
		return fmt.Errorf("%w: overlay=%s: ipv6: say its subnet too, as --subnet fd20::/64; it is the same on all hosts", modes.ErrOption, name)
	}
	n.IPv6 = v6
	return nil
}

// overlaySubnet is one that was asked for, with the gateway that it has or will have.
func overlaySubnet(name string, o modes.Overlay, isNew bool, w book.SubnetRequest) (s modes.Subnet, err error) {
	p := w.Pool.Subnet
	switch {
	case w.NoGateway:
		return s, fmt.Errorf("%w: overlay=%s: subnet %s: every host has the gateway's address there", modes.ErrOption, name, p)
	case w.Pool.Range.IsValid() || w.Pool.First.IsValid() || w.Pool.Last.IsValid():
		return s, fmt.Errorf("%w: overlay=%s: subnet %s: the hosts take addresses of the whole subnet, and no range of it", modes.ErrOption, name, p)
	case len(w.Aux) > 0:
		return s, fmt.Errorf("%w: overlay=%s: subnet %s: aux-address: the other hosts would give it to their containers", modes.ErrOption, name, p)
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
		return s, fmt.Errorf("%w: %w", modes.ErrOption, otherSubnet(name, p, has))
	}
	if s = o.Subnets[at]; w.Gateway.IsValid() && s.Gateway.Addr() != w.Gateway {
		return s, fmt.Errorf("%w: %w", modes.ErrOption, otherGateway(name, w.Gateway, s))
	}
	return s, nil
}

func listed(ps []netip.Prefix) (text string) {
	for i, p := range ps {
		if i > 0 {
			text += ", "
		}
		text += p.String()
	}
	return text
}

// IsOverlayAs says whether a network of the cluster's is what is asked for, as far as that is said.
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
