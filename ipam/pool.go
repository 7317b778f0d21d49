package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netyard/store"
)

// A Pool is a subnet whose addresses the IPAM gives.
type Pool struct {
	// ID is the subnet, and "@" and the domain if there is one, so that a repeated request finds the same pool.
	ID string `json:"id"`
	// Subnet is the range of all its addresses.
	Subnet netip.Prefix `json:"subnet"`
	// Range is the part of Subnet for dynamic addresses. If it is not valid, they come from all of Subnet.
	Range netip.Prefix `json:"range,omitzero"`
	// First and Last, if valid, are further bounds of the dynamic addresses, which need not be those of a prefix.
	First netip.Addr `json:"first,omitzero"`
	Last  netip.Addr `json:"last,omitzero"`
	// Domain is the scope of the subnet's addresses, such as a parent interface. Only pools of one domain can overlap.
	Domain string `json:"domain,omitempty"`
	// Chosen says that the IPAM chose the subnet, and not the user.
	Chosen bool `json:"chosen,omitempty"`
	// Network is the ID of the network that has the pool. It is empty until BindPool: an engine requests pools before
	// it creates the network.
	Network string    `json:"network,omitempty"`
	Created time.Time `json:"created"`
}

// A PoolRequest says what pool is wanted.
type PoolRequest struct {
	// Subnet is the subnet that the user named. If it is not valid, the IPAM chooses one.
	Subnet netip.Prefix
	// Range is the ip-range within Subnet, if any.
	Range netip.Prefix
	// First and Last are the first and the last dynamic address, each if it is valid.
	First, Last netip.Addr
	// Domain is the scope in which the subnet must overlap no other.
	Domain string
	// V6 requests an IPv6 pool if there is no Subnet.
	V6 bool
	// Abandoned is a time by which all callers that had requested a pool and made no network were dead. A pool that is
	// older and unbound is given again to a request for the same; a newer one belongs to a caller that may still make
	// its network. If Abandoned is zero, every unbound pool is given again.
	Abandoned time.Time
	// Busy are prefixes that a chosen subnet must not overlap: the host's routes and resolvers. Default routes are
	// ignored.
	Busy []netip.Prefix
}

var poolBucket = store.Bucket[Pool]{Name: "ipam-pools"}

