package lease

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"netyard/ipam/dhcp"
	"netyard/kernel/core"
	kdhcp "netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

const (
	// idleLook is how often the leases are looked through when nothing is due.
	idleLook = 30 * time.Second
	// releasePause is between two attempts to give a lease back, and releaseTries how many there are: it expires by
	// itself.
	releasePause, releaseTries = 10 * time.Second, 3
	// namePause is between two attempts to tell a server a container's name: at first the engine is still busy with the
	// link.
	namePause = time.Second
	// acquireTime is how long a container without an address looks for one at a time.
	acquireTime = 5 * time.Second
)

// KeepLeases has leases renewed from inside their sandboxes, and given back when nobody has them any more, until ctx
// ends. What is under way then comes to its end first.
func KeepLeases(ctx context.Context, y *book.Book) error {
	defer y.Keeper.Work.Wait()
	for {
		next, err := tend(ctx, y)
		if err != nil {
			y.Config.Log.Error("look through the leases", "err", err)
		}
		timer := time.NewTimer(min(max(next.Sub(y.Config.Now()), 0), idleLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-y.Keeper.Poked:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// tend begins what is due, and says when the next thing is.
func tend(ctx context.Context, y *book.Book) (next time.Time, err error) {
	now := y.Config.Now()
	next = now.Add(idleLook)
	leases, err := DHCPLeases(y)
	if err != nil {
		return next, err
	}
	for _, l := range leases {
		// Each has a lock of its own: who waits for IPv6 does not keep the address from being renewed, nor a container
		// from starting.
		for lock, of := range map[string]tasks{lockPrefix + l.ID: TaskOf, lockPrefix + l.ID + " IPv6": sixTask} {
			due, do := of(y, l, now)
			if do == nil {
				continue
			}
			if due.After(now) {
				next = earlier(next, due)
				continue
			}
			begin(&y.Keeper, lock, func() {
				defer y.PokeLeases()
				if err := perform(ctx, y, lock, l.ID, of); err != nil && ctx.Err() == nil {
					y.Config.Log.Warn("see to a lease", "network", l.Network, "address", l.Lease.Addr, "name", l.Name, "err", err)
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
func begin(k *book.Keeper, id string, do func()) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	if k.Busy[id] {
		return
	}
	if k.Busy == nil {
		k.Busy = map[string]bool{}
	}
	k.Busy[id] = true
	k.Work.Go(func() {
		defer func() {
			k.Mu.Lock()
			defer k.Mu.Unlock()
			delete(k.Busy, id)
		}()
		do()
	})
}

// A Task is what is done about a lease.
type Task func(context.Context, *book.Book, DHCPLease) error

// A tasks says what is to be done about a lease, and when; nil: nothing.
type tasks func(*book.Book, DHCPLease, time.Time) (time.Time, Task)

// TaskOf is what is to be done about a lease, and when; nil: nothing.
func TaskOf(y *book.Book, l DHCPLease, now time.Time) (time.Time, Task) {
	switch l.Phase {
	case DHCPOffered, DHCPDown: // the request that made it is under way; it is over
		return time.Time{}, nil
	case DHCPReleasing:
		if l.Tries == 0 {
			return now, release
		}
		return l.Tried.Add(releasePause), release
	case DHCPHeld:
	}
	due := l.Lease.Due(now, l.Tried)
	e, err := y.Endpoint(l.Network, l.Endpoint)
	switch {
	case errors.Is(err, book.ErrNotFound):
		return l.Since.Add(y.Config.Grace), orphan
	case err != nil || e.Phase != modes.Ready || e.Sandbox == "" || !core.IsNamespace(e.Sandbox):
		if due.IsZero() {
			due = now.Add(idleLook)
		}
		return later(earlier(now.Add(idleLook), due), now.Add(namePause)), extend // a look, when it may be ready
	}
	if Hostname(l, e) != l.Hostname && l.Lease.State(now) == dhcp.Bound {
		due = l.Tried.Add(namePause)
	}
	if due.IsZero() {
		return due, nil
	}
	return due, extend
}

// Hostname is what the server is to be told: the container's own, unless that is only the beginning of its id, as an
// engine makes one up. Until it is known, what was told already.
func Hostname(l DHCPLease, e modes.Endpoint) string {
	switch c := e.Container; {
	case modes.IPAMOpt(l.Options, "hostname") != "true":
		return ""
	case c.Hostname != "" && c.ID != "" && c.Hostname != modes.Short(c.ID):
		return HostLabel(c.Hostname)
	case c.Name != "":
		return HostLabel(c.Name)
	}
	return l.Hostname
}

// perform does its duty by a lease if that is still the same, alone.
func perform(ctx context.Context, y *book.Book, lock, id string, of tasks) error {
	release, err := y.Locks.Hold(ctx, lock, false)
	if err != nil {
		return err
	}
	defer release()
	l, err := lease(y, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	now := y.Config.Now()
	due, do := of(y, l, now)
	if do == nil || due.After(now) {
		return nil
	}
	return do(ctx, y, l)
}

// orphan gives back a lease that no endpoint ever had, or has any more.
func orphan(_ context.Context, y *book.Book, l DHCPLease) error {
	y.Config.Log.Info("release a lease without an endpoint", "network", l.Network, "address", l.Lease.Addr)
	return y.Update("lease released", func(tx store.Tx) error { return giveBack(y, tx, l) })
}

// release tells the server that it can have an address back.
func release(ctx context.Context, y *book.Book, l DHCPLease) error {
	ctx, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	err := sayRelease(ctx, y, l)
	if err == nil || l.Tries+1 >= releaseTries || l.Lease.State(y.Config.Now()) == dhcp.Expired {
		if err != nil {
			err = fmt.Errorf("release %s; the server frees it at %s by itself: %w", l.Lease.Addr, l.Lease.Expires.Format(time.DateTime), err)
		}
		return errors.Join(err, y.Update("lease gone", func(tx store.Tx) error { return dhcpLeases.Delete(tx, l.ID) }))
	}
	l.Tried, l.Tries = y.Config.Now(), l.Tries+1
	return errors.Join(err, y.Config.Store.Update(func(tx store.Tx) error { return dhcpLeases.Put(tx, l.ID, l) }))
}

func sayRelease(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	wire, err := kdhcp.PlugWire(y.Config.Kernel.Handle, l.LAN, mac)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wire.Close()) }()
	wire.NextHop = l.Lease.NextHop
	client, err := client(y, l, wire)
	if err != nil {
		return err
	}
	if err := client.Release(ctx, l.Lease); err != nil {
		return err
	}
	y.Config.Log.Info("lease released", "network", l.Network, "address", l.Lease.Addr, "server", l.Lease.Server)
	return nil
}

// extend asks for more time from inside the sandbox, or for another lease when that one is over.
func extend(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	if e.Sandbox == "" || !core.IsNamespace(e.Sandbox) {
		return nil
	}
	l.Hostname = Hostname(l, e)
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	box, err := kdhcp.EnterLink(e.Sandbox, core.Alias(e.NetworkID, e.ID), mac)
	if err != nil { // the engine has not moved the link in yet, or it is about to be taken out
		return again(y, l)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if l.Lease.State(y.Config.Now()) == dhcp.Expired {
		return lost(ctx, y, l, e, box, "it has run out")
	}
	socket, err := box.Socket()
	if err != nil {
		return errors.Join(err, again(y, l))
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	client, err := client(y, l, socket)
	if err != nil {
		return err
	}
	attempt, cancel := context.WithTimeout(ctx, l.Lease.Patience())
	defer cancel()
	more, err := client.Extend(attempt, l.Lease)
	switch {
	case errors.Is(err, dhcp.ErrRefused):
		return lost(ctx, y, l, e, box, err.Error())
	case err != nil:
		if s := l.Lease.State(y.Config.Now()); s == dhcp.Renewing && l.Tried.Before(l.Lease.Renew) || s == dhcp.Rebinding {
			y.Config.Log.Warn("no more time for a lease yet", "network", l.Network, "address", l.Lease.Addr, "container", e.Container.Name,
				"server", l.Lease.Server, "expires", l.Lease.Expires, "err", err)
		}
		return again(y, l)
	}
	return extended(y, l, more, box)
}

// again notes that more time was asked for in vain.
func again(y *book.Book, l DHCPLease) error {
	return change(y, l, func(now *DHCPLease) { now.Tried = y.Config.Now() })
}

// extended notes that more time was granted, and does what the server says otherwise than before.
func extended(y *book.Book, l DHCPLease, more dhcp.Lease, box *kdhcp.InnerLink) error {
	old := l.Lease
	if more.NextHop == nil { // an answer by way of IP does not show it
		more.NextHop = old.NextHop
	}
	err := change(y, l, func(now *DHCPLease) { now.Lease, now.Hostname, now.Tried = more, l.Hostname, time.Time{} })
	if err != nil {
		return err
	}
	y.Config.Log.Debug("lease extended", "network", l.Network, "address", more.Addr, "server", more.Server, "expires", more.Expires)
	if old.Addr == more.Addr && old.Router == more.Router && slices.Equal(old.Routes, more.Routes) {
		return nil
	}
	if err := readdress(y, l, old.Addr, more, box); err != nil {
		return err
	}
	return y.Config.Store.Update(func(tx store.Tx) error {
		_, _, err := moveEndpoint(tx, l, more)
		return err
	})
}

// change changes a held lease, unless it was given back meanwhile.
func change(y *book.Book, l DHCPLease, do func(*DHCPLease)) error {
	return y.Config.Store.Update(func(tx store.Tx) error {
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

// SettleOffers gives back the leases that were being asked for when the daemon died: nobody was told of them.
func SettleOffers(y *book.Book) error {
	return y.Config.Store.Update(func(tx store.Tx) error {
		leases, err := dhcpLeases.List(tx, "")
		if err != nil {
			return err
		}
		for _, l := range leases {
			if l.Phase != DHCPOffered {
				continue
			}
			if err := giveBack(y, tx, l); err != nil {
				return err
			}
		}
		return nil
	})
}

// AuditLeases finds the leases that no endpoint has.
func AuditLeases(y *book.Book) (out []book.Finding, err error) {
	leases, err := DHCPLeases(y)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		if l.Phase != DHCPHeld || y.Config.Now().Sub(l.Since) < book.Young {
			continue
		}
		if _, err := y.Endpoint(l.Network, l.Endpoint); !errors.Is(err, book.ErrNotFound) {
			continue
		}
		out = append(out, book.Finding{
			Kind: book.Orphan, Text: fmt.Sprintf("lease %s of DHCP server %s belongs to no endpoint", l.Lease.Addr.Addr(), l.Lease.Server), Removable: true,
			Remove: func(ctx context.Context) error { return orphan(ctx, y, l) },
		})
	}
	return out, nil
}
