package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"netyard/store"
)

// CheckRoom returns an error if the pool of a new network has no address for a container besides those of the network
// itself, its gateway, its auxiliary ones, and the host's own, of which each has its link.
func (m *IPAM) CheckRoom(tx store.Tx, id string, host map[netip.Addr]string) error {
	p, err := m.Pool(tx, id)
	if err != nil {
		return err
	}
	return p.CheckRoom(1, func(a netip.Addr) (bool, error) {
		if host[a] != "" {
			return true, nil
		}
		l, err := m.LeaseAt(tx, id, a)
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return l.State == StateActive, err
	})
}

// CheckRoom returns an error if the pool has fewer dynamic addresses that are not taken than a network needs.
func (p Pool) CheckRoom(need int, taken func(netip.Addr) (bool, error)) error {
	part := p.Subnet
	if p.Range.IsValid() {
		part = p.Range
	}
	first := part.Addr()
	if p.First.IsValid() && first.Less(p.First) {
		first = p.First
	}
	for a := first; part.Contains(a) && (!p.Last.IsValid() || !p.Last.Less(a)); a = a.Next() {
		if !usable(p.Subnet, a) {
			continue
		}
		is, err := taken(a)
		if err != nil {
			return err
		}
		if !is {
			need--
		}
		if need == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s: %w: without the addresses of the network, its gateway, its auxiliary ones and "+
		"the host's own, none is left for a container; choose a larger one", p.dynamic(), ErrInvalid)
}

// dynamic names what the user gave for the dynamic addresses.
func (p Pool) dynamic() string {
	switch {
	case p.First.IsValid() && p.Last.IsValid():
		return fmt.Sprintf("range from %s to %s", p.First, p.Last)
	case p.First.IsValid():
		return fmt.Sprintf("range from %s", p.First)
	case p.Last.IsValid():
		return fmt.Sprintf("range to %s", p.Last)
	case p.Range.IsValid():
		return fmt.Sprintf("ip-range %s", p.Range)
	}
	return fmt.Sprintf("subnet %s", p.Subnet)
}
