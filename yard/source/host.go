package source

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// HostAddrs returns the link of the host that a network's endpoints are on, and the host's own addresses there, which
// no endpoint can have. Link is empty if there is none.
func HostAddrs(y *book.Book, n modes.Network) (link string, addrs []netip.Addr, err error) {
	if link = y.Traits(n).HostLink; link == "" {
		return "", nil, nil
	}
	addrs, err = addrsOf(y, link)
	return link, addrs, err
}

// addrsOf returns the host's addresses on a link. A link that does not exist has none.
func addrsOf(y *book.Book, link string) (addrs []netip.Addr, err error) {
	if _, exists, err := y.Config.Kernel.FindLink(link); err != nil || !exists {
		return nil, err
	}
	all, err := y.Config.Kernel.LinkAddrs(link)
	for _, p := range all {
		addrs = append(addrs, p.Addr())
	}
	return addrs, err
}

// CheckHost refuses addresses for an endpoint that are the host's own on its link.
func CheckHost(y *book.Book, n modes.Network, addrs ...netip.Prefix) error {
	link, host, err := HostAddrs(y, n)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		if a := p.Addr(); slices.Contains(host, a) {
			return hostsOwn(link, a)
		}
	}
	return nil
}

func hostsOwn(link string, a netip.Addr) error {
	return modes.Refuse("address %s: it is the host's own, on %s; use another --ip, "+
		"or create the network with --aux-address host=%s", a, link, a)
}

// hostAddrs returns the host's own addresses that the pool must not give: to a container, those on its network's link;
// to the gateway that is chosen for a network to come, those on a link that can be the parent of that network.
func (p ownPool) hostAddrs(r ipam.AddressRequest) (addrs []netip.Addr, err error) {
	var is ipam.Pool
	var n modes.Network
	err = p.y.Config.Store.View(func(tx store.Tx) error {
		if is, err = p.y.Config.IPAM.Pool(tx, p.id); errors.Is(err, ipam.ErrNotFound) {
			return nil // the request will say so
		}
		if err != nil || is.Network == "" {
			return err
		}
		n, err = book.GetNetwork(tx, is.Network)
		if errors.Is(err, book.ErrNotFound) {
			return nil
		}
		return err
	})
	switch {
	case err != nil || r.Gateway && r.Addr.IsValid() || n.ID == "" && !r.Gateway || is.ID == "":
		return nil, err
	case n.ID == "":
		return gatewayRivals(p.y, is.Subnet)
	}
	link, addrs, err := HostAddrs(p.y, n)
	if err == nil && slices.Contains(addrs, r.Addr) {
		err = hostsOwn(link, r.Addr)
	}
	return addrs, err
}

// gatewayRivals returns the host's own addresses that cannot be the router of a LAN with this subnet. On a bridge, the
// host can be that.
func gatewayRivals(y *book.Book, subnet netip.Prefix) ([]netip.Addr, error) {
	name, _, err := y.Config.Kernel.OverlappingLink(subnet, "")
	if err != nil || name == "" {
		return nil, err
	}
	link, exists, err := y.Config.Kernel.FindLink(name)
	if _, _, own := core.ParseAlias(link.Alias); err != nil || !exists || own || link.Kind == "bridge" {
		return nil, err
	}
	addrs, err := addrsOf(y, name)
	if err != nil {
		return nil, fmt.Errorf("choose a gateway in %s: %w", subnet, err)
	}
	return addrs, nil
}
