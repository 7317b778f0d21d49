package fabric

import (
	"maps"
	"net/netip"

	"netyard/cluster"
)

// Status is how this host fares as a member.
type Status struct {
	Host   string
	Meta   cluster.Meta
	Health cluster.Health
	// Reason is why it is no member at the moment; empty: it is one.
	Reason         string
	Hosts, Members cluster.MirrorStatus
	Networks       map[string]NetworkStatus
}

// A NetworkStatus is how a network on this host fares.
type NetworkStatus struct {
	Name      string
	Addresses cluster.MirrorStatus
	Peers     int
	Refused   map[netip.Addr]string
	// Warm is how many addresses are in store, Waiting how many etcd has not heard of yet, Lost how many are others'.
	Warm, Waiting, Lost int
	// Fenced says why endpoints are cut off, by their ids.
	Fenced map[string]string
	// Unsure: the kernel may not know of all peers. Shut: nothing gets in or out for a moment, see Agent.join.
	Unsure, Shut bool
}

// Status says it.
func (a *Agent) Status() (Status, error) {
	s := Status{Health: a.c.Client.Health(), Hosts: a.hosts.Status(), Members: a.members.Status(), Networks: map[string]NetworkStatus{}}
	a.mu.Lock()
	s.Host, s.Meta = a.who.Host, a.who.Meta
	if a.reason != nil {
		s.Reason = a.reason.Error()
	}
	for id, n := range a.networks {
		s.Networks[id] = NetworkStatus{Name: n.Name, Addresses: n.addrs.Status(), Peers: len(n.book.Peers()), Refused: n.book.Refused(), Fenced: maps.Clone(n.fenced), Unsure: n.unsure, Shut: n.shut}
	}
	a.mu.Unlock()
	for id, n := range s.Networks {
		own, err := a.Own(id)
		if err != nil {
			return s, err
		}
		for _, o := range own {
			switch {
			case o.Lost:
				n.Lost++
			case !o.Synced:
				n.Waiting++
			case o.Use == cluster.Warm && o.Endpoint == "":
				n.Warm++
			}
		}
		s.Networks[id] = n
	}
	return s, nil
}
