package fabric

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/store"
)

// Run keeps etcd, the database and the kernel in step until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	defer a.tasks.wait()
	defer cancel()
	a.tasks.run(inner)
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return a.stayMember(ctx) })
	all.Go(func() error { return a.syncLoop(ctx) })
	err := all.Wait()
	a.save()
	return err
}

// stayMember makes this host a member of the cluster, and keeps announcing that it is alive.
func (a *Agent) stayMember(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.enter(ctx)
		if err == nil {
			err = a.c.Client.StayAlive(ctx, a.c.Log, a.host, a.c.BootID, a.setReason)
		} else if ctx.Err() == nil {
			a.setReason(err)
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(retryEvery):
			}
		}
	}
	return nil
}

// setReason records why this host is not a member; nil: it is one.
func (a *Agent) setReason(err error) {
	a.mu.Lock()
	was := a.reason
	a.reason = err
	if fenced := errors.Is(err, cluster.ErrForgotten); fenced != a.fenced && (err == nil || fenced) {
		a.fenced = fenced
		for _, n := range a.networks {
			n.unsure, n.shut = true, true // until it is known which addresses are still this host's, see syncNetwork
		}
	}
	a.mu.Unlock()
	if err == nil && was != nil {
		a.c.Log.Info("joined the cluster", "host", a.c.Host.Name, "id", a.self)
	}
	if err != nil && (was == nil || was.Error() != err.Error()) {
		a.c.Log.Warn("not a member of the cluster", "host", a.c.Host.Name, "id", a.self, "err", err)
	}
	a.wakeUp()
}

// enter finds the cluster in etcd, or creates it if there is none and this host has never been in one.
func (a *Agent) enter(ctx context.Context) error {
	a.mu.Lock()
	want := a.who.Meta
	a.mu.Unlock()
	if want.Cluster == "" {
		want = record.Meta{Port: a.c.Port, IPv6: a.c.Host.VTEP.Is6()}
	}
	meta, err := a.c.Client.Enter(ctx, want)
	if err != nil {
		return err
	}
	a.mu.Lock()
	who := a.who
	who.Meta = meta
	a.mu.Unlock()
	if err := cluster.SaveIdentity(a.c.Store, who); err != nil {
		return err
	}
	a.mu.Lock()
	a.who = who
	first := !a.entered
	a.entered = true
	if first {
		a.tasks.start(a.hosts.Run)   //nolint:contextcheck // it runs until Run ends
		a.tasks.start(a.members.Run) //nolint:contextcheck // the same
		for _, n := range a.networks {
			n.stop = a.tasks.start(n.addrs.Run) //nolint:contextcheck // the same
		}
	}
	a.mu.Unlock()
	return nil
}

// syncLoop does pending work: at once after wakeUp, and each second what failed before.
func (a *Agent) syncLoop(ctx context.Context) error {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-tick.C:
			a.save()
		}
		a.retryKernel() //nolint:contextcheck // the kernel answers at once
		if err := a.sync(ctx); err != nil && ctx.Err() == nil {
			a.c.Log.Debug("update of etcd failed", "err", err)
		}
	}
}

// retryKernel gives the kernel everything again of networks of which it may lack something.
func (a *Agent) retryKernel() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		read := a.read(n)
		if !n.unsure && (n.complete || !read) {
			continue
		}
		if err := a.updateKernel(n); err == nil {
			n.unsure, n.complete = false, read
		} else {
			a.c.Log.Debug("update of all peers in the kernel failed", "network", n.Name, "id", n.ID, "err", err)
		}
	}
}

// updateKernel gives the kernel everything about a network. The caller holds the lock.
func (a *Agent) updateKernel(n *network) error {
	err := a.setVTEPs(n)
	if err == nil {
		err = a.c.Kernel.Ensure(context.Background(), a.peers(n))
	}
	if err == nil {
		err = a.setHostAddrs(n)
	}
	return err
}

