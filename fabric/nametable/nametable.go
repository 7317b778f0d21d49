// Package nametable holds what endpoints of overlay networks are called: those of this host by its database, those of
// other hosts by etcd.
package nametable

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netyard/cluster/record"
	"netyard/fabric/address"
)

// Tables hold the names of endpoints, on the networks of this host.
type Tables struct {
	// self is this host's ID, and own returns its addresses on a network.
	self string
	own  func(network string) ([]address.Own, error)

	mu sync.Mutex
	of map[string]*table
	// places says where the endpoints of this host are, by their IDs: two in one sandbox are one container's.
	places map[string]Place
}

// A Place is the network and the sandbox of an endpoint.
type Place struct{ Network, Sandbox string }

// A table holds the names on one network. Those of this host's endpoints are taken from the database, since etcd may
// not have them yet; the others from etcd.
type table struct {
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

// New makes Tables for the host self; own returns its addresses on a network.
func New(self string, own func(network string) ([]address.Own, error)) *Tables {
	return &Tables{self: self, own: own, of: map[string]*table{}, places: map[string]Place{}}
}

// Add makes an empty table for a network.
func (t *Tables) Add(n record.Network) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of[n.ID] = &table{
		Network: n, remote: map[netip.Addr]namedEndpoint{}, local: map[netip.Addr]namedEndpoint{}, stale: true,
		names: map[string]map[netip.Addr]int{},
	}
}

// Remove removes the table of a network.
func (t *Tables) Remove(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.of, id)
}

// Stale says that names of a network may have changed in the database.
func (t *Tables) Stale(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.of[id]; r != nil {
		r.stale = true
	}
}

// SetPlace records where an endpoint is.
func (t *Tables) SetPlace(endpoint string, s Place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places[endpoint] = s
}

// RemovePlace undoes SetPlace.
func (t *Tables) RemovePlace(endpoint string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.places, endpoint)
}

// Apply applies changes of address records; those of this host are ignored, since the database has them.
func (t *Tables) Apply(id string, changes []record.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.of[id]
	if r == nil {
		return
	}
	for _, c := range changes {
		if old, ok := c.Old.(*record.Address); ok {
			r.set(r.remote, old.Addr, namedEndpoint{})
		}
		if now, ok := c.New.(*record.Address); ok && now.Host != t.self && now.Use == record.Endpoint {
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
func (r *table) set(half map[netip.Addr]namedEndpoint, a netip.Addr, c namedEndpoint) {
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
func (r *table) refresh(own func(network string) ([]address.Own, error)) error {
	if !r.stale {
		return nil
	}
	all, err := own(r.ID)
	if err != nil {
		return err
	}
	for a := range r.local {
		r.set(r.local, a, namedEndpoint{})
	}
	for _, o := range all {
		if o.Use == record.Endpoint && !o.Gone && !o.Lost {
			r.set(r.local, o.Addr, namedEndpoint{o.Endpoint, namesOf(o.Name, o.Aliases)})
		}
	}
	r.stale = false
	return nil
}

// current returns the refreshed table of a network; nil when the network is not on this host.
func (t *Tables) current(id string) *table {
	r := t.of[id]
	if r == nil || r.refresh(t.own) != nil {
		return nil
	}
	return r
}

// visibleTo returns the tables that a client may use: first that of the network it asks on, then, if the client is a
// container of this host, those of the other networks that its sandbox is on, sorted by name.
func (t *Tables) visibleTo(network string, asker netip.Addr) []*table {
	first := t.current(network)
	if first == nil {
		return nil
	}
	all := []*table{first}
	own := t.places[first.local[asker].endpoint]
	for _, s := range t.places {
		if s.Sandbox == "" || s.Sandbox != own.Sandbox || s.Network == network {
			continue
		}
		if r := t.current(s.Network); r != nil && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all[1:], func(a, b *table) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Lookup returns the addresses that a name, in lower case, has for a client with the address asker on a network: on
// that network, or else on another network that the client is on. NAME.NETWORK means the name NAME on NETWORK.
func (t *Tables) Lookup(network string, asker netip.Addr, name string) (addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.visibleTo(network, asker) {
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
func (t *Tables) NameOf(network string, asker, addr netip.Addr) (name string, ours bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.visibleTo(network, asker) {
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
