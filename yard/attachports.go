package yard

import (
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
)

// rob takes the ports of the container's interfaces behind this one: answers leave by the default route, which is the lowest one's, and
// from another network's address they would be taken for spoofed.
func rob(tx store.Tx, e modes.Endpoint) (robbed []modes.Endpoint, err error) {
	others, err := attachmentsOf(tx, e.Attachment)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.ID == e.ID || len(other.Ports) == 0 || metric(other.IfName) <= metric(e.IfName) {
			continue
		}
		robbed = append(robbed, other)
		other.Ports = nil
		if err := putEndpoint(tx, other); err != nil {
			return nil, err
		}
	}
	return robbed, nil
}

// onAddresses are the ports with the host's addresses that they will be on: of a port that names none, those of its network.
func (y *Yard) onAddresses(r AttachRequest) (asks []Ask) {
	binds := []netip.Addr{netip.IPv4Unspecified()}
	if n, err := y.Network(r.NetworkID); err == nil {
		if own, both := redirects(y.c.Modes[n.Mode], n); own && !both { // none of the host's
			return nil
		}
		if p, ok := y.c.Modes[n.Mode].(modes.Publisher); ok {
			binds = append(binds, p.Binds(n)...)
		}
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

// unpublished are the ports that no other interface of the same container has already.
func unpublished(tx store.Tx, e modes.Endpoint, asks []Ask) []Ask {
	has := func(a Ask) bool {
		for _, key := range portClaims.Keys(tx, a.Proto+"/") {
			r, ok := parseClaim(key)
			if !ok || a.HostPort < r.first || a.HostPort > r.last || !sameAddr(r.addr, a.HostIP) {
				continue
			}
			c, err := portClaims.Get(tx, key)
			if err != nil {
				continue
			}
			if by, err := getEndpoint(tx, c.Network, c.Endpoint); err == nil && by.Attachment == e.Attachment && by.ID != e.ID {
				return true
			}
		}
		return false
	}
	return slices.DeleteFunc(asks, has)
}
