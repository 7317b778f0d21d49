// Package port is which ports of the host endpoints get, and whether somebody has them.
package port

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// Rob takes the ports of the container's interfaces behind this one: answers leave by the default route, which is the
// lowest one's, and from another network's address they would be taken for spoofed.
func Rob(tx store.Tx, e modes.Endpoint) (robbed []modes.Endpoint, err error) {
	others, err := book.AttachmentsOf(tx, e.Attachment)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.ID == e.ID || len(other.Ports) == 0 || book.Metric(other.IfName) <= book.Metric(e.IfName) {
			continue
		}
		robbed = append(robbed, other)
		other.Ports = nil
		if err := book.PutEndpoint(tx, other); err != nil {
			return nil, err
		}
	}
	return robbed, nil
}

// OnAddresses are the ports with the host's addresses that they will be on: of a port that names none, those of its
// network.
func OnAddresses(y *book.Book, r book.AttachRequest) (asks []book.Ask) {
	binds := []netip.Addr{netip.IPv4Unspecified()}
	if n, err := y.Network(r.NetworkID); err == nil {
		p := y.Traits(n).Publish
		if p.OnOwn && !p.OnHost { // none of the host's
			return nil
		}
		binds = append(binds, p.Binds...)
	}
	for _, a := range r.Ports {
		if a.HostIP.IsValid() {
			asks = append(asks, a)
			continue
		}
		for _, bind := range binds {
			a.HostIP = bind
			asks = append(asks, a)
		}
	}
	return asks
}

// Unpublished are the ports that no other interface of the same container has already.
func Unpublished(tx store.Tx, e modes.Endpoint, asks []book.Ask) []book.Ask {
	has := func(a book.Ask) bool {
		for _, key := range book.PortClaims.Keys(tx, a.Proto+"/") {
			r, ok := book.ParseClaim(key)
			if !ok || a.HostPort < r.First || a.HostPort > r.Last || !sameAddr(r.Addr, a.HostIP) {
				continue
			}
			c, err := book.PortClaims.Get(tx, key)
			if err != nil {
				continue
			}
			if by, err := book.GetEndpoint(tx, c.Network, c.Endpoint); err == nil && by.Attachment == e.Attachment && by.ID != e.ID {
				return true
			}
		}
		return false
	}
	return slices.DeleteFunc(asks, has)
}
