package fabric

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/store"
)

// An Own is an address that this host has claimed. Synced says that etcd has the same.
type Own struct {
	Network  string
	Addr     netip.Addr
	Use      record.Use
	Endpoint string     `json:",omitempty"`
	MAC      record.MAC `json:",omitempty"`
	Name     string     `json:",omitempty"`
	Aliases  []string   `json:",omitempty"`
	Synced   bool       `json:",omitempty"`
	// Since is since when it has been granted to an endpoint without being published: the endpoint has not started yet,
	// has stopped, or never came.
	Since time.Time `json:",omitzero"`
	// Trying says that it is being claimed in etcd and not granted to anybody yet.
	Trying bool `json:",omitempty"`
	// Gone says that it is to be released.
	Gone bool `json:",omitempty"`
	// Lost says that it is another host's according to etcd. It is claimed again when it is free; until then its
	// endpoint is fenced.
	Lost bool `json:",omitempty"`
	// Mute says that its endpoint is fenced because of another address, so that this one is not published either: both
	// have the same MAC, which may be another host's as well.
	Mute bool `json:",omitempty"`
}

// owns holds the addresses of this host, by network and address.
var owns = store.Bucket[Own]{Name: "overlay_addresses"}

func (o Own) key() string { return o.Network + "/" + o.Addr.String() }

// claim returns the claim to write to etcd. The endpoint of a warm or muted address is not written.
func (o Own) claim() record.Address {
	if o.Use == record.Warm || o.Mute {
		return record.Address{Addr: o.Addr, Use: record.Warm}
	}
	return record.Address{Addr: o.Addr, Use: o.Use, Endpoint: o.Endpoint, MAC: o.MAC, Name: o.Name, Aliases: o.Aliases}
}

// A Wish is a request for an address of a network, for an endpoint.
type Wish struct {
	Network  string // its ID in the cluster
	Endpoint string
	// Addr is the wanted address; invalid: any, of the family that V6 says.
	Addr netip.Addr
	V6   bool
}

// maxWarm is how many addresses of a family are kept warm, at most.
const maxWarm = 8

// ErrNone says that no address can be granted.
var ErrNone = errors.New("no address can be claimed")

// Grant gives an endpoint an address: a warm one, at once, or else one that it claims in etcd. A repeated request gets
// the same address.
func (a *Agent) Grant(ctx context.Context, w Wish) (netip.Addr, error) {
	a.mu.Lock()
	n := a.networks[w.Network]
	a.mu.Unlock()
	if n == nil {
		return netip.Addr{}, fmt.Errorf("network %s is not on this host", w.Network)
	}
	if _, ok := n.Find(w.Addr); w.Addr.IsValid() && (!ok || n.isGateway(w.Addr)) {
		return netip.Addr{}, fmt.Errorf("address %s is not usable by a container on network %s", w.Addr, n.Name)
	}
	if err := a.mayGrant(); err != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
	}
	got, err := a.fromWarm(w)
	if err != nil || got.IsValid() {
		a.wakeUp()
		return got, err
	}
	const attempts = 8
	for range attempts {
		got, err = a.claim(ctx, n, w)
		if w.Addr.IsValid() || !errors.Is(err, errPending) {
			break
		}
	}
	return got, err
}

// claim claims an address in etcd for an endpoint.
func (a *Agent) claim(ctx context.Context, n *network, w Wish) (netip.Addr, error) {
	tries := []netip.Addr{w.Addr}
	if !w.Addr.IsValid() {
		var err error
		if tries, err = a.candidates(n, w.V6); err != nil {
			return netip.Addr{}, err
		}
	}
	if len(tries) == 0 {
		return netip.Addr{}, fmt.Errorf("%w on network %s: all addresses are in use", ErrNone, n.Name)
	}
	var pending error
	for _, addr := range tries {
		o := Own{Network: w.Network, Addr: addr, Use: record.Warm, Endpoint: w.Endpoint, Since: time.Now()}
		switch err := a.claimOne(ctx, n, o, w.Addr.IsValid()); {
		case err == nil:
			return addr, nil
		case w.Addr.IsValid() && errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("network %s: %w", n.Name, err)
		case errors.Is(err, errPending):
			pending = err
		case !errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
		}
	}
	if pending != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, pending)
	}
	return netip.Addr{}, fmt.Errorf("%w on network %s: other hosts claimed the last free ones", ErrNone, n.Name)
}

