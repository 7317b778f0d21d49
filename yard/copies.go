package yard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

const copySuffix = ".json"

// A networkCopy is what a network that no engine knows has to be made from again if the records are lost.
type networkCopy struct {
	Network modes.Network
	Pools   []ipam.PoolRequest
}

func (y *Yard) copyFile(id string) string { return filepath.Join(y.c.Copies, id+copySuffix) }

// putCopy writes a network of netyard's own down beside the records. It is only read when those are lost, so a network
// is made all the same if that fails.
func (y *Yard) putCopy(n modes.Network) {
	if y.c.Copies == "" || n.Engine != Own {
		return
	}
	c := networkCopy{Network: n}
	err := y.c.Store.View(func(tx store.Tx) error {
		for _, s := range n.Subnets {
			if s.Space != Space {
				continue
			}
			p, err := y.c.IPAM.PoolOf(tx, s.Pool, n.ID)
			if err != nil {
				return err
			}
			c.Pools = append(c.Pools, ipam.PoolRequest{Subnet: p.Subnet, Range: p.Range, First: p.First, Last: p.Last, Domain: p.Domain})
		}
		return nil
	})
	var raw []byte
	if err == nil {
		raw, err = json.Marshal(c)
	}
	if err == nil {
		err = os.MkdirAll(y.c.Copies, 0o700)
	}
	if err == nil {
		err = store.WriteDurable(y.copyFile(n.ID), raw)
	}
	if err != nil {
		y.c.Log.Warn("write down a network for the case that the records are lost", "network", n.ID, "err", err)
	}
}

func (y *Yard) dropCopy(n modes.Network) {
	if y.c.Copies == "" || n.Engine != Own {
		return
	}
	if err := os.Remove(y.copyFile(n.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		y.c.Log.Warn("remove the copy of a network", "network", n.ID, "err", err)
	}
}

// copies are the networks that were written down.
func (y *Yard) copies() (all []SeenNetwork, err error) {
	if y.c.Copies == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(y.c.Copies, "*"+copySuffix))
	if err != nil {
		return nil, fmt.Errorf("look for copies of networks: %w", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		var c networkCopy
		if err == nil {
			err = json.Unmarshal(raw, &c)
		}
		if err != nil { // the others are none the worse for it
			y.c.Log.Error("read the copy of a network", "path", file, "err", err)
			continue
		}
		all = append(all, SeenNetwork{Name: c.Network.Name, Network: c.Network, Pools: c.Pools})
	}
	return all, nil
}

// FindIn finds the endpoints whose links are in the sandbox behind a path, by id.
func (y *Yard) FindIn(path string) (map[string]SeenEndpoint, error) {
	found, err := y.c.Kernel.FindIn(path)
	all := map[string]SeenEndpoint{}
	for _, f := range found {
		all[f.Endpoint] = SeenEndpoint{NetworkID: f.Network, Sandbox: path, MAC: f.MAC, Addrs: f.Plug.Addrs, IfName: f.Plug.Name, Inside: f.Plug}
	}
	return all, err
}

// RebuildOwn makes the records of netyard's own networks again, and of what a census found attached to them and to
// others by CNI.
func (y *Yard) RebuildOwn(ctx context.Context, c Census) error {
	own, err := y.copies()
	if err != nil {
		return err
	}
	ns, err := y.Networks()
	if err != nil {
		return err
	}
	for _, n := range ns {
		if !slices.ContainsFunc(own, func(s SeenNetwork) bool { return s.Network.ID == n.ID }) {
			own = append(own, SeenNetwork{Name: n.Name, Network: n})
		}
	}
	var errs []error
	for _, s := range own {
		if err := y.adoptNetwork(ctx, s, c); err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %s: %w", modes.Short(s.Network.ID), err))
		}
	}
	return errors.Join(errs...)
}
