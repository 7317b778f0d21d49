package fabric

import (
	"context"
	"errors"
	"time"

	"netyard/cluster"
	"netyard/cluster/record"
	"netyard/store"
)

// enroll makes this host a member of a network, and restores the network if etcd does not have it any more.
func (a *Agent) enroll(ctx context.Context, m record.Member, n record.Network) error {
	err := a.c.Client.JoinNetwork(ctx, m)
	if !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	if err := a.c.Client.RestoreNetwork(ctx, n); err != nil {
		a.c.Log.Warn("network not restored in etcd", "network", n.Name, "id", n.ID, "err", err)
		return err
	}
	return a.c.Client.JoinNetwork(ctx, m)
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
		a.mu.Lock()
		member := a.reason == nil
		a.mu.Unlock()
		if err != nil || len(ids) == 0 || !member || ctx.Err() != nil {
			return
		}
		a.wakeUp()
		time.Sleep(pause)
	}
}