// errPending says that an address is recorded already: it was claimed as a warm one, or another request claims it.
var errPending = fmt.Errorf("%w by another request of this host", cluster.ErrTaken)

// candidates returns addresses that are free and that no other request of this host is claiming; those in cooldown come
// last.
func (a *Agent) candidates(n *network, v6 bool) ([]netip.Addr, error) {
	own, err := a.Own(n.ID)
	if err != nil {
		return nil, err
	}
	recent := map[netip.Addr]bool{} // claimed by this host, but not in the mirror yet
	for _, o := range own {
		if n.isFree(o.Addr) {
			recent[o.Addr] = true
		}
	}
	want := maxWarm + len(recent)
	tries := n.freeAddrs(v6, want)
	if len(tries) < want {
		tries = append(tries, n.coolingAddrs(v6, want-len(tries))...)
	}
	return slices.DeleteFunc(tries, func(addr netip.Addr) bool { return recent[addr] }), nil
}

// mayGrant returns why this host must not grant any address: its warm ones may belong to another host.
func (a *Agent) mayGrant() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(a.reason, cluster.ErrForgotten) || errors.Is(a.reason, cluster.ErrTwin) {
		return a.reason
	}
	return nil
}

// claimOne claims one address in etcd. It is recorded before, so that it is released whatever happens. Etcd does not
// tell requests of one host apart, so the database decides which of them gets an address.
func (a *Agent) claimOne(ctx context.Context, n *network, o Own, named bool) error {
	o.Trying = true
	if err := a.c.Store.Update(func(tx store.Tx) error { return reserve(tx, o, named) }); err != nil {
		return err
	}
	m := record.Member{Network: o.Network, Host: a.self}
	err := a.c.Client.ClaimAddresses(ctx, m, o.claim())
	if errors.Is(err, cluster.ErrNotFound) { // syncNetwork has not joined the new network yet
		var own []Own
		if own, err = a.Own(o.Network); err == nil {
			err = a.join(ctx, n, m, own)
		}
		if err == nil {
			err = a.c.Client.ClaimAddresses(ctx, m, o.claim())
		}
	}
	o.Trying, o.Synced = false, true
	put := func(tx store.Tx) error { return owns.Put(tx, o.key(), o) }
	if errors.Is(err, cluster.ErrTaken) {
		put = func(tx store.Tx) error { return owns.Delete(tx, o.key()) }
	} else if err != nil { // etcd may have accepted the claim all the same
		o.Endpoint, o.Gone, o.Synced = "", true, false
	}
	return errors.Join(err, a.c.Store.Update(put))
}

// reserve records that an address is being claimed, unless it is recorded already. It replaces a lost address that is
// to be released and, if the request named the address, the host's own one, for which another is claimed.
func reserve(tx store.Tx, o Own, named bool) error {
	has, err := owns.Get(tx, o.key())
	replaced := has.Lost && has.Gone || named && has.Use == record.OfHost
	switch {
	case err == nil && !replaced:
		return fmt.Errorf("address %s %w", o.Addr, errPending)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	return owns.Put(tx, o.key(), o)
}

// putNew records those addresses that are not recorded yet, and returns them; a recorded one was claimed meanwhile.
func putNew(tx store.Tx, own []Own) (put []Own, err error) {
	for _, o := range own {
		_, err := owns.Get(tx, o.key())
		if err == nil {
			continue
		}
		if errors.Is(err, store.ErrNotFound) {
			err = owns.Put(tx, o.key(), o)
		}
		if err != nil {
			return nil, err
		}
		put = append(put, o)
	}
	return put, nil
}

// releaseInterrupted marks for release the addresses that a daemon before this one was claiming when it died.
func (a *Agent) releaseInterrupted() error {
	return a.c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, "")
		if err != nil {
			return err
		}
		for _, o := range all {
			if !o.Trying {
				continue
			}
			o.Trying, o.Endpoint, o.Gone = false, "", true
			if err := owns.Put(tx, o.key(), o); err != nil {
				return err
			}
		}
		return nil
	})
}

