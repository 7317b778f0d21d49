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
	"netyard/store"
)

// An Own is an address that this host has claimed. Synced says that etcd has it so.
type Own struct {
	Network  string
	Addr     netip.Addr
	Use      cluster.Use
	Endpoint string      `json:",omitempty"`
	MAC      cluster.MAC `json:",omitempty"`
	Name     string      `json:",omitempty"`
	Aliases  []string    `json:",omitempty"`
	Synced   bool        `json:",omitempty"`
	// Since is since when an endpoint has it that is not reached by it: it is about to come, or was forgotten.
	Since time.Time `json:",omitzero"`
	// Trying: it is being asked for in etcd, and nobody has been told that he has it.
	Trying bool `json:",omitempty"`
	// Gone: it is to be given up.
	Gone bool `json:",omitempty"`
	// Lost: etcd says that it is another host's. It is claimed again when nobody has it any more; until then its
	// endpoint is fenced.
	Lost bool `json:",omitempty"`
	// Mute: its endpoint is fenced for another address, so nobody is told that anybody is reached by this one. The
	// hardware address is the same for both, and it may be another host's as well.
	Mute bool `json:",omitempty"`
}

// owns are the addresses of this host, by network and address.
var owns = store.Bucket[Own]{Name: "overlay_addresses"}

func (o Own) key() string { return o.Network + "/" + o.Addr.String() }

// claim is what etcd is told of it. Who is to have an address of the store is nobody's business yet.
func (o Own) claim() cluster.Address {
	if o.Use == cluster.Warm || o.Mute {
		return cluster.Address{Addr: o.Addr, Use: cluster.Warm}
	}
	return cluster.Address{Addr: o.Addr, Use: o.Use, Endpoint: o.Endpoint, MAC: o.MAC, Name: o.Name, Aliases: o.Aliases}
}

// A Wish is what an endpoint asks for in a network.
type Wish struct {
	Network  string // its id in the cluster
	Endpoint string
	// Addr is the one that it must be; invalid: any, of the family that V6 says.
	Addr netip.Addr
	V6   bool
}

// warmest is how many addresses of a family are kept in store, at most.
const warmest = 8

// ErrNone says that no address can be had.
var ErrNone = errors.New("no address can be claimed")

// Grant gives an endpoint an address: one in store, at once, or else one that is claimed in etcd now. Asked again, it
// is the same.
func (a *Agent) Grant(ctx context.Context, w Wish) (netip.Addr, error) {
	a.mu.Lock()
	n := a.networks[w.Network]
	a.mu.Unlock()
	if n == nil {
		return netip.Addr{}, fmt.Errorf("network %s is not on this host", w.Network)
	}
	if _, ok := n.Find(w.Addr); w.Addr.IsValid() && (!ok || n.isGateway(w.Addr)) {
		return netip.Addr{}, fmt.Errorf("address %s is none that a container on network %s can have", w.Addr, n.Name)
	}
	if err := a.mayGrant(); err != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
	}
	got, err := a.fromStore(w)
	if err != nil || got.IsValid() {
		a.poke()
		return got, err
	}
	const looks = 8
	for range looks {
		got, err = a.claim(ctx, n, w)
		if w.Addr.IsValid() || !errors.Is(err, errAsked) {
			break
		}
	}
	return got, err
}

// claim gives an endpoint an address that is claimed in etcd now.
func (a *Agent) claim(ctx context.Context, n *network, w Wish) (netip.Addr, error) {
	tries := []netip.Addr{w.Addr}
	if !w.Addr.IsValid() {
		var err error
		if tries, err = a.candidates(n, w.V6); err != nil {
			return netip.Addr{}, err
		}
	}
	if len(tries) == 0 {
		return netip.Addr{}, fmt.Errorf("%w on network %s: all are taken", ErrNone, n.Name)
	}
	var asked error
	for _, addr := range tries {
		o := Own{Network: w.Network, Addr: addr, Use: cluster.Warm, Endpoint: w.Endpoint, Since: time.Now()}
		switch err := a.try(ctx, n, o, w.Addr.IsValid()); {
		case err == nil:
			return addr, nil
		case w.Addr.IsValid() && errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("network %s: %w", n.Name, err)
		case errors.Is(err, errAsked):
			asked = err
		case !errors.Is(err, cluster.ErrTaken):
			return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, err)
		}
	}
	if asked != nil {
		return netip.Addr{}, fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, asked)
	}
	return netip.Addr{}, fmt.Errorf("%w on network %s: others took the last ones", ErrNone, n.Name)
}

