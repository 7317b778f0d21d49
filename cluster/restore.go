package cluster

import (
	"context"
	"errors"
	"fmt"

	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// DeleteUnusedNetwork deletes the network with an ID if it is on no host; otherwise, or if there is none, it does
// nothing.
func (c *Client) DeleteUnusedNetwork(ctx context.Context, id string) error {
	key := record.Network{ID: id}.Key()
	found, err := c.Read(ctx, "delete network", []string{key})
	if err != nil {
		return err
	}
	n, ok := found[key].Record.(*record.Network)
	if !ok {
		return nil
	}
	if err := c.DeleteNetwork(ctx, *n); !errors.Is(err, etcd.ErrInUse) {
		return err
	}
	return nil
}

// RestoreNetwork writes the record of a network again that a host has and etcd does not: it was deleted while the host
// joined, or an old backup lacks it. It fails if another network has the name or the VNI by now.
func (c *Client) RestoreNetwork(ctx context.Context, n record.Network) error {
	claims := n.Claims()
	keys := []string{n.Key()}
	for _, cl := range claims {
		keys = append(keys, cl.Key())
	}
	for _, s := range n.Subnets {
		keys = append(keys, record.Address{Network: n.ID, Addr: s.Gateway}.Key())
	}
	return c.Change(ctx, "restore network "+n.Name, keys, func(found etcd.Found) (d etcd.Decision, err error) {
		if found[n.Key()].There {
			return d, nil
		}
		d.Put = []record.Record{&n}
		for _, cl := range claims {
			if has, ok := found[cl.Key()].Record.(*record.Claim); found[cl.Key()].There && (!ok || has.ID != n.ID) {
				return d, fmt.Errorf("%s %w%s", cl, ErrTaken, ownerText(has))
			}
			d.Put = append(d.Put, cl)
		}
		for _, s := range n.Subnets {
			if gw := (record.Address{Network: n.ID, Addr: s.Gateway, Use: record.Gateway}); !found[gw.Key()].There {
				d.Put = append(d.Put, &gw)
			}
		}
		return d, nil
	})
}