// setHostAddrs sets the host's own addresses of a network on its bridge, and removes former ones.
func (a *Agent) setHostAddrs(n *network) error {
	own, err := a.Own(n.ID)
	if err != nil {
		return err
	}
	var now []core.Addr
	for _, o := range own {
		if s, ok := n.Find(o.Addr); ok && o.Use == record.OfHost && !o.Lost && !o.Gone {
			now = append(now,
				core.Addr{Link: n.Bridge, Alias: n.Alias, Prefix: netip.PrefixFrom(o.Addr, s.Pool.Bits())})
		}
	}
	for _, old := range n.host {
		if !slices.Contains(now, old) {
			if err := a.c.Kernel.Remove(old); err != nil {
				return err
			}
		}
	}
	n.host = now
	for _, addr := range now {
		if err := a.c.Kernel.Ensure(context.Background(), addr); err != nil {
			return err
		}
	}
	return nil
}

// save saves the copies of the cluster's records, and which addresses are in cooldown.
func (a *Agent) save() {
	a.mu.Lock()
	mirrors := []*mirror.Mirror{a.hosts, a.members}
	var on []*network
	for _, n := range a.networks {
		mirrors, on = append(mirrors, n.addrs), append(on, n)
	}
	a.mu.Unlock()
	for _, n := range on {
		if err := a.saveCooling(n); err != nil {
			a.c.Log.Warn("cooldown of addresses not saved", "network", n.Name, "id", n.ID, "err", err)
		}
	}
	for _, m := range mirrors {
		if err := m.Save(a.c.Store); err != nil {
			a.c.Log.Warn("copy of cluster records not saved", "err", err)
		}
	}
}

// sync writes to etcd what it does not have yet. It fails while this host is not a member.
func (a *Agent) sync(ctx context.Context) error {
	a.mu.Lock()
	if a.reason != nil {
		defer a.mu.Unlock()
		return a.reason
	}
	var on []*network
	for _, n := range a.networks {
		on = append(on, n)
	}
	a.mu.Unlock()
	errs := []error{a.rotateIfPending(ctx), a.leaveNetworks(ctx)}
	for _, n := range on {
		errs = append(errs, a.syncNetwork(ctx, n))
	}
	return errors.Join(errs...)
}

