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
	return a.c.Client.Return(ctx, a.self)
}