// fromWarm returns the address that the endpoint has already, or a warm one; while etcd is away also one that is to be
// released, since it still belongs to this host then. The address is invalid if there is none.
func (a *Agent) fromWarm(w Wish) (got netip.Addr, err error) {
	away := !a.c.Client.Health().Down.IsZero()
	err = a.c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, w.Network+"/")
		if err != nil {
			return err
		}
		var best Own
		for _, o := range all {
			if o.Lost && !o.Gone && o.Addr == w.Addr {
				return fmt.Errorf("address %s %w by another host", w.Addr, cluster.ErrTaken)
			}
			if o.Lost || o.Trying || o.Use == record.OfHost || w.Addr.IsValid() && o.Addr != w.Addr ||
				!w.Addr.IsValid() && o.Addr.Is6() != w.V6 {
				continue
			}
			mine, idle := o.Endpoint == w.Endpoint, o.Endpoint == "" || o.Gone
			switch {
			case mine && !o.Gone:
				got = o.Addr
				return nil
			case !idle && w.Addr.IsValid():
				return fmt.Errorf("address %s %w by another container of this host", w.Addr, cluster.ErrTaken)
			case idle && !o.Gone, idle && w.Addr.IsValid(), idle && away && !best.Addr.IsValid():
				best = o
			}
		}
		if !best.Addr.IsValid() {
			return nil
		}
		got = best.Addr
		// The endpoint is written to etcd by Publish.
		best.Endpoint, best.Gone, best.Since = w.Endpoint, false, time.Now()
		return owns.Put(tx, best.key(), best)
	})
	return got, err
}

// Publish records the MAC and the names of an endpoint and its addresses, and has them written to etcd, where the other
// hosts see them. An address that was not granted here is claimed.
func (a *Agent) Publish(
	network string, addrs []netip.Addr, endpoint string, mac record.MAC, name string, aliases []string,
) error {
	defer a.wakeUp()
	defer a.names.markStale(network)
	return a.c.Store.Update(func(tx store.Tx) error {
		for _, addr := range addrs {
			o, err := owns.Get(tx, Own{Network: network, Addr: addr}.key())
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if o.Lost {
				return fmt.Errorf("address %s %w by another host", addr, cluster.ErrTaken)
			}
			now := Own{
				Network: network, Addr: addr, Use: record.Endpoint, Endpoint: endpoint, MAC: mac,
				Name: name, Aliases: aliases, Mute: o.Mute,
			}
			if _, err := record.Encode(now.record(a.self)); err != nil {
				return err
			}
			now.Synced = o.Synced && !o.Gone && same(o, now)
			if err := owns.Put(tx, now.key(), now); err != nil {
				return err
			}
		}
		return nil
	})
}

// record returns the claim with its key, as a record of etcd.
func (o Own) record(host string) *record.Address {
	rec := o.claim()
	rec.Network, rec.Host = o.Network, host
	return &rec
}

// same says whether two addresses have the same claim.
func same(o, p Own) bool {
	a, b := o.claim(), p.claim()
	return a.Addr == b.Addr && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC && a.Name == b.Name &&
		slices.Equal(a.Aliases, b.Aliases)
}

