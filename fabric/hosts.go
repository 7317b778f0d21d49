package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// A Member is a host of the cluster as recorded in etcd.
type Member struct {
	record.Host
	Alive    bool
	Networks []string // their names
}

// Members asks etcd for the hosts of the cluster.
func (a *Agent) Members(ctx context.Context) (all []Member, err error) {
	byID, names := map[string]*Member{}, map[string]string{}
	for _, prefix := range []string{"host/", "alive/", "net/", "member/"} {
		recs, err := a.c.Client.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for _, r := range recs {
			switch r := r.(type) {
			case *record.Host:
				byID[r.ID] = &Member{Host: *r}
			case *record.Network:
				names[r.ID] = r.Name
			case *record.Alive:
				if m := byID[r.Host]; m != nil {
					m.Alive = true
				}
			case *record.Member:
				if m := byID[r.Host]; m != nil {
					m.Networks = append(m.Networks, names[r.Network])
				}
			}
		}
	}
	for _, m := range byID {
		slices.Sort(m.Networks)
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// An Overlay is a network of the cluster as recorded in etcd, with the names of its hosts.
type Overlay struct {
	record.Network
	Hosts []string
}

// Overlays asks etcd for the networks of the cluster.
func (a *Agent) Overlays(ctx context.Context) (all []Overlay, err error) {
	members, err := a.Members(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := a.c.Client.List(ctx, "net/")
	for _, r := range nets {
		n, ok := r.(*record.Network)
		if !ok {
			continue
		}
		o := Overlay{Network: *n}
		for _, m := range members {
			if slices.Contains(m.Networks, n.Name) {
				o.Hosts = append(o.Hosts, m.Name)
			}
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b Overlay) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// RemoveOverlay deletes a network from etcd that is on no host any more.
func (a *Agent) RemoveOverlay(ctx context.Context, name string) error {
	all, err := a.Overlays(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(o Overlay) bool { return o.Name == name })
	if at < 0 {
		return fmt.Errorf("network %s %w", name, cluster.ErrNotFound)
	}
	if hosts := all[at].Hosts; len(hosts) > 0 {
		return fmt.Errorf("network %s %w on %s; remove it there, or run netyard cluster forget for a host that is gone",
			name, etcd.ErrInUse, strings.Join(hosts, ", "))
	}
	return a.c.Client.DeleteNetwork(ctx, all[at].Network)
}

// A Reached is an endpoint of a network, on any host.
type Reached struct {
	record.Address
	// HostName is the name of its host; empty when it is not known.
	HostName string
}

// Reach returns the endpoints, on all hosts, of a network that is on this host, as far as they are known. It does not
// ask etcd.
func (a *Agent) Reach(network string) (all []Reached) {
	n := a.network(network)
	if n == nil {
		return nil
	}
	n.claims.Each(func(r record.Record) {
		if addr, ok := r.(*record.Address); ok && addr.Use == record.Endpoint {
			all = append(all, Reached{Address: *addr})
		}
	})
	for i := range all {
		if h, ok := a.hosts.Get(record.Host{ID: all[i].Host}.Key()).(*record.Host); ok {
			all[i].HostName = h.Name
		}
	}
	slices.SortFunc(all, func(a, b Reached) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Forget removes a host from the cluster, by its name or ID, and returns it. It refuses to remove this host, which runs.
func (a *Agent) Forget(ctx context.Context, host string) (Member, error) {
	all, err := a.Members(ctx)
	if err != nil {
		return Member{}, err
	}
	at := slices.IndexFunc(all, func(m Member) bool { return m.Name == host || m.ID == host })
	switch {
	case at < 0:
		return Member{}, fmt.Errorf("host %s %w", host, cluster.ErrNotFound)
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
