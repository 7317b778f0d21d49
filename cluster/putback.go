package cluster

import (
	"context"
	"errors"
	"fmt"
)

// DropNetwork deletes a network by its id if it is on no host; one that is, or that is gone already, is left alone.
func (c *Client) DropNetwork(ctx context.Context, id string) error {
	key := Network{ID: id}.Key()
	found, err := c.read(ctx, "drop network", []string{key})
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

// PutBack makes the record of a network again that a host has and etcd has not: it was dropped as the host joined, or
// an old backup lacks it. A name or a number that is another's by now is refused.
func (c *Client) PutBack(ctx context.Context, n Network) error {
	claims := []*Claim{{claimNetname, n.Name, n.ID}, {claimVNI, fmt.Sprintf("%06x", n.VNI), n.ID}}
	keys := []string{n.Key()}
	for _, cl := range claims {
		keys = append(keys, cl.Key())
	}
	for _, s := range n.Subnets {
		keys = append(keys, Address{Network: n.ID, Addr: s.Gateway}.Key())
	}
	return c.change(ctx, "put network "+n.Name+" back", keys, func(found map[string]held) (d decision, err error) {
		if found[n.Key()].there {
			return d, nil
		}
		d.put = []Record{&n}
		for _, cl := range claims {
			if has, ok := found[cl.Key()].Record.(*Claim); found[cl.Key()].there && (!ok || has.ID != n.ID) {
				return d, fmt.Errorf("%s %s %w%s", what(cl.Kind), said(cl), ErrTaken, by(has))
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
