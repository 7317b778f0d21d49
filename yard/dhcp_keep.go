package yard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"netyard/ipam/dhcp"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

const (
	// idleLook is how often the leases are looked through when nothing is due.
	idleLook = 30 * time.Second
	// releasePause is between two attempts to give a lease back, and releaseTries how many there are: it expires by itself.
	releasePause, releaseTries = 10 * time.Second, 3
	// namePause is between two attempts to tell a server a container's name: at first the engine is still busy with the link.
	namePause = time.Second
	// acquireTime is how long a container without an address looks for one at a time.
	acquireTime = 5 * time.Second
)

// A keeper is what KeepLeases has under way.
type keeper struct {
	poked chan struct{}
	dirty atomic.Bool // a lease was given back in a transaction
	mu    sync.Mutex
	busy  map[string]bool // leases that something is being done about
	work  sync.WaitGroup
}

func (y *Yard) pokeLeases() {
	select {
	case y.keeper.poked <- struct{}{}:
	default:
	}
}

// KeepLeases has leases renewed from inside their sandboxes, and given back when nobody has them any more, until ctx ends. What is under
// way then comes to its end first.
func (y *Yard) KeepLeases(ctx context.Context) error {
	defer y.keeper.work.Wait()
	for {
		next, err := y.tend(ctx)
		if err != nil {
			y.c.Log.Error("look through the leases", "err", err)
		}
		timer := time.NewTimer(min(max(next.Sub(y.c.Now()), 0), idleLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-y.keeper.poked:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// tend begins what is due, and says when the next thing is.
func (y *Yard) tend(ctx context.Context) (next time.Time, err error) {
	now := y.c.Now()
	next = now.Add(idleLook)
	leases, err := y.DHCPLeases()
	if err != nil {
		return next, err
	}
	for _, l := range leases {
		// Each has a lock of its own: who waits for IPv6 does not keep the address from being renewed, nor a container from starting.
		for lock, of := range map[string]dutyOf{lockPrefix + l.ID: (*Yard).duty, lockPrefix + l.ID + " IPv6": (*Yard).sixDuty} {
			due, do := of(y, l, now)
			if do == nil {
				continue
			}
			if due.After(now) {
				next = earlier(next, due)
				continue
			}
			y.keeper.begin(lock, func() {
				defer y.pokeLeases()
				if err := y.perform(ctx, lock, l.ID, of); err != nil && ctx.Err() == nil {
					y.c.Log.Warn("see to a lease", "network", l.Network, "address", l.Lease.Addr, "name", l.Name, "err", err)
				}
			})
		}
	}
	return next, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// begin does something about a lease, unless something is being done about it.
func (k *keeper) begin(id string, do func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy[id] {
		return
	}
	if k.busy == nil {
		k.busy = map[string]bool{}
	}
	k.busy[id] = true
	k.work.Go(func() {
		defer func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			delete(k.busy, id)
		}()
		do()
	})
}

// A duty is what is done about a lease.
type duty func(*Yard, context.Context, DHCPLease) error

// A dutyOf says what is to be done about a lease, and when; nil: nothing.
type dutyOf func(*Yard, DHCPLease, time.Time) (time.Time, duty)

// duty is what is to be done about a lease, and when; nil: nothing.
func (y *Yard) duty(l DHCPLease, now time.Time) (time.Time, duty) {
	switch l.Phase {
	case DHCPOffered, DHCPDown: // the request that made it is under way; it is over
		return time.Time{}, nil
	case DHCPReleasing:
		if l.Tries == 0 {
			return now, (*Yard).release
		}
		return l.Tried.Add(releasePause), (*Yard).release
	case DHCPHeld:
	}
	due := l.Lease.Due(now, l.Tried)
	e, err := y.Endpoint(l.Network, l.Endpoint)
	switch {
	case errors.Is(err, ErrNotFound):
		return l.Since.Add(y.c.Grace), (*Yard).orphan
	case err != nil || e.Phase != modes.Ready || e.Sandbox == "" || !kernel.IsNamespace(e.Sandbox):
		if due.IsZero() {
			due = now.Add(idleLook)
		}
		return later(earlier(now.Add(idleLook), due), now.Add(namePause)), (*Yard).extend // a look, when it may be ready
	}
	if y.hostname(l, e) != l.Hostname && l.Lease.State(now) == dhcp.Bound {
		due = l.Tried.Add(namePause)
	}
	if due.IsZero() {
		return due, nil
	}
	return due, (*Yard).extend
}

// hostname is what the server is to be told: the container's own, unless that is only the beginning of its id, as an engine makes one
// up. Until it is known, what was told already.
func (y *Yard) hostname(l DHCPLease, e modes.Endpoint) string {
	switch c := e.Container; {
	case modes.IPAMOpt(l.Options, "hostname") != "true":
		return ""
	case c.Hostname != "" && c.ID != "" && c.Hostname != modes.Short(c.ID):
		return hostLabel(c.Hostname)
	case c.Name != "":
		return hostLabel(c.Name)
	}
	return l.Hostname
}

// perform does its duty by a lease if that is still the same, alone.
func (y *Yard) perform(ctx context.Context, lock, id string, of dutyOf) error {
	release, err := y.locks.hold(ctx, lock, false)
	if err != nil {
		return err
	}
	defer release()
	l, err := y.lease(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	now := y.c.Now()
	due, do := of(y, l, now)
	if do == nil || due.After(now) {
		return nil
	}
	return do(y, ctx, l)
}

// orphan gives back a lease that no endpoint ever had, or has any more.
func (y *Yard) orphan(_ context.Context, l DHCPLease) error {
	y.c.Log.Info("release a lease without an endpoint", "network", l.Network, "address", l.Lease.Addr)
	return y.update("lease released", func(tx store.Tx) error { return y.giveBack(tx, l) })
}

// release tells the server that it can have an address back.
func (y *Yard) release(ctx context.Context, l DHCPLease) error {
	ctx, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	err := y.sayRelease(ctx, l)
	if err == nil || l.Tries+1 >= releaseTries || l.Lease.State(y.c.Now()) == dhcp.Expired {
		if err != nil {
			err = fmt.Errorf("release %s; the server frees it at %s by itself: %w", l.Lease.Addr, l.Lease.Expires.Format(time.DateTime), err)
		}
		return errors.Join(err, y.update("lease gone", func(tx store.Tx) error { return dhcpLeases.Delete(tx, l.ID) }))
	}
	l.Tried, l.Tries = y.c.Now(), l.Tries+1
	return errors.Join(err, y.c.Store.Update(func(tx store.Tx) error { return dhcpLeases.Put(tx, l.ID, l) }))
}

func (y *Yard) sayRelease(ctx context.Context, l DHCPLease) (err error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	wire, err := y.c.Kernel.PlugWire(l.LAN, mac)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wire.Close()) }()
	wire.NextHop = l.Lease.NextHop
	client, err := y.client(l, wire)
	if err != nil {
		return err
	}
	if err := client.Release(ctx, l.Lease); err != nil {
		return err
	}
	y.c.Log.Info("lease released", "network", l.Network, "address", l.Lease.Addr, "server", l.Lease.Server)
	return nil
}

// extend asks for more time from inside the sandbox, or for another lease when that one is over.
func (y *Yard) extend(ctx context.Context, l DHCPLease) (err error) {
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	if e.Sandbox == "" || !kernel.IsNamespace(e.Sandbox) {
		return nil
	}
	l.Hostname = y.hostname(l, e)
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	box, err := kernel.EnterLink(e.Sandbox, kernel.Alias(e.NetworkID, e.ID), mac)
	if err != nil { // the engine has not moved the link in yet, or it is about to be taken out
		return y.again(l)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if l.Lease.State(y.c.Now()) == dhcp.Expired {
		return y.lost(ctx, l, e, box, "it has run out")
	}
	socket, err := box.Socket()
	if err != nil {
		return errors.Join(err, y.again(l))
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	client, err := y.client(l, socket)
	if err != nil {
		return err
	}
	attempt, cancel := context.WithTimeout(ctx, l.Lease.Patience())
	defer cancel()
	more, err := client.Extend(attempt, l.Lease)
	switch {
	case errors.Is(err, dhcp.ErrRefused):
		return y.lost(ctx, l, e, box, err.Error())
	case err != nil:
		if s := l.Lease.State(y.c.Now()); s == dhcp.Renewing && l.Tried.Before(l.Lease.Renew) || s == dhcp.Rebinding {
			y.c.Log.Warn("no more time for a lease yet", "network", l.Network, "address", l.Lease.Addr, "container", e.Container.Name,
				"server", l.Lease.Server, "expires", l.Lease.Expires, "err", err)
		}
		return y.again(l)
	}
	return y.extended(l, more, box)
}

// again notes that more time was asked for in vain.
func (y *Yard) again(l DHCPLease) error {
	return y.change(l, func(now *DHCPLease) { now.Tried = y.c.Now() })
}

// extended notes that more time was granted, and does what the server says otherwise than before.
func (y *Yard) extended(l DHCPLease, more dhcp.Lease, box *kernel.InnerLink) error {
	old := l.Lease
	if more.NextHop == nil { // an answer by way of IP does not show it
		more.NextHop = old.NextHop
	}
	err := y.change(l, func(now *DHCPLease) { now.Lease, now.Hostname, now.Tried = more, l.Hostname, time.Time{} })
	if err != nil {
		return err
	}
	y.c.Log.Debug("lease extended", "network", l.Network, "address", more.Addr, "server", more.Server, "expires", more.Expires)
	if old.Addr == more.Addr && old.Router == more.Router && slices.Equal(old.Routes, more.Routes) {
		return nil
	}
	if err := y.readdress(l, old.Addr, more, box); err != nil {
		return err
	}
	return y.c.Store.Update(func(tx store.Tx) error {
		_, _, err := moveEndpoint(tx, l, more)
		return err
	})
}

// change changes a held lease, unless it was given back meanwhile.
func (y *Yard) change(l DHCPLease, do func(*DHCPLease)) error {
	return y.c.Store.Update(func(tx store.Tx) error {
		now, err := dhcpLeases.Get(tx, l.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && now.Phase != DHCPHeld {
			return nil
		}
		if err != nil {
			return err
		}
		do(&now)
		return dhcpLeases.Put(tx, l.ID, now)
	})
}

// settleOffers gives back the leases that were being asked for when the daemon died: nobody was told of them.
func (y *Yard) settleOffers() error {
	return y.c.Store.Update(func(tx store.Tx) error {
		leases, err := dhcpLeases.List(tx, "")
		if err != nil {
			return err
		}
		for _, l := range leases {
			if l.Phase != DHCPOffered {
				continue
			}
			if err := y.giveBack(tx, l); err != nil {
				return err
			}
		}
		return nil
	})
}

// auditLeases finds the leases that no endpoint has.
func (y *Yard) auditLeases() (out []Finding, err error) {
	leases, err := y.DHCPLeases()
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		if l.Phase != DHCPHeld || y.c.Now().Sub(l.Since) < young {
			continue
		}
		if _, err := y.Endpoint(l.Network, l.Endpoint); !errors.Is(err, ErrNotFound) {
			continue
		}
		out = append(out, Finding{
			Kind: Orphan, Text: fmt.Sprintf("lease %s of DHCP server %s belongs to no endpoint", l.Lease.Addr.Addr(), l.Lease.Server), Removable: true,
			remove: func(ctx context.Context) error { return y.orphan(ctx, l) },
		})
	}
	return out, nil
}
