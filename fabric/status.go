package fabric

import (
	"errors"
	"maps"
	"net/netip"

	"netyard/cluster"
)

// Status is how this host fares as a member.
type Status struct {
	Host   string
	Meta   cluster.Meta
	Health cluster.Health
	// Reason is why it is no member at the moment; empty: it is one. Advice is what to do about that.
	Reason, Advice string
	// Clear is why it can encrypt nothing; empty: it can.
	Clear          string
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
	// Encrypted: what is between the hosts is inside WireGuard. Left are hosts of the network that cannot do that.
	Encrypted bool
	Left      []string
}

// advice is what somebody can do about a host that is no member; empty: nothing is to be done here.
func advice(reason error) string {
	for _, a := range []struct {
		why  error
		what string
	}{
		{cluster.ErrUnreachable, "containers go on, and new ones get addresses that are in store; what etcd has not heard of it is told when it is back"},
		{cluster.ErrForgotten, "nothing of the overlays gets in or out; netyard cluster rejoin has this host back, without the addresses that others were given meanwhile"},
		{cluster.ErrTwin, "if this machine is a copy of that one, it needs an id of its own: stop netyard, remove netyard.db and netyard.db.kept from its state_dir, and start it"},
		{cluster.ErrOther, "nothing is changed here, and nothing is written there; give this host's cluster back to etcd from a backup, however old, or correct etcd.endpoints and etcd.prefix"},
		{cluster.ErrTaken, "give this host another overlay.name or overlay.address, or say netyard cluster forget on another host if the one that has it is no more"},
	} {
		if errors.Is(reason, a.why) {
			return a.what
		}
	}
	return ""
}

// Status says it.
func (a *Agent) Status() (Status, error) {
	s := Status{Health: a.c.Client.Health(), Hosts: a.hosts.Status(), Members: a.members.Status(), Networks: map[string]NetworkStatus{}}
	a.mu.Lock()
	s.Host, s.Meta = a.who.Host, a.who.Meta
	if a.reason != nil {
		s.Reason, s.Advice = a.reason.Error(), advice(a.reason)
	}
	if a.tunnel.clear != nil {
		s.Clear = a.tunnel.clear.Error()
	}
	for id, n := range a.networks {
		s.Networks[id] = NetworkStatus{
			Name: n.Name, Addresses: n.addrs.Status(), Peers: len(n.book.Peers()), Refused: n.book.Refused(), Fenced: maps.Clone(n.fenced),
			Unsure: n.unsure, Shut: n.shut, Encrypted: n.Encrypted, Left: n.book.Unencrypted(),
		}
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