// errAsked says that an address is recorded already: it came into store, or another request asks for it.
var errAsked = fmt.Errorf("%w by another request of this host", cluster.ErrTaken)

// candidates are addresses that nobody has and no other request of this host is asking for; those that rest come last.
func (a *Agent) candidates(n *network, v6 bool) ([]netip.Addr, error) {
	own, err := a.Own(n.ID)
	if err != nil {
		return nil, err
	}
	recent := map[netip.Addr]bool{} // etcd has not told of them yet
	for _, o := range own {
		if n.isFree(o.Addr) {
			recent[o.Addr] = true
		}
	}
	want := warmest + len(recent)
	tries := n.free(v6, want)
	if len(tries) < want {
		tries = append(tries, n.rested(v6, want-len(tries))...)
	}
	return slices.DeleteFunc(tries, func(addr netip.Addr) bool { return recent[addr] }), nil
}

// mayGrant says why what this host has in store is not its own to give.
func (a *Agent) mayGrant() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(a.reason, cluster.ErrForgotten) || errors.Is(a.reason, cluster.ErrTwin) {
		return a.reason
	}
	return nil
}

// try claims an address in etcd. It is recorded before, so that whatever happens somebody knows that it has to be given
// back. Etcd does not tell a host's requests apart, so which of them has an address is decided by the host's file.
func (a *Agent) try(ctx context.Context, n *network, o Own, named bool) error {
	o.Trying = true
	if err := a.c.Store.Update(func(tx store.Tx) error { return reserve(tx, o, named) }); err != nil {
		return err
	}
	m := cluster.Member{Network: o.Network, Host: a.self}
	err := a.c.Client.ClaimAddresses(ctx, m, o.claim())
	if errors.Is(err, cluster.ErrNotFound) { // the network has just been made here, and this is faster
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
	} else if err != nil { // etcd may have done it all the same
		o.Endpoint, o.Gone, o.Synced = "", true, false
	}
	return errors.Join(err, a.c.Store.Update(put))
}

