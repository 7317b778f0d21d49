package source

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// HostAddrs returns the host's own addresses in the subnets of a network, if its endpoints are on a link of the host,
// and the link of each. No endpoint can have one, on whichever link it is: the host answers for it on that LAN, too.
func HostAddrs(y *book.Book, n modes.Network) (map[netip.Addr]string, error) {
	if y.Traits(n).HostLink == "" {
		return nil, nil
	}
	var subnets []netip.Prefix
	for _, s := range n.Subnets {
		subnets = append(subnets, s.Pool)
	}
	return y.Config.Kernel.AddrsIn(subnets...)
}

// CheckHost refuses addresses for an endpoint that are the host's own.
func CheckHost(y *book.Book, n modes.Network, addrs ...netip.Prefix) error {
	host, err := HostAddrs(y, n)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		if link, own := host[p.Addr()]; own {
			return hostsOwn(link, p.Addr())
		}
	}
	return nil
}

func hostsOwn(link string, a netip.Addr) error {
	return modes.Refuse("address %s: it is the host's own, on %s; use another --ip, "+
		"or create the network with --aux-address host=%s", a, link, a)
}

// hostAddrs returns the host's own addresses that the pool must not give: to a container, those of its network's
// subnets; to the gateway that is chosen for a network to come, those that cannot be the router of a LAN.
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
	host, err := HostAddrs(p.y, n)
	if link, own := host[r.Addr]; own {
		err = hostsOwn(link, r.Addr)
	}
	return slices.Collect(maps.Keys(host)), err
}

// gatewayRivals returns the host's own addresses that cannot be the router of a LAN with this subnet. On a bridge, the
// host can be that.
func gatewayRivals(y *book.Book, subnet netip.Prefix) (rivals []netip.Addr, err error) {
	host, err := y.Config.Kernel.AddrsIn(subnet)
	if err != nil {
		return nil, fmt.Errorf("choose a gateway in %s: %w", subnet, err)
	}
	for a, name := range host {
		link, exists, err := y.Config.Kernel.FindLink(name)
		if err != nil {
			return nil, err
		}
		if _, _, own := core.ParseAlias(link.Alias); exists && !own && link.Kind != "bridge" {
			rivals = append(rivals, a)
		}
	}
	return rivals, nil
}
