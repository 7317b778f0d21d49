package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"netyard/yard"
	"netyard/yard/book"
)

// copies returns the networks that have a copy.
func copies(y *yard.Yard) (all []SeenNetwork, err error) {
	if y.Config.Copies == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(y.Config.Copies, "*"+book.CopySuffix))
	if err != nil {
		return nil, fmt.Errorf("list copies of networks: %w", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		var c book.NetworkCopy
		if err == nil {
			err = json.Unmarshal(raw, &c)
		}
		if err != nil { // the other copies are still of use
			y.Config.Log.Error("copy of a network not read", "path", file, "err", err)
			continue
		}
		all = append(all, SeenNetwork{Name: c.Network.Name, Network: c.Network, Pools: c.Pools})
	}
	return all, nil
}

// FindIn finds the endpoints whose links are in the sandbox at a path, by ID.
func FindIn(y *yard.Yard, path string) (map[string]SeenEndpoint, error) {
	found, err := y.Config.Kernel.FindIn(path)
	all := map[string]SeenEndpoint{}
	for _, f := range found {
		all[f.Endpoint] = SeenEndpoint{
			NetworkID: f.Network, Sandbox: path, MAC: f.MAC, Addrs: f.Plug.Addrs, IfName: f.Plug.Name, Inside: f.Plug,
		}
	}
	return all, err
}

// RebuildOwn rebuilds the records of netyard's own networks, and of the attachments to these and other networks that
// are in a census.
func RebuildOwn(ctx context.Context, y *yard.Yard, c Census) error {
	own, err := copies(y)
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
		if err := adoptNetwork(ctx, y, s, c); err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %s: %w", book.Label(s.Network), err))
		}
	}
	return errors.Join(errs...)
}
