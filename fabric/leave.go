package fabric

import (
	"context"
	"errors"
	"time"

	"netyard/cluster/record"
	"netyard/fabric/dataplane"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

// leftNetworks holds networks that were removed from this host and not left in etcd yet.
var leftNetworks = store.Bucket[bool]{Name: "overlay_leaving"}

// leftVNIs holds the VNIs of those networks. The other hosts take this one for a member until it has left in etcd, so
// the networks stay closed: nothing that a container sends can leave as a frame of theirs.
var leftVNIs = store.Bucket[uint32]{Name: "overlay_parting"}

// closedElements returns the elements that keep such a network closed. They belong to the Agent alone, see Parting.
func (a *Agent) closedElements(id string, vni uint32) []core.Object {
	return dataplane.Elements(overlay.Closed(a.Port(), vni), "parting "+id)
}

// Parting returns the elements that keep networks closed which were removed from this host and not left in etcd yet.
func (a *Agent) Parting() (objects []core.Object, err error) {
	err = a.c.Store.View(func(tx store.Tx) error {
		return leftVNIs.Each(tx, "", func(id string, vni uint32) error {
			objects = append(objects, a.closedElements(id, vni)...)
			return nil
		})
	})
	return objects, err
}

// removeClosed removes the elements of a network that this host has left in etcd.
func (a *Agent) removeClosed(id string) error {
	var vni uint32
	err := a.c.Store.View(func(tx store.Tx) (err error) { vni, err = leftVNIs.Get(tx, id); return err })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = a.kernel.Remove(a.closedElements(id, vni)...)
	}
	return err
}

// closeLeftNetworks closes networks that this host has left without etcd having recorded that, see Parting.
func (a *Agent) closeLeftNetworks() error {
	objects, err := a.Parting()
	if err != nil {
		return err
	}
	return a.kernel.Ensure(context.Background(), objects...)
}

// leaveNetworks leaves, in etcd, networks that were removed from this host.
func (a *Agent) leaveNetworks(ctx context.Context) error {
	var ids []string
	err := a.c.Store.View(func(tx store.Tx) error {
		ids = leftNetworks.Keys(tx, "")
		return nil
	})
	for _, id := range ids {
		if a.network(id) == nil { // otherwise it is back
			if err := a.c.Client.LeaveNetwork(ctx, record.Member{Network: id, Host: a.self}); err != nil {
				return err
			}
			if err := a.c.Client.DeleteUnusedNetwork(ctx, id); err != nil { // the last member deletes the network
				return err
			}
		}
		if err := a.removeClosed(id); err != nil {
			return err
		}
		err := a.c.Store.Update(func(tx store.Tx) error {
			return errors.Join(leftNetworks.Delete(tx, id), leftVNIs.Delete(tx, id))
		})
		if err != nil {
			return err
		}
	}
	return err
}

// awaitLeft waits up to 3 s until networks that were removed from this host are left in etcd: an admin who removes one
// and creates another with its name does not want the old one.
func (a *Agent) awaitLeft(ctx context.Context) {
	const pause, most = 10 * time.Millisecond, 300
	for range most {
		var ids []string
		err := a.c.Store.View(func(tx store.Tx) error {
			ids = leftNetworks.Keys(tx, "")
			return nil
		})
		if err != nil || len(ids) == 0 || a.whyNoMember() != nil || ctx.Err() != nil {
			return
		}
		a.wakeUp()
		time.Sleep(pause)
	}
}
