package book

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
)

// CopySuffix is the suffix of a copy's file name.
const CopySuffix = ".json"

// A NetworkCopy is what a network that no engine knows is rebuilt from if the records are lost.
type NetworkCopy struct {
	Network modes.Network
	Pools   []ipam.PoolRequest
}

func (y *Book) copyFile(id string) string { return filepath.Join(y.Config.Copies, id+CopySuffix) }

// PutCopy writes the copy of a network that no engine has. Copies are read only if the records are lost, so a failure
// is logged, and the network is made all the same.
func (y *Book) PutCopy(n modes.Network) {
	if y.Config.Copies == "" || n.Engine != Own {
		return
	}
	c := NetworkCopy{Network: n}
	err := y.Config.Store.View(func(tx store.Tx) error {
		for _, s := range n.Subnets {
			if s.Space != Space {
				continue
			}
			p, err := y.Config.IPAM.PoolOf(tx, s.Pool, n.ID)
			if err != nil {
				return err
			}
			c.Pools = append(c.Pools, ipam.PoolRequest{
				Subnet: p.Subnet, Range: p.Range, First: p.First, Last: p.Last, Domain: p.Domain,
			})
		}
		return nil
	})
	var raw []byte
	if err == nil {
		raw, err = json.Marshal(c)
	}
	if err == nil {
		err = os.MkdirAll(y.Config.Copies, 0o700)
	}
	if err == nil {
		err = store.WriteDurable(y.copyFile(n.ID), raw)
	}
	if err != nil {
		y.Config.Log.Warn("copy of a network not written", "network", n.Name, "network_id", n.ID, "err", err)
	}
}

// DropCopy removes the copy of a network that is removed.
func (y *Book) DropCopy(n modes.Network) {
	if y.Config.Copies == "" || n.Engine != Own {
		return
	}
	if err := os.Remove(y.copyFile(n.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		y.Config.Log.Warn("copy of a network not removed", "network", n.Name, "network_id", n.ID, "err", err)
	}
}
