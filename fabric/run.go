package fabric

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"netyard/cluster"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
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
			n.plane.Block(fenced) // until it is known which addresses are still this host's, see syncNetwork
		}
	}
	a.mu.Unlock()
	if err == nil && was != nil {
		a.c.Log.Info("joined the cluster", "host", a.c.Host.Name, "host_id", a.self)
	}
	if err != nil && (was == nil || was.Error() != err.Error()) {
		a.c.Log.Warn("not a member of the cluster", "host", a.c.Host.Name, "host_id", a.self, "err", err)
	}
	a.wake.Send()
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
			a.startMirror(n) //nolint:contextcheck // the same
		}
	}
	a.mu.Unlock()
	return nil
}

// syncLoop does pending work: at once after wake, and each second what failed before.
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
			a.c.Log.Debug("etcd not updated", "err", err)
		}
	}
}

// retryKernel gives the kernel everything again of networks of which it may lack something.
func (a *Agent) retryKernel() {
	for _, n := range a.on() {
		if !n.plane.Lacking() {
			continue
		}
		if err := n.plane.Update(); err != nil {
			a.c.Log.Debug("kernel peers not updated", "network", n.Name, "network_id", n.ID, "err", err)
		}
	}
}

// applyHostChanges applies changes of hosts and memberships to all networks.
func (a *Agent) applyHostChanges(cs []record.Change) {
	for _, n := range a.on() {
		n.plane.Apply(cs)
	}
}

// applyAddressChanges applies changes of claims to addresses of one network.
func (a *Agent) applyAddressChanges(n *network, cs []record.Change) {
	a.names.Apply(n.ID, cs)
	n.addrs.Note(cs)
	n.plane.Apply(cs)
}

// read says whether all records of a network have been read from etcd since this daemon started.
func (a *Agent) read(n *network) bool {
	return a.hosts.Status().Compares > 0 && a.members.Status().Compares > 0 && n.claims.Status().Compares > 0
}

// save saves the copies of the cluster's records, and which addresses are in cooldown.
func (a *Agent) save() {
	mirrors := []*mirror.Mirror{a.hosts, a.members}
	for _, n := range a.on() {
		mirrors = append(mirrors, n.claims)
		if err := n.addrs.Save(); err != nil {
			a.c.Log.Warn("cooldown of addresses not saved", "network", n.Name, "network_id", n.ID, "err", err)
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
	if reason := a.whyNoMember(); reason != nil {
		return reason
	}
	errs := []error{a.tunnel.Complete(ctx), a.leaving.leave(ctx, a.has)}
	for _, n := range a.on() {
		errs = append(errs, a.syncNetwork(ctx, n))
	}
	return errors.Join(errs...)
}

// syncNetwork makes this host a member of a network, and its addresses in etcd what they are in the database.
func (a *Agent) syncNetwork(ctx context.Context, n *network) error {
	if a.members.Status().Compares == 0 || n.claims.Status().Compares == 0 {
		return nil // etcd has not been read yet
	}
	if !a.members.Has(record.Member{Network: n.ID, Host: a.self}.Key()) {
		if err := a.join(ctx, n); err != nil {
			return err
		}
	}
	if err := errors.Join(n.addrs.Sync(ctx), a.fence(ctx, n)); err != nil {
		return err
	}
	a.reopen(n)
	if a.network(n.ID) != n { // unbound meanwhile
		return nil
	}
	return n.addrs.Fill(ctx, n.MAC)
}