// reserve records that an address is being asked for, unless it is recorded already.
// What is about to be forgotten may be asked for; and by its name the host's own address, which is replaced.
func reserve(tx store.Tx, o Own, named bool) error {
	has, err := owns.Get(tx, o.key())
	replaced := has.Lost && has.Gone || named && has.Use == cluster.OfHost
	switch {
	case err == nil && !replaced:
		return fmt.Errorf("address %s %w", o.Addr, errAsked)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	return owns.Put(tx, o.key(), o)
}

// putNew records those addresses that are not recorded, and says which ones: what is recorded was taken meanwhile.
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

// recover gives up what a daemon before this one asked for and did not live to tell of.
func (a *Agent) recover() error {
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

// fromStore gives what the endpoint has already, or an address that is kept in store; while etcd is away also one that
// is to be given up, since it does not go before etcd is back. Invalid: there is none.
func (a *Agent) fromStore(w Wish) (got netip.Addr, err error) {
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
			if o.Lost || o.Trying || o.Use == cluster.OfHost || w.Addr.IsValid() && o.Addr != w.Addr || !w.Addr.IsValid() && o.Addr.Is6() != w.V6 {
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
		best.Endpoint, best.Gone, best.Since = w.Endpoint, false, time.Now() // what it is for etcd hears when it is known, see Publish
		return owns.Put(tx, best.key(), best)
	})
	return got, err
}

// Publish says how addresses are reached that an endpoint has, and by which names it is known. The others hear of it
// when etcd does. One that was not granted here is claimed.
func (a *Agent) Publish(network string, addrs []netip.Addr, endpoint string, mac cluster.MAC, name string, aliases []string) error {
	defer a.poke()
	defer a.rolls.doubt(network)
	return a.c.Store.Update(func(tx store.Tx) error {
		for _, addr := range addrs {
			o, err := owns.Get(tx, Own{Network: network, Addr: addr}.key())
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if o.Lost {
				return fmt.Errorf("address %s %w by another host", addr, cluster.ErrTaken)
			}
			now := Own{Network: network, Addr: addr, Use: cluster.Endpoint, Endpoint: endpoint, MAC: mac, Name: name, Aliases: aliases, Mute: o.Mute}
			if _, err := cluster.Encode(now.record(a.self)); err != nil {
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

// record is the claim as it is in etcd.
func (o Own) record(host string) *cluster.Address {
	rec := o.claim()
	rec.Network, rec.Host = o.Network, host
	return &rec
}

// same says whether etcd is told the same of two.
func same(o, p Own) bool {
	a, b := o.claim(), p.claim()
	return a.Addr == b.Addr && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC && a.Name == b.Name && slices.Equal(a.Aliases, b.Aliases)
}

// Rename says by which names an endpoint is known that was published.
func (a *Agent) Rename(network, endpoint, name string, aliases []string) error {
	return a.edit(network, func(o *Own) bool {
		if o.Use != cluster.Endpoint || o.Endpoint != endpoint || o.Name == name && slices.Equal(o.Aliases, aliases) {
			return false
		}
		o.Name, o.Aliases, o.Synced = name, aliases, false
		return true
	})
}

// Room says why no address of a family could be granted now: there is none in store, and etcd cannot be asked.
func (a *Agent) Room(network string, v6 bool) error {
	a.mu.Lock()
	n, reason := a.networks[network], a.reason
	a.mu.Unlock()
	if down := a.c.Client.Health().Down; reason == nil && !down.IsZero() {
		reason = fmt.Errorf("%w since %s", cluster.ErrUnreachable, down.Format(time.RFC3339))
	}
	switch {
	case n == nil:
		return fmt.Errorf("network %s is not on this host", network)
	case reason == nil && len(n.free(v6, 1)) > 0:
		return nil
	case reason == nil:
		reason = errors.New("all are taken")
	}
	own, err := a.Own(network)
	if err != nil || slices.ContainsFunc(own, func(o Own) bool { return o.idle() && o.Addr.Is6() == v6 }) {
		return err
	}
	return fmt.Errorf("%w on network %s: %w", ErrNone, n.Name, reason)
}

// idle says whether an address is in store for whoever comes.
func (o Own) idle() bool { return o.Use == cluster.Warm && o.Endpoint == "" && !o.Trying && !o.Lost }

// Withdraw says that nobody is reached by an endpoint's addresses any more. They stay granted until they are released.
func (a *Agent) Withdraw(network, endpoint string) error {
	return a.edit(network, func(o *Own) bool {
		if o.Use != cluster.Endpoint || o.Endpoint != endpoint {
			return false
		}
		o.Use, o.MAC, o.Name, o.Aliases, o.Synced, o.Since = cluster.Warm, "", "", nil, false, time.Now()
		return true
	})
}

// Release gives an address back.
func (a *Agent) Release(network string, addr netip.Addr) error {
	return a.edit(network, func(o *Own) bool {
		if o.Addr != addr || o.Use == cluster.OfHost || o.Endpoint == "" {
			return false
		}
		o.Gone, o.Synced = true, false
		return true
	})
}

// edit changes the addresses of a network that f says.
func (a *Agent) edit(network string, f func(*Own) bool) error {
	defer a.poke()
	defer a.rolls.doubt(network)
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

// Own are the addresses that this host has in a network.
func (a *Agent) Own(network string) (all []Own, err error) {
	err = a.c.Store.View(func(tx store.Tx) (err error) {
		all, err = owns.List(tx, network+"/")
		return err
	})
	return all, err
}

func (n *network) isGateway(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s cluster.Subnet) bool { return s.Gateway == addr })
}

// free are some addresses that nobody is known to have and that do not rest, at random: hosts that look at the same
// time do not meet. In a subnet that is nearly full, random ones are mostly taken; then they are looked for one after
// the other.
func (n *network) free(v6 bool, want int) (found []netip.Addr) {
	for _, s := range n.Subnets {
		if s.Pool.Addr().Is6() != v6 {
			continue
		}
		for range 4 * want {
			if addr := random(s.Pool); len(found) < want && s.Usable(addr) && n.isFree(addr) && !n.rests(addr) && !slices.Contains(found, addr) {
				found = append(found, addr)
			}
		}
		const most = 1 << 16
		addr := s.Pool.Addr()
		for i := 0; len(found) < want && i < most && s.Pool.Contains(addr); i++ {
			if s.Usable(addr) && n.isFree(addr) && !n.rests(addr) && !slices.Contains(found, addr) {
				found = append(found, addr)
			}
			addr = addr.Next()
		}
	}
	return found
}

func (n *network) isFree(addr netip.Addr) bool {
	return !n.isGateway(addr) && n.addrs.Get(cluster.Address{Network: n.ID, Addr: addr}.Key()) == nil
}

// random is an address of a subnet. Of an IPv6 one it is among its first, so that people can read it.
func random(p netip.Prefix) netip.Addr {
	const short = 16
	b := p.Addr().AsSlice()
	free := min(p.Addr().BitLen()-p.Bits(), 32)
	if p.Addr().Is6() {
		free = min(free, short)
	}
	offset := rand.Uint32() >> (32 - free) //nolint:gosec // it need not be secret
	for i := range 4 {
		b[len(b)-1-i] |= byte(offset >> (8 * i))
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
