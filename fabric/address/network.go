package address

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster/record"
)

// Claims are the claims of all hosts on one network, as far as they are known; a mirror.Mirror.
type Claims interface {
	// Get returns the record under a key; nil when there is none.
	Get(key string) record.Record
	// Has says whether etcd has a record under a key, see mirror.Mirror.
	Has(key string) bool
	// Each calls f with every record.
	Each(f func(record.Record))
}

// NetworkConfig is what the addresses of one network need.
type NetworkConfig struct {
	Claims Claims
	// Join makes this host a member of the network in etcd.
	Join func(context.Context) error
	// HostChanged is called when the host's own addresses may have changed.
	HostChanged func()
}

// A Network is the addresses of one network: which are this host's, and which are free.
type Network struct {
	record.Network
	r        *Records
	c        NetworkConfig
	cooldown *cooldown
}

// Network returns the addresses of a network.
func (r *Records) Network(n record.Network, c NetworkConfig) (*Network, error) {
	cool, err := loadCooldown(r.c.Store, n.ID, r.c.Cooldown)
	return &Network{Network: n, r: r, c: c, cooldown: cool}, err
}

func (n *Network) member() record.Member { return record.Member{Network: n.ID, Host: n.r.c.Host} }

// Note takes notice of changes of claims: addresses that endpoints had are in cooldown. When an address of this host is
// among them, Sync has work.
func (n *Network) Note(cs []record.Change) {
	n.cooldown.note(cs, time.Now())
	if slices.ContainsFunc(cs, n.isOwn) {
		n.r.c.Wake()
	}
}

// isOwn says whether a change is about an address of this host.
func (n *Network) isOwn(c record.Change) bool {
	for _, r := range []record.Record{c.Old, c.New} {
		if addr, ok := r.(*record.Address); ok && addr.Host == n.r.c.Host {
			return true
		}
	}
	return false
}

// HostAddrs returns the host's own addresses on the network.
func (n *Network) HostAddrs() (all []netip.Prefix, err error) {
	own, err := n.r.List(n.ID)
	for _, o := range own {
		if s, ok := n.Find(o.Addr); ok && o.OfHost() {
			all = append(all, netip.PrefixFrom(o.Addr, s.Pool.Bits()))
		}
	}
	return all, err
}

// Save records which addresses are in cooldown.
func (n *Network) Save() error { return n.cooldown.save(n.r.c.Store, n.ID) }

func (n *Network) isGateway(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s record.Subnet) bool { return s.Gateway == addr })
}

// isRemote says whether an address is another host's, as far as is known.
func (n *Network) isRemote(addr netip.Addr) bool {
	rec := n.claimed(addr)
	return rec != nil && rec.Host != n.r.c.Host
}

// claimed returns the claim to an address; nil when none is known.
func (n *Network) claimed(addr netip.Addr) *record.Address {
	rec, _ := n.c.Claims.Get(record.Address{Network: n.ID, Addr: addr}.Key()).(*record.Address)
	return rec
}

// freeAddrs returns up to want addresses that are free and not in cooldown. They are random, so that hosts that choose
// at the same time do not collide. In a nearly full subnet most random ones are in use; then it searches in order.
func (n *Network) freeAddrs(v6 bool, want int) (found []netip.Addr) {
	for _, s := range n.Subnets {
		if s.Pool.Addr().Is6() != v6 {
			continue
		}
		for range 4 * want {
			if addr := randomAddr(s.Pool); len(found) < want && n.isChoice(s, addr) && !slices.Contains(found, addr) {
				found = append(found, addr)
			}
		}
		const most = 1 << 16
		addr := s.Pool.Addr()
		for i := 0; len(found) < want && i < most && s.Pool.Contains(addr); i++ {
			if n.isChoice(s, addr) && !slices.Contains(found, addr) {
				found = append(found, addr)
			}
			addr = addr.Next()
		}
	}
	return found
}

// coolingAddrs returns up to want free addresses in cooldown, the oldest first, for when no other is free.
func (n *Network) coolingAddrs(v6 bool, want int) (all []netip.Addr) {
	for _, a := range n.cooldown.oldest() {
		if _, ok := n.Find(a); ok && a.Is6() == v6 && n.isFree(a) && len(all) < want {
			all = append(all, a)
		}
	}
	return all
}

// isChoice says whether an address of a subnet can be claimed without using one in cooldown.
func (n *Network) isChoice(s record.Subnet, addr netip.Addr) bool {
	return s.Usable(addr) && n.isFree(addr) && !n.cooldown.has(addr)
}

// isFree says whether no host has claimed an address, as far as is known.
func (n *Network) isFree(addr netip.Addr) bool {
	return !n.isGateway(addr) && n.c.Claims.Get(record.Address{Network: n.ID, Addr: addr}.Key()) == nil
}

// Cooling says whether an address is free and in cooldown.
func (n *Network) Cooling(addr netip.Addr) bool { return n.isFree(addr) && n.cooldown.has(addr) }

// randomAddr returns a random address of a subnet. Of an IPv6 subnet it is one of the first 65536, so that people can
// read it.
func randomAddr(p netip.Prefix) netip.Addr {
	const short = 16
	b := p.Addr().AsSlice()
	hostBits := min(p.Addr().BitLen()-p.Bits(), 32)
	if p.Addr().Is6() {
		hostBits = min(hostBits, short)
	}
	offset := rand.Uint32() >> (32 - hostBits) //nolint:gosec // it need not be secret
	for i := range 4 {
		b[len(b)-1-i] |= byte(offset >> (8 * i))
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
