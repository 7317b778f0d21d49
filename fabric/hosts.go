package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"netyard/cluster"
	"netyard/cluster/record"
)

// A RemoteEndpoint is an endpoint of a network, on any host.
type RemoteEndpoint struct {
	record.Address
	// HostName is the name of its host; empty when it is not known.
	HostName string
}

// Endpoints returns the endpoints, on all hosts, of a network that is on this host, as far as they are known. It does
// not ask etcd.
func (a *Agent) Endpoints(network string) (all []RemoteEndpoint) {
	n := a.network(network)
	if n == nil {
		return nil
	}
	n.claims.Each(func(r record.Record) {
		if addr, ok := r.(*record.Address); ok && addr.Use == record.Endpoint {
			all = append(all, RemoteEndpoint{Address: *addr})
		}
	})
	for i := range all {
		if h, ok := a.hosts.Get(record.Host{ID: all[i].Host}.Key()).(*record.Host); ok {
			all[i].HostName = h.Name
		}
	}
	slices.SortFunc(all, func(a, b RemoteEndpoint) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Forget removes a host from the cluster, by its name or ID, and returns it. It refuses to remove this host, which
// runs.
func (a *Agent) Forget(ctx context.Context, host string) (cluster.Member, error) {
	all, err := a.c.Client.Members(ctx)
	if err != nil {
		return cluster.Member{}, err
	}
	at := slices.IndexFunc(all, func(m cluster.Member) bool { return m.Name == host || m.ID == host })
	switch {
	case at < 0:
		return cluster.Member{}, fmt.Errorf("host %s %w", host, cluster.ErrNotFound)
	case all[at].ID == a.self:
		return all[at], errors.New("forget host: this host cannot remove itself; run it on another host")
	}
	return all[at], a.c.Client.Forget(ctx, all[at].ID, a.c.Host.Name)
}

// Rejoin re-admits this host after it was removed from the cluster. Addresses that other hosts got meanwhile stay
// theirs.
func (a *Agent) Rejoin(ctx context.Context) error {
	if !errors.Is(a.whyNoMember(), cluster.ErrForgotten) {
		return errors.New("rejoin: this host was not removed from the cluster")
	}
	return a.c.Client.Readmit(ctx, a.self)
}