// leaveNetworks leaves, in etcd, networks that were removed from this host.
func (a *Agent) leaveNetworks(ctx context.Context) error {
	var ids []string
	err := a.c.Store.View(func(tx store.Tx) error {
		ids = leftNetworks.Keys(tx, "")
		return nil
	})
	for _, id := range ids {
		a.mu.Lock()
		back := a.networks[id] != nil
		a.mu.Unlock()
		if !back {
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

// syncNetwork makes this host a member of a network, and its addresses in etcd what they are in the database.
func (a *Agent) syncNetwork(ctx context.Context, n *network) error {
	m := record.Member{Network: n.ID, Host: a.self}
	if a.members.Status().Compares == 0 || n.addrs.Status().Compares == 0 {
		return nil // etcd has not been read yet
	}
	own, err := a.Own(n.ID)
	if err != nil {
		return err
	}
	if !a.members.Has(m.Key()) {
		if err := a.join(ctx, n, m, own); err != nil {
			return err
		}
	}
	own, err = a.compareWithEtcd(n, own)
	if err == nil {
		err = a.releaseUnused(own)
	}
	if err != nil {
		return err
	}
	var errs []error
	slices.SortStableFunc(own, func(o, p Own) int { // lost addresses first, see Own.Mute
		return rank(a.isRemote(n, o.Addr)) - rank(a.isRemote(n, p.Addr))
	})
	rest := slices.IndexFunc(own, func(o Own) bool { return !a.isRemote(n, o.Addr) })
	for i := range own {
		if i == rest { // the rest belong to no other host: all at once
			if err := a.syncMany(ctx, m, own[i:]); err != nil {
				errs = append(errs, err)
				break
			}
		}
		o := own[i]
		if o.Synced || o.Trying || o.Lost && !o.Gone && a.isRemote(n, o.Addr) {
			continue
		}
		err := a.syncOne(ctx, m, o)
		errs = append(errs, err)
		if errors.Is(err, etcd.ErrUnreachable) || errors.Is(err, cluster.ErrNotFound) || errors.Is(err, errTaken) {
			break // the others would fail alike, or their claims may change
		}
	}
	if err := errors.Join(append(errs, a.fence(ctx, n))...); err != nil {
		return err
	}
	a.reopenNetwork(n)
	for _, s := range n.Subnets {
		if err := a.fillWarm(ctx, m, n, s, own); err != nil {
			return err
		}
	}
	return nil
}

// compareWithEtcd finds addresses on which etcd and this host disagree although they were in step, after an old backup
// or a crash. What only this host has is claimed again; what only etcd has is released.
func (a *Agent) compareWithEtcd(n *network, own []Own) ([]Own, error) {
	known := map[netip.Addr]bool{}
	for i, o := range own {
		known[o.Addr] = true
		want := o.record(a.self)
		rec, _ := n.addrs.Get(want.Key()).(*record.Address)
		if o.Synced && (rec == nil || !rec.Equal(*want) || !n.addrs.Has(want.Key())) {
			own[i].Synced = false
		}
	}
	var strays []Own
	n.addrs.Each(func(r record.Record) {
		if rec, ok := r.(*record.Address); ok && rec.Host == a.self && !known[rec.Addr] {
			strays = append(strays, Own{Network: n.ID, Addr: rec.Addr, Use: record.Warm, Gone: true})
		}
	})
	if len(strays) == 0 {
		return own, nil
	}
	var put []Own
	err := a.c.Store.Update(func(tx store.Tx) (err error) {
		put, err = putNew(tx, strays)
		return err
	})
	return append(own, put...), err
}

// releaseUnused releases addresses that were granted to an endpoint which never published or never released them.
func (a *Agent) releaseUnused(own []Own) error {
	for i, o := range own {
		if o.Use != record.Warm || o.Endpoint == "" || o.Gone || o.Trying || o.Since.IsZero() {
			continue
		}
		if time.Since(o.Since) < useTimeout && !a.reapAtOnce.Load() {
			continue
		}
		if a.c.Held(o.Network, o.Addr) {
			continue
		}
		err := a.updateOwn(o, func(now Own, tx store.Tx) error {
			if now.Use != record.Warm || !now.Since.Equal(o.Since) {
				return nil
			}
			now.Gone, now.Synced = true, false
			own[i] = now
			return owns.Put(tx, now.key(), now)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// syncOne claims or releases one address in etcd.
func (a *Agent) syncOne(ctx context.Context, m record.Member, o Own) error {
	if o.Gone {
		if !o.Lost {
			if err := a.c.Client.Release(ctx, m, o.Addr); err != nil {
				return err
			}
		}
		return a.updateOwn(o, func(now Own, tx store.Tx) error { return a.deleteReleased(o, now, tx) })
	}
	err := a.c.Client.ClaimAddresses(ctx, m, o.claim())
	if errors.Is(err, cluster.ErrTaken) {
		if o.Endpoint == "" { // no endpoint has it
			a.markUnsure(m.Network)
			return a.updateOwn(o, func(now Own, tx store.Tx) error {
				if now.Endpoint != "" { // granted meanwhile; the next sync marks it as lost
					return nil
				}
				return owns.Delete(tx, o.key())
			})
		}
		if !o.Lost {
			a.c.Log.Error("address lost to another host", "network", m.Network, "address", o.Addr, "endpoint",
				o.Endpoint)
		}
		err = a.updateOwn(o, func(now Own, tx store.Tx) error {
			now.Lost, now.Synced = true, false
			return owns.Put(tx, o.key(), now)
		})
		return errors.Join(err, a.updateMute(o.Network), errTaken)
	}
	if err != nil {
		return err
	}
	return a.updateOwn(o, func(now Own, tx store.Tx) error { return a.markSynced(o, now, tx) })
}

// markUnsure has the kernel given everything of a network again.
func (a *Agent) markUnsure(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.networks[id]; n != nil {
		n.unsure = true
		a.wakeUp()
	}
}

// updateOwn calls f with the current record of an address, in a transaction; a deleted one is left alone.
func (a *Agent) updateOwn(o Own, f func(Own, store.Tx) error) error {
	defer a.names.markStale(o.Network)
	return a.c.Store.Update(func(tx store.Tx) error {
		now, err := owns.Get(tx, o.key())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(now, tx)
	})
}