// NullPool returns the pool of networks that have no addresses. It is not recorded, and has no addresses.
func NullPool(v6 bool) Pool {
	subnet := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if v6 {
		subnet = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return Pool{ID: subnet.String(), Subnet: subnet}
}

func poolID(subnet netip.Prefix, domain string) string {
	if domain == "" {
		return subnet.String()
	}
	return subnet.String() + "@" + domain
}

// RequestPool records the pool that r asks for.
//
// A request for exactly the same pool as an unbound one gets that pool, without the addresses that were requested from
// it: the first caller died before it made its network, see Abandoned.
func (m *IPAM) RequestPool(tx store.Tx, r PoolRequest) (Pool, error) {
	all, err := m.Pools(tx)
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	p := Pool{Domain: r.Domain, First: unmapped(r.First), Last: unmapped(r.Last), Created: m.c.Now()}
	switch {
	case strings.Contains(r.Domain, keySep):
		err = fmt.Errorf("domain %q: %w: contains %q", r.Domain, ErrInvalid, keySep)
	case r.Subnet.IsValid():
		p.Subnet, p.Range, err = explicitSubnet(r)
		if err == nil {
			err = p.checkBounds()
		}
		if err == nil {
			err = m.checkOverlap(tx, p, r.Abandoned, all)
		}
	case r.Range.IsValid():
		err = fmt.Errorf("ip-range %s: %w: needs a subnet", r.Range, ErrInvalid)
	default:
		p.Chosen = true
		p.Subnet, err = m.nextSubnet(tx, r, all)
	}
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	p.ID = poolID(p.Subnet, p.Domain)
	err = poolBucket.Put(tx, p.ID, p)
	if err == nil {
		err = m.book(tx, p).restoreReservations()
	}
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	return p, nil
}

// explicitSubnet returns the subnet and range of r in the form in which they are recorded.
func explicitSubnet(r PoolRequest) (subnet, part netip.Prefix, err error) {
	subnet = masked(r.Subnet)
	if subnet.Bits() == 0 {
		return subnet, part, fmt.Errorf("subnet %s: %w: contains all addresses", subnet, ErrInvalid)
	}
	if !r.Range.IsValid() {
		return subnet, part, nil
	}
	part = masked(r.Range)
	if part.Bits() < subnet.Bits() || !subnet.Contains(part.Addr()) {
		return subnet, part, fmt.Errorf("ip-range %s: %w: outside subnet %s", part, ErrInvalid, subnet)
	}
	return subnet, part, nil
}

// checkBounds returns an error if First or Last is outside the subnet, or Last is before First.
func (p Pool) checkBounds() error {
	for _, a := range []netip.Addr{p.First, p.Last} {
		if a.IsValid() && !p.Subnet.Contains(a) {
			return fmt.Errorf("range bound %s: %w: outside subnet %s", a, ErrInvalid, p.Subnet)
		}
	}
	if p.First.IsValid() && p.Last.IsValid() && p.Last.Less(p.First) {
		return fmt.Errorf("range from %s to %s: %w: the end is before the start", p.First, p.Last, ErrInvalid)
	}
	return nil
}

// An OverlapError says with which pool a requested one has addresses in common. It is an ErrOverlap.
type OverlapError struct {
	Subnet netip.Prefix
	Other  Pool
}

// Error names the subnet and the other pool.
func (e *OverlapError) Error() string {
	return fmt.Sprintf("subnet %s %v %s", e.Subnet, ErrOverlap, e.Other.ID)
}

// Unwrap returns ErrOverlap.
func (*OverlapError) Unwrap() error { return ErrOverlap }

// checkOverlap returns an error if p overlaps a pool of its domain. If that is an abandoned pool with the same values,
// it frees the addresses of that pool instead.
func (m *IPAM) checkOverlap(tx store.Tx, p Pool, abandoned time.Time, all []Pool) error {
	for _, other := range all {
		if other.Domain != p.Domain || !other.Subnet.Overlaps(p.Subnet) {
			continue
		}
		overlap := &OverlapError{Subnet: p.Subnet, Other: other}
		same := other.Subnet == p.Subnet && other.Range == p.Range && other.First == p.First && other.Last == p.Last
		if !same || other.Network != "" || !abandoned.IsZero() && other.Created.After(abandoned) {
			return overlap
		}
		b := m.book(tx, other)
		inUse, err := b.hasEndpoints()
		if err != nil {
			return err
		}
		if inUse {
			return overlap
		}
		return b.clear()
	}
	return nil
}

// BindPool binds the unbound pool of a subnet to a network. If several domains have one, it binds that of the likely
// domain, or else the newest. If the network has a pool of the subnet already, it does nothing.
func (m *IPAM) BindPool(tx store.Tx, subnet netip.Prefix, likely, network string) error {
	subnet = masked(subnet)
	if _, err := m.PoolOf(tx, subnet, network); !errors.Is(err, ErrNotFound) {
		return err
	}
	var best Pool
	err := poolBucket.Each(tx, subnet.String(), func(_ string, p Pool) error {
		if p.Subnet != subnet || p.Network != "" {
			return nil
		}
		is, was := p.Domain == likely, best.Domain == likely
		if best.ID == "" || is && !was || is == was && p.Created.After(best.Created) {
			best = p
		}
		return nil
	})
	if err == nil && best.ID == "" {
		err = fmt.Errorf("unbound pool: %w", ErrNotFound)
	}
	if err == nil {
		best.Network = network
		err = poolBucket.Put(tx, best.ID, best)
	}
	if err != nil {
		return fmt.Errorf("bind pool %s to network %s: %w", subnet, network, err)
	}
	return nil
}

// UnbindPool makes the pool of a subnet unbound again, since its network was not made. The caller that requested the
// pool releases it.
func (m *IPAM) UnbindPool(tx store.Tx, subnet netip.Prefix, network string) error {
	p, err := m.PoolOf(tx, subnet, network)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err == nil {
		p.Network = ""
		err = poolBucket.Put(tx, p.ID, p)
	}
	if err != nil {
		return fmt.Errorf("unbind pool %s from network %s: %w", subnet, network, err)
	}
	return nil
}

// PoolOf returns the pool of a subnet that is bound to a network.
func (m *IPAM) PoolOf(tx store.Tx, subnet netip.Prefix, network string) (Pool, error) {
	subnet = masked(subnet)
	var found Pool
	err := poolBucket.Each(tx, subnet.String(), func(_ string, p Pool) error {
		if p.Subnet == subnet && p.Network == network {
			found = p
			return store.ErrStop
		}
		return nil
	})
	if err == nil && found.ID == "" {
		err = ErrNotFound
	}
	if err != nil {
		return Pool{}, fmt.Errorf("find pool %s of network %s: %w", subnet, network, err)
	}
	return found, nil
}

// Pool returns the pool of an ID.
func (m *IPAM) Pool(tx store.Tx, id string) (Pool, error) {
	p, err := poolBucket.Get(tx, id)
	if err != nil {
		return Pool{}, fmt.Errorf("find pool %s: %w", id, err)
	}
	return p, nil
}

// Pools returns all pools in order of their subnets, then their domains.
func (m *IPAM) Pools(tx store.Tx) ([]Pool, error) {
	all, err := poolBucket.List(tx, "")
	if err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	// The stable sort leaves the domains of a subnet in the order of their keys.
	slices.SortStableFunc(all, func(a, b Pool) int { return a.Subnet.Compare(b.Subnet) })
	return all, nil
}

// ReleasePool removes a pool and all records of its addresses. A pool that does not exist is not an error.
func (m *IPAM) ReleasePool(tx store.Tx, id string) error {
	p, known, err := find(tx, poolBucket, id)
	if err == nil && known {
		err = errors.Join(m.book(tx, p).erase(), poolBucket.Delete(tx, id))
	}
	if err != nil {
		return fmt.Errorf("release pool %s: %w", id, err)
	}
	return nil
}
