package fabric

import (
	"context"
	"errors"
	"time"

	"netyard/cluster"
	"netyard/store"
)

// enroll makes this host a member of a network, which is put back if etcd has not got it any more.
func (a *Agent) enroll(ctx context.Context, m cluster.Member, n cluster.Network) error {
	err := a.c.Client.JoinNetwork(ctx, m)
	if !errors.Is(err, cluster.ErrNotFound) {
		return err
	}
	if err := a.c.Client.RestoreNetwork(ctx, n); err != nil {
		a.c.Log.Warn("a network of this host is not in etcd", "network", n.Name, "err", err)
		return err
	}
	return a.c.Client.JoinNetwork(ctx, m)
}

// awaitLeft waits a little until etcd has heard of networks that were taken from this host: who removes one and makes
// another of its name wants that one.
func (a *Agent) awaitLeft(ctx context.Context) {
	const pause, most = 10 * time.Millisecond, 300
	for range most {
		var ids []string
		err := a.c.Store.View(func(tx store.Tx) error {
			ids = leaving.Keys(tx, "")
			return nil
		})
		a.mu.Lock()
		member := a.reason == nil
		a.mu.Unlock()
		if err != nil || len(ids) == 0 || !member || ctx.Err() != nil {
			return
		}
		a.poke()
		time.Sleep(pause)
	}
}
