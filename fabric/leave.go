package fabric

import (
	"context"
	"errors"
	"sync"
	"time"

	"netyard/cluster/record"
	"netyard/fabric/dataplane"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

// leaving is the networks that were removed from this host and not left in etcd yet. The other hosts take this one for
// a member until then, so the networks stay closed: nothing that a container sends can leave as a frame of theirs.
type leaving struct {
	store  *store.Store
	client leaver
	kernel dataplane.Kernel
	// self is this host's ID.
	self string
	// port returns the UDP port of VXLAN.
	port func() uint16
	// gate is entered by grants of addresses.
	gate *gate
	// turn is held while a network is recorded and closed, or forgotten and opened, so that both are done or neither.
	turn sync.Mutex
}

// A leaver leaves networks in etcd; a cluster.Client.
type leaver interface {
	LeaveNetwork(ctx context.Context, m record.Member) error
	// DeleteUnusedNetwork deletes a network that no host is a member of.
	DeleteUnusedNetwork(ctx context.Context, id string) error
}

// leftNetworks holds the IDs of these networks, and leftVNIs the VNIs of those that were up.
var (
	leftNetworks = store.Bucket[bool]{Name: "overlay_leaving"}
	leftVNIs     = store.Bucket[uint32]{Name: "overlay_parting"}
)

// add closes a network, and then records that it is to be left, in the transaction in which drop deletes its other
// records. n is nil for one that never came up.
func (l *leaving) add(id string, n *network, drop func(store.Tx) error) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	if n != nil {
		if err := l.kernel.Ensure(context.Background(), l.closed(id, n.VNI)...); err != nil {
			return err
		}
	}
	return l.store.Update(func(tx store.Tx) error {
		if err := drop(tx); err != nil {
			return err
		}
		if n != nil {
			if err := leftVNIs.Put(tx, id, n.VNI); err != nil {
				return err
			}
		}
		return leftNetworks.Put(tx, id, true)
	})
}

// closed returns the elements that keep such a network closed. They have an owner of their own, so that they stay when
// the network's others go.
func (l *leaving) closed(id string, vni uint32) []core.Object {
	return dataplane.Elements(overlay.CloseElements(l.port(), vni), "parting "+id)
}

// objects returns the elements that keep all these networks closed.
func (l *leaving) objects() (objects []core.Object, err error) {
	vnis := map[string]uint32{}
	err = l.store.View(func(tx store.Tx) error {
		return leftVNIs.Each(tx, "", func(id string, vni uint32) error {
			vnis[id] = vni
			return nil
		})
	})
	for id, vni := range vnis {
		objects = append(objects, l.closed(id, vni)...)
	}
	return objects, err
}

// close closes all these networks.
func (l *leaving) close(ctx context.Context) error {
	objects, err := l.objects()
	if err != nil {
		return err
	}
	return l.kernel.Ensure(ctx, objects...)
}

// ids returns the IDs of these networks.
func (l *leaving) ids() (ids []string, err error) {
	err = l.store.View(func(tx store.Tx) error {
		ids = leftNetworks.Keys(tx, "")
		return nil
	})
	return ids, err
}

// leave leaves them in etcd, except for those that are back on this host. One with a grant in progress is left later.
func (l *leaving) leave(ctx context.Context, back func(id string) bool) error {
	ids, err := l.ids()
	for _, id := range ids {
		if l.gate.shut(id, back) {
			err = l.leaveOne(ctx, id)
		} else {
			err = l.forget(id, back)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// leaveOne leaves a network whose gate is shut, and opens the gate.
func (l *leaving) leaveOne(ctx context.Context, id string) error {
	defer l.gate.open(id)
	if err := l.client.LeaveNetwork(ctx, record.Member{Network: id, Host: l.self}); err != nil {
		return err
	}
	if err := l.client.DeleteUnusedNetwork(ctx, id); err != nil { // the last member deletes the network
		return err
	}
	return l.forget(id, func(string) bool { return true })
}

// forget forgets a network, with the elements that keep it closed, if may says so. It is asked in the same turn: an
// Unbind that comes meanwhile adds the network after it was forgotten.
func (l *leaving) forget(id string, may func(id string) bool) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	if !may(id) {
		return nil
	}
	var vni uint32
	err := l.store.View(func(tx store.Tx) (err error) { vni, err = leftVNIs.Get(tx, id); return err })
	if err == nil {
		err = l.kernel.Remove(l.closed(id, vni)...)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return l.store.Update(func(tx store.Tx) error {
		return errors.Join(leftNetworks.Delete(tx, id), leftVNIs.Delete(tx, id))
	})
}

// LeavingObjects returns the elements that keep networks closed which were removed from this host and not left in etcd
// yet.
func (a *Agent) LeavingObjects() (objects []core.Object, err error) { return a.leaving.objects() }

// awaitLeft waits up to 3 s until networks that were removed from this host are left in etcd: an admin who removes one
// and creates another with its name does not want the old one.
func (a *Agent) awaitLeft(ctx context.Context) {
	const pause, most = 10 * time.Millisecond, 300
	for range most {
		ids, err := a.leaving.ids()
		if err != nil || len(ids) == 0 || a.whyNoMember() != nil || ctx.Err() != nil {
			return
		}
		a.wake.Send()
		time.Sleep(pause)
	}
}
