package cluster

import (
	"context"
	"errors"
	"fmt"
)

// DeleteUnusedNetwork deletes the network with an ID if it is on no host; otherwise, or if there is none, it does
// nothing.
func (c *Client) DeleteUnusedNetwork(ctx context.Context, id string) error {
	key := Network{ID: id}.Key()
	found, err := c.read(ctx, "delete network", []string{key})
	if err != nil {
		return err
	}
	n, ok := found[key].Record.(*Network)
	if !ok {
		return nil
	}
	if err := c.DeleteNetwork(ctx, *n); !errors.Is(err, ErrInUse) {
		return err
	}
	return nil
}

// RestoreNetwork writes the record of a network again that a host has and etcd does not: it was deleted while the host
// joined, or an old backup lacks it. It fails if another network has the name or the VNI by now.
func (c *Client) RestoreNetwork(ctx context.Context, n Network) error {
	claims := []*Claim{{claimNetname, n.Name, n.ID}, {claimVNI, fmt.Sprintf("%06x", n.VNI), n.ID}}
	keys := []string{n.Key()}
	for _, cl := range claims {
		keys = append(keys, cl.Key())
	}
	for _, s := range n.Subnets {
		keys = append(keys, Address{Network: n.ID, Addr: s.Gateway}.Key())
	}
	return c.change(ctx, "restore network "+n.Name, keys, func(found map[string]entry) (d decision, err error) {
		if found[n.Key()].there {
			return d, nil
		}
		d.put = []Record{&n}
		for _, cl := range claims {
			if has, ok := found[cl.Key()].Record.(*Claim); found[cl.Key()].there && (!ok || has.ID != n.ID) {
				return d, fmt.Errorf("%s %s %w%s", claimLabel(cl.Kind), claimText(cl), ErrTaken, ownerText(has))
			}
			d.put = append(d.put, cl)
		}
		for _, s := range n.Subnets {
			if gw := (Address{Network: n.ID, Addr: s.Gateway, Use: Gateway}); !found[gw.Key()].there {
				d.put = append(d.put, &gw)
			}
		}
		return d, nil
	})
}
