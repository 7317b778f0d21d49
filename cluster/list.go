package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

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
func (c *Client) Members(ctx context.Context) (all []Member, err error) {
	byID, names := map[string]*Member{}, map[string]string{}
	for _, prefix := range []string{"host/", "alive/", "net/", "member/"} {
		recs, err := c.List(ctx, prefix)
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
func (c *Client) Overlays(ctx context.Context) (all []Overlay, err error) {
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	nets, err := c.List(ctx, "net/")
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

// RemoveOverlay deletes the network with a name that is on no host any more.
func (c *Client) RemoveOverlay(ctx context.Context, name string) error {
	all, err := c.Overlays(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(o Overlay) bool { return o.Name == name })
	if at < 0 {
		return fmt.Errorf("network %s %w", name, ErrNotFound)
	}
	if hosts := all[at].Hosts; len(hosts) > 0 {
		return fmt.Errorf("network %s %w on %s; remove it there, or run netyard cluster forget for a host that is gone",
			name, etcd.ErrInUse, strings.Join(hosts, ", "))
	}
	return c.DeleteNetwork(ctx, all[at].Network)
}
