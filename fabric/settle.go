package fabric

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"netyard/cluster"
	"netyard/kernel/core"
	"netyard/store"
)

// Run keeps etcd, the file and the kernel of one mind until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	defer a.tasks.wait()
	defer cancel()
	a.tasks.run(inner)
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return a.belong(ctx) })
	all.Go(func() error { return a.settle(ctx) })
	err := all.Wait()
	a.save()
	return err
}

// belong makes this host a member of the cluster, and says that it is alive.
func (a *Agent) belong(ctx context.Context) error {
	for ctx.Err() == nil {
		err := a.enter(ctx)
		if err == nil {
			err = a.c.Client.StayAlive(ctx, a.c.Log, a.host, a.c.BootID, a.say)
		} else if ctx.Err() == nil {
			a.say(err)
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(settleEvery):
			}
		}
	}
	return nil
}

// say notes why this host is no member; nil: it is one.
func (a *Agent) say(err error) {
	a.mu.Lock()
	was := a.reason
	a.reason = err
	if fenced := errors.Is(err, cluster.ErrForgotten); fenced != a.fenced && (err == nil || fenced) {
		a.fenced = fenced
		for _, n := range a.networks {
			n.unsure, n.shut = true, true // until it is known what is still this host's, see syncNetwork
		}
	}
	a.mu.Unlock()
	if err == nil && was != nil {
		a.c.Log.Info("this host is a member of the cluster", "host", a.self)
	}
	if err != nil && (was == nil || was.Error() != err.Error()) {
		a.c.Log.Warn("this host is no member of the cluster", "err", err)
	}
	a.poke()
}

// enter finds the cluster, or founds it if there is none and this host belongs nowhere.
func (a *Agent) enter(ctx context.Context) error {
	a.mu.Lock()
	want := a.who.Meta
	a.mu.Unlock()
	if want.Cluster == "" {
		want = cluster.Meta{Port: a.c.Port, IPv6: a.c.Host.VTEP.Is6()}
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
		a.tasks.start(a.hosts.Run)   //nolint:contextcheck // it lives as long as Run
		a.tasks.start(a.members.Run) //nolint:contextcheck // the same
		for _, n := range a.networks {
			n.stop = a.tasks.start(n.addrs.Run) //nolint:contextcheck // the same
		}
	}
	a.mu.Unlock()
	return nil
}

// settle does what is left to be done, again and again: at once when there is something, and each second what could not
// be done.
func (a *Agent) settle(ctx context.Context) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.poked:
		case <-tick.C:
			a.save()
		}
		a.assure() //nolint:contextcheck // the kernel answers at once, or not at all
		if err := a.sync(ctx); err != nil && ctx.Err() == nil {
			a.c.Log.Debug("bring etcd up to date", "err", err)
		}
	}
}

// assure tells the kernel everything again of networks of which it may not know everything.
func (a *Agent) assure() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		read := a.read(n)
		if !n.unsure && (n.sure || !read) {
			continue
		}
		if err := a.inform(n); err == nil {
			n.unsure, n.sure = false, read
		} else {
			a.c.Log.Debug("tell the kernel of all peers", "network", n.Name, "err", err)
		}
	}
}

// inform tells the kernel everything about a network. The caller holds the lock.
func (a *Agent) inform(n *network) error {
	err := a.admit(n)
	if err == nil {
		err = a.c.Kernel.Ensure(context.Background(), a.peers(n))
	}
	if err == nil {
		err = a.speak(n)
	}
	return err
}

