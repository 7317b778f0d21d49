// Package port chooses the host ports that endpoints publish, finds conflicts, and makes the kernel publish the ports.
package port

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// Reclaims reports whether an interface gets the ports of another one of its container: of one with a higher number.
// Answers leave by the default route, which is that of the interface with the lowest number; with an address of another
// network they would be dropped as spoofed.
func Reclaims(ifName, from string) bool { return modes.Metric(from) > modes.Metric(ifName) }

// OnAddresses returns the requested ports with the host addresses that they will be published on. A port without an
// address is published on those of its network.
func OnAddresses(h *book.Held, ports []book.PortRequest) (asks []book.PortRequest) {
	p := h.Traits().Publish
	if p.OnOwn && !p.OnHost { // no host ports
		return nil
	}
	binds := append([]netip.Addr{netip.IPv4Unspecified()}, p.Binds...)
	for _, a := range ports {
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
