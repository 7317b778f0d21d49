package modetest

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/gso"
	"netyard/modes"
)

// Facts are facts of an invented host, with which modes are tested without a kernel.
type Facts struct {
	// Link are the host's links, by name.
	Link map[string]core.LinkInfo
	// Limit is how large the segments may be of networks whose packets leave the host.
	Limit gso.Limit
	// Addr are the addresses on them.
	Addr map[string][]netip.Prefix
	// No is a kind of link that the kernel cannot make.
	No string
	// Strict is rp_filter of all links.
	Strict string
	// Card are the network cards that a container can have.
	Card map[string]device.State
}

var _ modes.Facts = Facts{}

// Ethernet returns an ordinary Ethernet link.
func Ethernet(mtu int) core.LinkInfo {
	return core.LinkInfo{Kind: "device", MTU: mtu, MAC: "02:00:00:00:00:01", Encap: "ether"}
}

// FindLink finds a link by name.
func (f Facts) FindLink(name string) (info core.LinkInfo, ok bool, err error) {
	info, ok = f.Link[name]
	return info, ok, nil
}

// Links returns the names of all links.
func (f Facts) Links() ([]string, error) { return slices.Sorted(maps.Keys(f.Link)), nil }

// HasKind says whether the kernel can make links of a kind.
func (f Facts) HasKind(kind string) bool { return kind != f.No }

// OverlappingLink finds a link of the host whose subnet overlaps the given one.
func (f Facts) OverlappingLink(subnet netip.Prefix, except string, within ...string) (string, netip.Prefix, error) {
	for _, link := range slices.Sorted(maps.Keys(f.Addr)) {
		for _, a := range f.Addr[link] {
			part := slices.Contains(within, link) && !subnet.Contains(a.Addr())
			if link != except && !part && a.Masked().Overlaps(subnet) {
				return link, a.Masked(), nil
			}
		}
	}
	return "", netip.Prefix{}, nil
}

// HasAddr says whether the host has an address.
func (f Facts) HasAddr(a netip.Addr) (bool, error) {
	for _, all := range f.Addr {
		if slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return true, nil
		}
	}
	return false, nil
}

// AddrsIn returns the host's addresses in some subnets, and the link of each.
func (f Facts) AddrsIn(subnets ...netip.Prefix) (map[netip.Addr]string, error) {
	in := map[netip.Addr]string{}
	for link, all := range f.Addr {
		for _, a := range all {
			if slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a.Addr()) }) {
				in[a.Addr()] = link
			}
		}
	}
	return in, nil
}

// LinkAddrs returns the addresses of a link.
func (f Facts) LinkAddrs(link string) ([]netip.Prefix, error) { return f.Addr[link], nil }

// ReversePath returns rp_filter of every link.
func (f Facts) ReversePath(string) (string, error) { return f.Strict, nil }

// SegmentLimit returns the limit of the host's links, if a network has one of them on its way out.
func (f Facts) SegmentLimit(want gso.Want) (gso.Limit, error) {
	if f.Limit.Reason != "" && (want.Routed || want.Link != "") {
		return f.Limit, nil
	}
	return gso.Limit{Sizes: gso.Sizes{V4: gso.Big, V6: gso.Big}}, nil
}

// Device returns the state of a card.
func (f Facts) Device(name string) (device.State, error) {
	st, ok := f.Card[name]
	if !ok {
		return st, errors.New("there is no such link on this host")
	}
	return st, nil
}
