package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// flags are things to remember that are of no network.
//
//nolint:gochecknoglobals // the layout of the file
var flags = store.Bucket[bool]{Name: "flags"}

const flagRebuilding = "rebuilding"

// LostRecords notes that the records were lost. Until they are rebuilt nothing unknown is taken for a stray.
func (y *Yard) LostRecords() error {
	return y.c.Store.Update(func(tx store.Tx) error { return flags.Put(tx, flagRebuilding, true) })
}

// Rebuilding says whether lost records are still to be made again.
func (y *Yard) Rebuilding() bool {
	lost := false
	err := y.c.Store.View(func(tx store.Tx) (err error) {
		lost, err = flags.Get(tx, flagRebuilding)
		return err
	})
	return err == nil && lost
}

// Rebuild makes the records of what an engine has and the kernel still does, and then drops the strays.
func (y *Yard) Rebuild(ctx context.Context, c Census) error {
	var errs []error
	for id, s := range c.Networks {
		if err := y.adoptNetwork(ctx, s, c); err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %s: %w", modes.Short(id), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := y.RecordsRebuilt(); err != nil {
		return err
	}
	y.c.Log.Warn("the records are rebuilt", "engine", c.Engine, "networks", len(c.Networks), "endpoints", len(c.Endpoints))
	return y.prune(ctx)
}

// RecordsRebuilt ends the time in which the unknown is left alone.
func (y *Yard) RecordsRebuilt() error {
	return y.c.Store.Update(func(tx store.Tx) error { return flags.Delete(tx, flagRebuilding) })
}

func (y *Yard) adoptNetwork(ctx context.Context, s SeenNetwork, c Census) error {
	n := s.Network
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	err = y.c.Store.Update(func(tx store.Tx) error {
		for _, r := range s.Pools {
			if err := y.adoptPool(tx, n, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := y.CreateNetwork(ctx, n); err != nil {
		return err
	}
	for id, e := range c.Endpoints {
		if e.NetworkID != n.ID {
			continue
		}
		if err := y.adoptEndpoint(ctx, m, n, id, e); err != nil {
			return fmt.Errorf("endpoint %s: %w", modes.Short(id), err)
		}
	}
	return nil
}

func (y *Yard) adoptPool(tx store.Tx, n modes.Network, r ipam.PoolRequest) error {
	if _, err := y.c.IPAM.PoolOf(tx, r.Subnet.Masked(), n.ID); err == nil {
		return nil // a rebuild that was interrupted had come so far
	}
	p, err := y.c.IPAM.RequestPool(tx, r)
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if s.Pool != p.Subnet || !s.Gateway.IsValid() {
			continue
		}
		if _, err := y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: s.Gateway.Addr(), Gateway: true}); err != nil {
			return err
		}
	}
	return nil
}

func (y *Yard) adoptEndpoint(ctx context.Context, m modes.Mode, n modes.Network, id string, s SeenEndpoint) error {
	n, err := y.Network(n.ID)
	if err != nil {
		return err
	}
	e := modes.Endpoint{
		ID: id, NetworkID: n.ID, Sandbox: s.Sandbox, Addrs: s.Addrs, MAC: s.MAC, Phase: modes.Ready,
		Created: y.c.Now(), Joined: y.c.Now(), BootID: y.c.BootID, Container: s.Container,
		Seen: kernel.IsNamespace(s.Sandbox),
	}
	err = y.c.Store.Update(func(tx store.Tx) error {
		if _, err := getEndpoint(tx, n.ID, id); err == nil {
			return nil
		}
		for _, a := range e.Addrs {
			if err := y.adoptLease(tx, n, a.Addr(), e); err != nil {
				return err
			}
		}
		return putEndpoint(tx, e)
	})
	if err != nil {
		return err
	}
	links, err := y.c.Kernel.Has()
	if err != nil {
		return err
	}
	return y.restoreEndpoint(ctx, m, n, e, links)
}

func (y *Yard) adoptLease(tx store.Tx, n modes.Network, a netip.Addr, e modes.Endpoint) error {
	for _, s := range n.Subnets {
		if s.Space != Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.c.IPAM.PoolOf(tx, s.Pool, n.ID)
		if err != nil {
			return err
		}
		_, err = y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a, Name: e.Container.Name})
		if errors.Is(err, ipam.ErrTaken) {
			return nil
		}
		return err
	}
	return nil
}
