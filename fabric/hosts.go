package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"netyard/cluster"
)

// A Member is a host of the cluster, as etcd has it.
type Member struct {
	cluster.Host
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
			case *cluster.Host:
				byID[r.ID] = &Member{Host: *r}
			case *cluster.Network:
				names[r.ID] = r.Name
			case *cluster.Alive:
				if m := byID[r.Host]; m != nil {
					m.Alive = true
				}
			case *cluster.Member:
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

// An Overlay is a network of the cluster, as etcd has it, and the names of the hosts that it is on.
type Overlay struct {
	cluster.Network
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
		n, ok := r.(*cluster.Network)
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

// RemoveOverlay takes a network out of etcd that no host has any more.
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
		return fmt.Errorf("network %s %w on %s; remove it there, or netyard cluster forget a host that is no more", name, cluster.ErrInUse, strings.Join(hosts, ", "))
	}
	return a.c.Client.DeleteNetwork(ctx, all[at].Network)
}

// A Reached is an endpoint of a network, on whatever host.
type Reached struct {
	cluster.Address
	// Name is the host's; empty when it is not known.
	HostName string
}

// Reach are the endpoints of a network that is on this host, those of the other hosts too, as far as etcd has told. It
// asks nobody.
func (a *Agent) Reach(network string) (all []Reached) {
	a.mu.Lock()
	n := a.networks[network]
	a.mu.Unlock()
	if n == nil {
		return nil
	}
	n.addrs.Each(func(r cluster.Record) {
		if addr, ok := r.(*cluster.Address); ok && addr.Use == cluster.Endpoint {
			all = append(all, Reached{Address: *addr})
		}
	})
	for i := range all {
		if h, ok := a.hosts.Get(cluster.Host{ID: all[i].Host}.Key()).(*cluster.Host); ok {
			all[i].HostName = h.Name
		}
	}
	slices.SortFunc(all, func(a, b Reached) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Forget takes a host out, by its name or its id. This one cannot: it would go on as if nothing had been said.
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
		return all[at], errors.New("forget this host itself: say it on another one")
	}
	return all[at], a.c.Client.Forget(ctx, all[at].ID, a.c.Host.Name)
}

// Rejoin has this host be a member again after it was taken out. What others were given of it meanwhile is theirs.
func (a *Agent) Rejoin(ctx context.Context) error {
	a.mu.Lock()
	out := errors.Is(a.reason, cluster.ErrForgotten)
	a.mu.Unlock()
	if !out {
		return errors.New("rejoin: this host was not taken out of the cluster")
	}
	return a.c.Client.Readmit(ctx, a.self)
}
