// Package port chooses the host ports that endpoints publish, finds conflicts, and makes the kernel publish the ports.
package port

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// ReclaimPorts removes the ports from the records of the container's interfaces with a higher number than this one, and
// returns those endpoints as they were. Answers leave by the default route, which is that of the interface with the
// lowest number; with an address of another network they would be dropped as spoofed.
func ReclaimPorts(tx store.Tx, e modes.Endpoint) (reclaimed []modes.Endpoint, err error) {
	others, err := book.AttachmentsOf(tx, e.Attachment)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.ID == e.ID || len(other.Ports) == 0 || book.Metric(other.IfName) <= book.Metric(e.IfName) {
			continue
		}
		reclaimed = append(reclaimed, other)
		other.Ports = nil
		if err := book.PutEndpoint(tx, other); err != nil {
			return nil, err
		}
	}
	return reclaimed, nil
}

// OnAddresses returns the requested ports with the host addresses that they will be published on. A port without an
// address is published on those of its network.
func OnAddresses(y *book.Book, r book.AttachRequest) (asks []book.PortRequest) {
	binds := []netip.Addr{netip.IPv4Unspecified()}
	if n, err := y.Network(r.NetworkID); err == nil {
		p := y.Traits(n).Publish
		if p.OnOwn && !p.OnHost { // no host ports
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

// Unpublished returns the requested ports that no other interface of the same container has.
func Unpublished(tx store.Tx, e modes.Endpoint, asks []book.PortRequest) []book.PortRequest {
	has := func(a book.PortRequest) bool {
		for _, key := range book.PortClaims.Keys(tx, a.Proto+"/") {
			r, ok := book.ParseClaim(key)
			if !ok || a.HostPort < r.First || a.HostPort > r.Last || !sameAddr(r.Addr, a.HostIP) {
				continue
			}
			c, err := book.PortClaims.Get(tx, key)
			if err != nil {
				continue
			}
			by, err := book.GetEndpoint(tx, c.Network, c.Endpoint)
			if err == nil && by.Attachment == e.Attachment && by.ID != e.ID {
				return true
			}
		}
		return false
	}
	return slices.DeleteFunc(asks, has)
}
