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

// A Pool is a subnet whose addresses are handed out.
type Pool struct {
	// ID is the subnet, and "@" and the domain when there is one: a call that is repeated finds the same pool.
	ID string `json:"id"`
	// Subnet is what the addresses are in.
	Subnet netip.Prefix `json:"subnet"`
	// Range is the part of Subnet that dynamic addresses come from; not valid: all of it.
	Range netip.Prefix `json:"range,omitzero"`
	// First and Last bound the dynamic addresses too, where no prefix can say it; not valid: they do not.
	First netip.Addr `json:"first,omitzero"`
	Last  netip.Addr `json:"last,omitzero"`
	// Domain is where the subnet's addresses mean something, such as a parent interface. Pools overlap only within one.
	Domain string `json:"domain,omitempty"`
	// Chosen: nobody named the subnet.
	Chosen bool `json:"chosen,omitempty"`
	// Network is whose pool it is; empty until BindPool: the engine asks for pools before it names the network.
	Network string    `json:"network,omitempty"`
	Created time.Time `json:"created"`
}

// A PoolRequest says what pool is wanted.
type PoolRequest struct {
	// Subnet is the one the user named; not valid: the next free one.
	Subnet netip.Prefix
	// Range is the ip-range within Subnet, if any.
	Range netip.Prefix
	// First and Last are the first and the last dynamic address, each if it is valid.
	First, Last netip.Addr
	// Domain is what the subnet may overlap nothing in.
	Domain string
	// V6 asks for IPv6 where no Subnet does.
	V6 bool
	// Abandoned is when callers that asked earlier and made no network had all died. A pool that one of them took is
	// free for who asks for the same; a later one is somebody's who is about to make a network. Zero: any such pool is
	// free.
	Abandoned time.Time
	// Busy is what a pool without Subnet must keep clear of: the host's routes and resolvers. Default routes do not
	// count.
	Busy []netip.Prefix
}

var poolBucket = store.Bucket[Pool]{Name: "ipam-pools"}

// NullPool is the pool of networks that have no addresses. It is in no file and hands nothing out.
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
// Who asks again for exactly the pool that no network has yet gets it again, without what the first caller took of it:
// that caller died before it made its network, see Abandoned.
func (m *IPAM) RequestPool(tx store.Tx, r PoolRequest) (Pool, error) {
	all, err := m.Pools(tx)
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	p := Pool{Domain: r.Domain, First: bare(r.First), Last: bare(r.Last), Created: m.c.Now()}
	switch {
	case strings.Contains(r.Domain, keySep):
		err = fmt.Errorf("domain %q: %w: has a %q", r.Domain, ErrInvalid, keySep)
	case r.Subnet.IsValid():
		p.Subnet, p.Range, err = explicitSubnet(r)
		if err == nil {
			err = p.bounded()
		}
		if err == nil {
			err = m.admit(tx, p, r.Abandoned, all)
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
		err = m.book(tx, p).recall()
	}
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	return p, nil
}

// explicitSubnet returns the subnet and range of r as they are recorded.
func explicitSubnet(r PoolRequest) (subnet, part netip.Prefix, err error) {
	subnet = plain(r.Subnet)
	if subnet.Bits() == 0 {
		return subnet, part, fmt.Errorf("subnet %s: %w: is every address", subnet, ErrInvalid)
	}
	if !r.Range.IsValid() {
		return subnet, part, nil
	}
	part = plain(r.Range)
	if part.Bits() < subnet.Bits() || !subnet.Contains(part.Addr()) {
		return subnet, part, fmt.Errorf("ip-range %s: %w: outside subnet %s", part, ErrInvalid, subnet)
	}
	return subnet, part, nil
}

// bounded fails when the bounds of the dynamic addresses are not the subnet's, or the wrong way round.
func (p Pool) bounded() error {
	for _, a := range []netip.Addr{p.First, p.Last} {
		if a.IsValid() && !p.Subnet.Contains(a) {
			return fmt.Errorf("range bound %s: %w: outside subnet %s", a, ErrInvalid, p.Subnet)
		}
	}
	if p.First.IsValid() && p.Last.IsValid() && p.Last.Less(p.First) {
		return fmt.Errorf("range from %s to %s: %w: ends before it begins", p.First, p.Last, ErrInvalid)
	}
	return nil
}

// admit fails when a pool of p's domain is in p's way, and clears p's own remains away.
func (m *IPAM) admit(tx store.Tx, p Pool, abandoned time.Time, all []Pool) error {
	for _, other := range all {
		if other.Domain != p.Domain || !other.Subnet.Overlaps(p.Subnet) {
			continue
		}
		overlap := fmt.Errorf("subnet %s %w %s", p.Subnet, ErrOverlap, other.ID)
		if other.Subnet != p.Subnet || other.Range != p.Range || other.First != p.First || other.Last != p.Last || other.Network != "" ||
			!abandoned.IsZero() && other.Created.After(abandoned) {
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

// BindPool gives the pool of subnet that no network has to network. If several domains have one, it is that of the
// domain that is likely, or else the newest. It is no error if network has it already.
func (m *IPAM) BindPool(tx store.Tx, subnet netip.Prefix, likely, network string) error {
	subnet = plain(subnet)
	if _, err := m.PoolOf(tx, subnet, network); !errors.Is(err, ErrNotFound) {
		return err
	}
	var newest Pool
	err := poolBucket.Each(tx, subnet.String(), func(_ string, p Pool) error {
		if p.Subnet != subnet || p.Network != "" {
			return nil
		}
		if is, was := p.Domain == likely, newest.Domain == likely; newest.ID == "" || is && !was || is == was && p.Created.After(newest.Created) {
			newest = p
		}
		return nil
	})
	if err == nil && newest.ID == "" {
		err = fmt.Errorf("unbound pool: %w", ErrNotFound)
	}
	if err == nil {
		newest.Network = network
		err = poolBucket.Put(tx, newest.ID, newest)
	}
	if err != nil {
		return fmt.Errorf("bind pool %s to network %s: %w", subnet, network, err)
	}
	return nil
}

// UnbindPool takes the pool of subnet from network, which came to nothing: whoever asked for the pool gives it back.
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

// PoolOf returns the pool of subnet that network has.
func (m *IPAM) PoolOf(tx store.Tx, subnet netip.Prefix, network string) (Pool, error) {
	subnet = plain(subnet)
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

// Pools returns every pool in order of its subnet, then its domain.
func (m *IPAM) Pools(tx store.Tx) ([]Pool, error) {
	all, err := poolBucket.List(tx, "")
	if err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	// The stable sort leaves the domains of a subnet in the order of their keys.
	slices.SortStableFunc(all, func(a, b Pool) int { return a.Subnet.Compare(b.Subnet) })
	return all, nil
}

// ReleasePool forgets the pool and all that was recorded of its addresses. One that is not known is no error.
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
