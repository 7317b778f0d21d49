package fabric

import (
	"errors"
	"maps"
	"net/netip"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
)

// Status is the state of this host as a member of the cluster.
type Status struct {
	Host   string
	Meta   record.Meta
	Health etcd.Health
	// Reason is why it is not a member at the moment; empty: it is one. Advice is what to do about that.
	Reason, Advice string
	// Clear is why it cannot encrypt; empty: it can.
	Clear          string
	Hosts, Members mirror.Status
	Networks       map[string]NetworkStatus
}

// A NetworkStatus is the state of a network on this host.
type NetworkStatus struct {
	Name      string
	Addresses mirror.Status
	Peers     int
	Refused   map[netip.Addr]string
	// Warm counts spare addresses, Waiting those that etcd does not have yet, and Lost those that are other hosts' now.
	Warm, Waiting, Lost int
	// Fenced says why endpoints are fenced, by their IDs.
	Fenced map[string]string
	// Unsure says that the kernel may lack peers, and Shut that all traffic is blocked for a moment, see Agent.join.
	Unsure, Shut bool
	// Encrypted says that traffic between hosts is inside WireGuard. Left are hosts of the network that cannot encrypt.
	Encrypted bool
	Left      []string
}

// advice returns what an admin can do when the host is not a member for this reason; empty: nothing on this host.
func advice(reason error) string {
	for _, a := range []struct {
		why  error
		what string
	}{
		{etcd.ErrUnreachable, "bring etcd back; running containers are not affected, new ones get spare addresses " +
			"while there are any, and changes are written to etcd when it is back"},
		{cluster.ErrForgotten, "all overlay traffic of this host is blocked; netyard cluster rejoin re-admits it, " +
			"without the addresses that other hosts got meanwhile"},
		{cluster.ErrTwin, "if this machine is a copy of that one, it needs an ID of its own: stop netyard, " +
			"remove netyard.db and netyard.db.kept from its state_dir, and start it"},
		{etcd.ErrOther, "nothing is changed on this host, and nothing is written to etcd; restore this host's " +
			"cluster from a backup of etcd, however old, or correct etcd.endpoints and etcd.prefix"},
		{cluster.ErrTaken, "give this host another overlay.name or overlay.address, or run netyard cluster forget on " +
			"another host if the host that has it no longer exists"},
	} {
		if errors.Is(reason, a.why) {
			return a.what
		}
	}
	return ""
}

// Status returns the state of this host as a member of the cluster.
func (a *Agent) Status() (Status, error) {
	s := Status{
		Health: a.c.Client.Health(), Hosts: a.hosts.Status(), Members: a.members.Status(),
		Networks: map[string]NetworkStatus{},
	}
	a.mu.Lock()
	s.Host, s.Meta = a.who.Host, a.who.Meta
	if a.reason != nil {
		s.Reason, s.Advice = a.reason.Error(), advice(a.reason)
	}
	for id, n := range a.networks {
		s.Networks[id] = n.status()
	}
	a.mu.Unlock()
	if why := a.tunnel.Clear(); why != nil {
		s.Clear = why.Error()
	}
	for id, n := range s.Networks {
		own, err := a.addresses.List(id)
		if err != nil {
			return s, err
		}
		for _, o := range own {
			switch {
			case o.Lost:
				n.Lost++
			case !o.Synced:
				n.Waiting++
			case o.Use == record.Warm && o.Endpoint == "":
				n.Warm++
			}
		}
		s.Networks[id] = n
	}
	return s, nil
}

// status returns the state of a network without its addresses. The caller holds the Agent's lock.
func (n *network) status() NetworkStatus {
	p := n.plane.Status()
	return NetworkStatus{
		Name: n.Name, Addresses: n.claims.Status(), Peers: p.Peers, Refused: p.Refused,
		Fenced: maps.Clone(n.fenced), Unsure: p.Unsure, Shut: p.Shut, Encrypted: n.Encrypted, Left: p.Left,
	}
}
