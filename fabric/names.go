package fabric

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netyard/cluster/record"
	"netyard/store"
)

// nameTables hold the names of endpoints, on the networks of this host. They have a lock of their own, so that a lookup
// does not wait while the kernel is given ten thousand peers.
type nameTables struct {
	mu sync.Mutex
	of map[string]*nameTable
	// places says where the endpoints of this host are, by their IDs: two in one sandbox are one container's.
	places map[string]place
}

// A place is the network and the sandbox of an endpoint.
type place struct{ network, sandbox string }

// A nameTable holds the names on one network. Those of this host's endpoints are taken from the database, since etcd
// may not have them yet; the others from etcd.
type nameTable struct {
	record.Network
	remote, local map[netip.Addr]namedEndpoint
	// stale says that local may differ from the database.
	stale bool
	// names holds the addresses of each name, in lower case; the number counts how often an address has the name.
	names map[string]map[netip.Addr]int
}

// A namedEndpoint is an endpoint with its names.
type namedEndpoint struct {
	endpoint string
	names    []string
}

func newNameTables() *nameTables {
	return &nameTables{of: map[string]*nameTable{}, places: map[string]place{}}
}

func (rs *nameTables) open(n record.Network) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.of[n.ID] = &nameTable{
		Network: n, remote: map[netip.Addr]namedEndpoint{}, local: map[netip.Addr]namedEndpoint{}, stale: true,
		names: map[string]map[netip.Addr]int{},
	}
}

func (rs *nameTables) close(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.of, id)
}

// markStale says that names of a network may have changed in the database.
func (rs *nameTables) markStale(id string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.of[id]; r != nil {
		r.stale = true
	}
}

// setPlace records where an endpoint is.
func (rs *nameTables) setPlace(endpoint string, s place) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.places[endpoint] = s
}

func (rs *nameTables) removePlace(endpoint string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.places, endpoint)
}

// apply applies changes of address records; those of this host are ignored, since the database has them.
func (rs *nameTables) apply(id, self string, changes []record.Change) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.of[id]
	if r == nil {
		return
	}
	for _, c := range changes {
		if old, ok := c.Old.(*record.Address); ok {
			r.set(r.remote, old.Addr, namedEndpoint{})
		}
		if now, ok := c.New.(*record.Address); ok && now.Host != self && now.Use == record.Endpoint {
			if names := namesOf(now.Name, now.Aliases); len(names) > 0 {
				r.set(r.remote, now.Addr, namedEndpoint{now.Endpoint, names})
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

// set sets the names of an address in one of the two halves of a table, local or remote; the zero value removes it.
func (r *nameTable) set(half map[netip.Addr]namedEndpoint, a netip.Addr, c namedEndpoint) {
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

// refresh loads local from the database if it is stale.
func (r *nameTable) refresh(st *store.Store) error {
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
	for a := range r.local {
		r.set(r.local, a, namedEndpoint{})
	}
	for _, o := range own {
		if o.Use == record.Endpoint && !o.Gone && !o.Lost {
			r.set(r.local, o.Addr, namedEndpoint{o.Endpoint, namesOf(o.Name, o.Aliases)})
		}
	}
	r.stale = false
	return nil
}

// current returns the refreshed table of a network; nil when the network is not on this host.
func (rs *nameTables) current(st *store.Store, id string) *nameTable {
	r := rs.of[id]
	if r == nil || r.refresh(st) != nil {
		return nil
	}
	return r
}

// visibleTo returns the tables that a client may use: first that of the network it asks on, then, if the client is a
// container of this host, those of the other networks that its sandbox is on, sorted by name.
func (rs *nameTables) visibleTo(st *store.Store, network string, asker netip.Addr) []*nameTable {
	first := rs.current(st, network)
	if first == nil {
		return nil
	}
	all := []*nameTable{first}
	own := rs.places[first.local[asker].endpoint]
	for _, s := range rs.places {
		if s.sandbox == "" || s.sandbox != own.sandbox || s.network == network {
			continue
		}
		if r := rs.current(st, s.network); r != nil && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all[1:], func(a, b *nameTable) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Lookup returns the addresses that a name, in lower case, has for a client with the address asker on a network: on
// that network, or else on another network that the client is on. NAME.NETWORK means the name NAME on NETWORK.
func (a *Agent) Lookup(network string, asker netip.Addr, name string) (addrs []netip.Addr) {
	a.names.mu.Lock()
	defer a.names.mu.Unlock()
	for _, r := range a.names.visibleTo(a.c.Store, network, asker) {
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

// NameOf returns the name of an address on one of the client's networks, as for Lookup; ours is false when it is on
// none of them, and the name is empty when no endpoint is known to have the address.
func (a *Agent) NameOf(network string, asker, addr netip.Addr) (name string, ours bool) {
	a.names.mu.Lock()
	defer a.names.mu.Unlock()
	for _, r := range a.names.visibleTo(a.c.Store, network, asker) {
		if !slices.ContainsFunc(r.Subnets, func(s record.Subnet) bool { return s.Pool.Contains(addr) }) {
			continue
		}
		for _, half := range []map[netip.Addr]namedEndpoint{r.local, r.remote} {
			if names := half[addr].names; len(names) > 0 {
				return names[0] + "." + r.Name, true
			}
		}
		return "", true
	}
	return "", false
}

// Here returns the networks that are on this host.
func (a *Agent) Here() (all []Bound) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		all = append(all, n.Bound)
	}
	return all
}

// Moved returns a channel that receives when a network was bound to this host or unbound.
func (a *Agent) Moved() <-chan struct{} { return a.moved }

func (a *Agent) notifyMoved() {
	select {
	case a.moved <- struct{}{}:
	default:
	}
}