// speak gives the host its own addresses of a network, and takes away those that are not any more.
func (a *Agent) speak(n *network) error {
	own, err := a.Own(n.ID)
	if err != nil {
		return err
	}
	var now []core.Addr
	for _, o := range own {
		if s, ok := n.Find(o.Addr); ok && o.Use == cluster.OfHost && !o.Lost && !o.Gone {
			now = append(now, core.Addr{Link: n.Bridge, Alias: n.Alias, Prefix: netip.PrefixFrom(o.Addr, s.Pool.Bits())})
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

// save writes the copies of what the others have.
func (a *Agent) save() {
	a.mu.Lock()
	mirrors := []*cluster.Mirror{a.hosts, a.members}
	var on []*network
	for _, n := range a.networks {
		mirrors, on = append(mirrors, n.addrs), append(on, n)
	}
	a.mu.Unlock()
	for _, n := range on {
		if err := a.keepRest(n); err != nil {
			a.c.Log.Warn("keep which addresses rest", "network", n.Name, "err", err)
		}
	}
	for _, m := range mirrors {
		if err := m.Save(a.c.Store); err != nil {
			a.c.Log.Warn("keep a copy of the cluster", "err", err)
		}
	}
}

// sync tells etcd what it has not heard yet. While this host is no member there is nobody to tell.
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
	errs := []error{a.turn(ctx), a.leave(ctx)}
	for _, n := range on {
		errs = append(errs, a.syncNetwork(ctx, n))
	}
	return errors.Join(errs...)
}

// leave gives up networks that were taken from this host.
func (a *Agent) leave(ctx context.Context) error {
	var ids []string
	err := a.c.Store.View(func(tx store.Tx) error {
		ids = leaving.Keys(tx, "")
		return nil
	})
	for _, id := range ids {
		a.mu.Lock()
		back := a.networks[id] != nil
		a.mu.Unlock()
		if !back {
			if err := a.c.Client.LeaveNetwork(ctx, cluster.Member{Network: id, Host: a.self}); err != nil {
				return err
			}
			if err := a.c.Client.DeleteUnusedNetwork(ctx, id); err != nil { // the last one takes it along
				return err
			}
		}
		if err := a.opens(id); err != nil {
			return err
		}
		err := a.c.Store.Update(func(tx store.Tx) error {
			return errors.Join(leaving.Delete(tx, id), parting.Delete(tx, id))
		})
		if err != nil {
			return err
		}
	}
	return err
}

// syncNetwork makes this host a member of a network, and its addresses there in etcd what they are here.
func (a *Agent) syncNetwork(ctx context.Context, n *network) error {
	m := cluster.Member{Network: n.ID, Host: a.self}
	if a.members.Status().Compares == 0 || n.addrs.Status().Compares == 0 {
		return nil // what etcd has is not known yet
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
	own, err = a.forgotten(n, own)
	if err == nil {
		err = a.reap(own)
	}
	if err != nil {
		return err
	}
	var errs []error
	slices.SortStableFunc(own, func(o, p Own) int { return rank(a.isOthers(n, o.Addr)) - rank(a.isOthers(n, p.Addr)) }) // see Own.Mute
	rest := slices.IndexFunc(own, func(o Own) bool { return !a.isOthers(n, o.Addr) })
	for i := range own {
		if i == rest { // of what is nobody else's, all at once
			if err := a.syncMany(ctx, m, own[i:]); err != nil {
				errs = append(errs, err)
				break
			}
		}
		o := own[i]
		if o.Synced || o.Trying || o.Lost && !o.Gone && a.isOthers(n, o.Addr) {
			continue
		}
		err := a.syncOne(ctx, m, o)
		errs = append(errs, err)
		if errors.Is(err, cluster.ErrUnreachable) || errors.Is(err, cluster.ErrNotFound) || errors.Is(err, errLost) {
			break // it is the same for the others, or may change what is said of them
		}
	}
	if err := errors.Join(append(errs, a.fence(ctx, n))...); err != nil {
		return err
	}
	a.open(n)
	for _, s := range n.Subnets {
		if err := a.fill(ctx, m, n, s, own); err != nil {
			return err
		}
	}
	return nil
}

// forgotten finds what etcd and this host do not have alike although it was so: after an old backup, or a crash. What
// is here and not there is told again; what is there and not here is given up.
func (a *Agent) forgotten(n *network, own []Own) ([]Own, error) {
	known := map[netip.Addr]bool{}
	for i, o := range own {
		known[o.Addr] = true
		want := o.record(a.self)
		if rec, _ := n.addrs.Get(want.Key()).(*cluster.Address); o.Synced && (rec == nil || !rec.Equal(*want) || !n.addrs.Has(want.Key())) {
			own[i].Synced = false
		}
	}
	var strays []Own
	n.addrs.Each(func(r cluster.Record) {
		if rec, ok := r.(*cluster.Address); ok && rec.Host == a.self && !known[rec.Addr] {
			strays = append(strays, Own{Network: n.ID, Addr: rec.Addr, Use: cluster.Warm, Gone: true})
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

// reap gives up addresses that were granted to somebody who never came, or never said that he has done with them.
func (a *Agent) reap(own []Own) error {
	for i, o := range own {
		if o.Use != cluster.Warm || o.Endpoint == "" || o.Gone || o.Trying || o.Since.IsZero() || time.Since(o.Since) < patience && !a.impatient.Load() {
			continue
		}
		if a.c.Held(o.Network, o.Addr) {
			continue
		}
		err := a.settleOwn(o, func(now Own, tx store.Tx) error {
			if now.Use != cluster.Warm || !now.Since.Equal(o.Since) {
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

// syncOne tells etcd of one address.
func (a *Agent) syncOne(ctx context.Context, m cluster.Member, o Own) error {
	if o.Gone {
		if !o.Lost {
			if err := a.c.Client.Release(ctx, m, o.Addr); err != nil {
				return err
			}
		}
		return a.settleOwn(o, func(now Own, tx store.Tx) error { return a.released(o, now, tx) })
	}
	err := a.c.Client.ClaimAddresses(ctx, m, o.claim())
	if errors.Is(err, cluster.ErrTaken) {
		if o.Endpoint == "" { // nobody will miss it
			a.doubt(m.Network)
			return a.settleOwn(o, func(now Own, tx store.Tx) error {
				if now.Endpoint != "" { // somebody was given it meanwhile; he hears of it at the next look
					return nil
				}
				return owns.Delete(tx, o.key())
			})
		}
		if !o.Lost {
			a.c.Log.Error("an address of this host is another host's", "network", m.Network, "address", o.Addr, "endpoint", o.Endpoint)
		}
		err = a.settleOwn(o, func(now Own, tx store.Tx) error {
			now.Lost, now.Synced = true, false
			return owns.Put(tx, o.key(), now)
		})
		return errors.Join(err, a.mute(o.Network), errLost)
	}
	if err != nil {
		return err
	}
	return a.settleOwn(o, func(now Own, tx store.Tx) error { return a.told(o, now, tx) })
}

// doubt has the kernel told everything of a network again.
func (a *Agent) doubt(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.networks[id]; n != nil {
		n.unsure = true
		a.poke()
	}
}

func (a *Agent) settleOwn(o Own, f func(Own, store.Tx) error) error {
	defer a.rolls.doubt(o.Network)
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
