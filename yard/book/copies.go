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

// CopySuffix ends the name of a copy.
const CopySuffix = ".json"

// A NetworkCopy is what a network that no engine knows has to be made from again if the records are lost.
type NetworkCopy struct {
	Network modes.Network
	Pools   []ipam.PoolRequest
}

func (y *Book) copyFile(id string) string { return filepath.Join(y.Config.Copies, id+CopySuffix) }

// PutCopy writes a network of netyard's own down beside the records. It is only read when those are lost, so a network
// is made all the same if that fails.
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
			c.Pools = append(c.Pools,
				ipam.PoolRequest{Subnet: p.Subnet, Range: p.Range, First: p.First, Last: p.Last, Domain: p.Domain})
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
		y.Config.Log.Warn("write down a network for the case that the records are lost", "network", n.ID, "err", err)
	}
}

// DropCopy removes the copy of a network that goes.
func (y *Book) DropCopy(n modes.Network) {
	if y.Config.Copies == "" || n.Engine != Own {
		return
	}
	if err := os.Remove(y.copyFile(n.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		y.Config.Log.Warn("remove the copy of a network", "network", n.ID, "err", err)
	}
}