// Rename changes the names of a published endpoint.
func (a *Agent) Rename(network, endpoint, name string, aliases []string) error {
	return a.updateOwns(network, func(o *Own) bool {
		if o.Use != record.Endpoint || o.Endpoint != endpoint || o.Name == name && slices.Equal(o.Aliases, aliases) {
			return false
		}
		o.Name, o.Aliases, o.Synced = name, aliases, false
		return true
	})
}

// Room returns why no address of a family could be granted now: none is warm, and etcd does not answer or has none
// free.
func (a *Agent) Room(network string, v6 bool) error {
	a.mu.Lock()
	n, reason := a.networks[network], a.reason
	a.mu.Unlock()
	if down := a.c.Client.Health().Down; reason == nil && !down.IsZero() {
		reason = fmt.Errorf("%w since %s", etcd.ErrUnreachable, down.Format(time.RFC3339))
	}
	switch {
	case n == nil:
		return fmt.Errorf("network %s is not on this host", network)
	case reason == nil && len(n.freeAddrs(v6, 1)) > 0:
		return nil
	case reason == nil:
		reason = errors.New("all addresses are in use")
	}
	own, err := a.Own(network)
	if err != nil || slices.ContainsFunc(own, func(o Own) bool { return o.idle() && o.Addr.Is6() == v6 }) {
		return err
	}
	return fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, reason)
}

// idle says whether an address is warm and free for any endpoint.
func (o Own) idle() bool { return o.Use == record.Warm && o.Endpoint == "" && !o.Trying && !o.Lost }

// Withdraw undoes Publish: an endpoint is not reached by its addresses any more. They stay granted until Release.
func (a *Agent) Withdraw(network, endpoint string) error {
	return a.updateOwns(network, func(o *Own) bool {
		if o.Use != record.Endpoint || o.Endpoint != endpoint {
			return false
		}
		o.Use, o.MAC, o.Name, o.Aliases, o.Synced, o.Since = record.Warm, "", "", nil, false, time.Now()
		return true
	})
}

// Release returns a granted address.
func (a *Agent) Release(network string, addr netip.Addr) error {
	return a.updateOwns(network, func(o *Own) bool {
		if o.Addr != addr || o.Use == record.OfHost || o.Endpoint == "" {
			return false
		}
		o.Gone, o.Synced = true, false
		return true
	})
}

// updateOwns records the addresses of a network that f changes; f returns whether it changed one.
func (a *Agent) updateOwns(network string, f func(*Own) bool) error {
	defer a.wakeUp()
	defer a.names.markStale(network)
	return a.c.Store.Update(func(tx store.Tx) error {
		all, err := owns.List(tx, network+"/")
		if err != nil {
			return err
		}
		for _, o := range all {
			if !f(&o) {
				continue
			}
			if err := owns.Put(tx, o.key(), o); err != nil {
				return err
			}
		}
		return nil
	})
}

// Own returns the addresses that this host has in a network.
func (a *Agent) Own(network string) (all []Own, err error) {
	err = a.c.Store.View(func(tx store.Tx) (err error) {
		all, err = owns.List(tx, network+"/")
		return err
	})
	return all, err
}

func (n *network) isGateway(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s record.Subnet) bool { return s.Gateway == addr })
}

// freeAddrs returns up to want addresses that are free and not in cooldown. They are random, so that hosts that choose
// at the same time do not collide. In a nearly full subnet most random ones are in use; then it searches in order.
func (n *network) freeAddrs(v6 bool, want int) (found []netip.Addr) {
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

// isChoice says whether an address of a subnet can be claimed without using one in cooldown.
func (n *network) isChoice(s record.Subnet, addr netip.Addr) bool {
	return s.Usable(addr) && n.isFree(addr) && !n.isCooling(addr)
}

// isFree says whether no host has claimed an address, as far as is known.
func (n *network) isFree(addr netip.Addr) bool {
	return !n.isGateway(addr) && n.addrs.Get(record.Address{Network: n.ID, Addr: addr}.Key()) == nil
}

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
