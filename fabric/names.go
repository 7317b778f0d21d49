package fabric

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netyard/cluster"
	"netyard/store"
)

// rolls say who is called what, on the networks of this host. They have a lock of their own: who asks for a name does
// not wait for the kernel to be told of ten thousand peers.
type rolls struct {
	mu sync.Mutex
	of map[string]*roll
	// seats are where the endpoints of this host are, by their ids: two in one sandbox are one container's.
	seats map[string]seat
}

type seat struct{ network, sandbox string }

// A roll is who is called what on one network. What is called what here is in the file, and etcd may not have heard of
// it yet; the rest is as etcd has told.
type roll struct {
	cluster.Network
	far, near map[netip.Addr]called
	// stale: near may not be what the file has.
	stale bool
	// names are the addresses of each name, in lower case.
	names map[string]map[netip.Addr]int
}

// A called is an endpoint, and what it is called.
type called struct {
	endpoint string
	names    []string
}

func newRolls() *rolls { return &rolls{of: map[string]*roll{}, seats: map[string]seat{}} }

func (rs *rolls) open(n cluster.Network) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.of[n.ID] = &roll{Network: n, far: map[netip.Addr]called{}, near: map[netip.Addr]called{}, stale: true, names: map[string]map[netip.Addr]int{}}
}

func (rs *rolls) close(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.of, id)
}

// doubt says that the file may have others for a network than before.
func (rs *rolls) doubt(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.of[id]; r != nil {
		r.stale = true
	}
}

// sit notes where an endpoint is; rise that it is nowhere.
func (rs *rolls) sit(endpoint string, s seat) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.seats[endpoint] = s
}

func (rs *rolls) rise(endpoint string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.seats, endpoint)
}

// heard takes in what etcd told of addresses; those of this host are in the file.
func (rs *rolls) heard(id, self string, changes []cluster.Change) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.of[id]
	if r == nil {
		return
	}
	for _, c := range changes {
		if old, ok := c.Old.(*cluster.Address); ok {
			r.set(r.far, old.Addr, called{})
		}
		if now, ok := c.New.(*cluster.Address); ok && now.Host != self && now.Use == cluster.Endpoint {
			if names := namesOf(now.Name, now.Aliases); len(names) > 0 {
				r.set(r.far, now.Addr, called{now.Endpoint, names})
			}
		}
	}
}

func namesOf(name string, aliases []string) (all []string) {
	for _, n := range append([]string{name}, aliases...) {
		if n = strings.ToLower(n); n != "" && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return all
}

// set says what an address is called, in one of the two halves of a roll.
func (r *roll) set(half map[netip.Addr]called, a netip.Addr, c called) {
	for _, n := range half[a].names {
		if r.names[n][a]--; r.names[n][a] == 0 {
			delete(r.names[n], a)
		}
		if len(r.names[n]) == 0 {
			delete(r.names, n)
		}
	}
	if half[a] = c; c.endpoint == "" {
		delete(half, a)
	}
	for _, n := range c.names {
		if r.names[n] == nil {
			r.names[n] = map[netip.Addr]int{}
		}
		r.names[n][a]++
	}
}

// refresh makes near what the file has.
func (r *roll) refresh(st *store.Store) error {
	if !r.stale {
		return nil
	}
	var own []Own
	err := st.View(func(tx store.Tx) (err error) {
		own, err = owns.List(tx, r.ID+"/")
		return err
	})
	if err != nil {
		return err
	}
	for a := range r.near {
		r.set(r.near, a, called{})
	}
	for _, o := range own {
		if o.Use == cluster.Endpoint && !o.Gone && !o.Lost {
			r.set(r.near, o.Addr, called{o.Endpoint, namesOf(o.Name, o.Aliases)})
		}
	}
	r.stale = false
	return nil
}

// at is the roll of a network, as it is now; nil when it is not on this host.
func (rs *rolls) at(st *store.Store, id string) *roll {
	r := rs.of[id]
	if r == nil || r.refresh(st) != nil {
		return nil
	}
	return r
}

// ofAsker are the rolls of the networks that an asker is on: the one that he asks first, and, if he is a container of
// this host, those others that his sandbox is on, by their names.
func (rs *rolls) ofAsker(st *store.Store, network string, asker netip.Addr) []*roll {
	first := rs.at(st, network)
	if first == nil {
		return nil
	}
	all := []*roll{first}
	own := rs.seats[first.near[asker].endpoint]
	for _, s := range rs.seats {
		if s.sandbox == "" || s.sandbox != own.sandbox || s.network == network {
			continue
		}
		if r := rs.at(st, s.network); r != nil && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all[1:], func(a, b *roll) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Lookup is the addresses of those that an asker, who has an address of a network, knows by a name, which is in lower
// case: on that network, or on another one that he is on. NAME.NETWORK is who is called NAME on NETWORK.
func (a *Agent) Lookup(network string, asker netip.Addr, name string) (addrs []netip.Addr) {
	a.rolls.mu.Lock()
	defer a.rolls.mu.Unlock()
	for _, r := range a.rolls.ofAsker(a.c.Store, network, asker) {
		found := r.names[name]
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(r.Name)); ok && len(found) == 0 {
			found = r.names[short]
		}
		for addr := range found {
			addrs = append(addrs, addr)
		}
		if len(addrs) > 0 {
			break
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// NameOf is how an address is called that is on one of an asker's networks; ours is false when it is on none of them,
// and the name is empty when nobody is known to have it.
func (a *Agent) NameOf(network string, asker, addr netip.Addr) (name string, ours bool) {
	a.rolls.mu.Lock()
	defer a.rolls.mu.Unlock()
	for _, r := range a.rolls.ofAsker(a.c.Store, network, asker) {
		if !slices.ContainsFunc(r.Subnets, func(s cluster.Subnet) bool { return s.Pool.Contains(addr) }) {
			continue
		}
		for _, half := range []map[netip.Addr]called{r.near, r.far} {
			if names := half[addr].names; len(names) > 0 {
				return names[0] + "." + r.Name, true
			}
		}
		return "", true
	}
	return "", false
}

// Here are the networks that are on this host.
func (a *Agent) Here() (all []Bound) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		all = append(all, n.Bound)
	}
	return all
}

// Moved tells that a network came to this host, or went.
func (a *Agent) Moved() <-chan struct{} { return a.moved }

func (a *Agent) tellMoved() {
	select {
	case a.moved <- struct{}{}:
	default:
	}
}
