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
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

const (
	// idleLook is how often the leases are checked when nothing is due.
	idleLook = 30 * time.Second
	// releasePause is the time between two attempts to release a lease, and releaseTries the number of attempts. A
	// lease that cannot be released expires.
	releasePause, releaseTries = 10 * time.Second, 3
	// namePause is the time between two attempts to tell a server a container's name: at first the engine may still be
	// setting up the link.
	namePause = time.Second
	// acquireTime is how long one attempt to acquire or release an address may take.
	acquireTime = 5 * time.Second
)

// KeepLeases renews leases from inside their sandboxes, and releases those without an endpoint, until ctx ends. It
// returns when all tasks under way have ended.
func KeepLeases(ctx context.Context, y *book.Book) error {
	defer y.Keeper.Work.Wait()
	for {
		next, err := startDue(ctx, y)
		if err != nil {
			y.Config.Log.Error("lease check failed", "err", err)
		}
		timer := time.NewTimer(min(max(next.Sub(y.Config.Now()), 0), idleLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-y.Keeper.Wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// startDue starts the tasks that are due, and returns when the next one is.
func startDue(ctx context.Context, y *book.Book) (next time.Time, err error) {
	now := y.Config.Now()
	next = now.Add(idleLook)
	leases, err := DHCPLeases(y)
	if err != nil {
		return next, err
	}
	for _, l := range leases {
		// IPv6 has a lock of its own, so that waiting for it delays neither the renewal of the IPv4 address nor the
		// start of a container.
		for lock, of := range map[string]taskFunc{lockPrefix + l.ID: TaskOf, lockPrefix + l.ID + " IPv6": sixTask} {
			due, do := of(y, l, now)
			if do == nil {
				continue
			}
			if due.After(now) {
				next = earlier(next, due)
				continue
			}
			start(&y.Keeper, lock, func() {
				defer y.Keeper.Wake.Send()
				if err := runTask(ctx, y, lock, l.ID, of); err != nil && ctx.Err() == nil {
					y.LogOf(l.Network).Warn("lease upkeep failed",
						"address", l.Lease.Addr, "client", l.Name, "err", err)
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

// start runs a task in the background, unless one with this ID is running.
func start(k *book.Keeper, id string, do func()) {
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

// A Task does something about a lease, such as to renew or to release it.
type Task func(context.Context, *book.Book, DHCPLease) error

// A taskFunc returns the next task of a lease and when it is due; nil if there is none.
type taskFunc func(*book.Book, DHCPLease, time.Time) (time.Time, Task)

// TaskOf returns the next task of a lease and when it is due; nil if there is none.
func TaskOf(y *book.Book, l DHCPLease, now time.Time) (time.Time, Task) {
	switch l.Phase {
	case DHCPOffered, DHCPDown: // its request is still under way; it was lost
		return time.Time{}, nil
	case DHCPReleasing:
		if l.Tries == 0 {
			return now, release
		}
		return l.Tried.Add(releasePause), release
	case DHCPHeld:
	}
	due := l.Lease.NextAttempt(now, l.Tried)
	e, err := y.Endpoint(l.Network, l.Endpoint)
	switch {
	case errors.Is(err, book.ErrNotFound):
		return l.Since.Add(y.Config.Grace), releaseOrphan
	case err != nil || e.Phase != modes.Ready || !y.Enterable(e):
		if due.IsZero() {
			due = now.Add(idleLook)
		}
		return later(earlier(now.Add(idleLook), due), now.Add(namePause)), extend // the endpoint may be ready by then
	}
	if Hostname(l, e) != l.Hostname && l.Lease.State(now) == dhcp.Bound {
		due = l.Tried.Add(namePause)
	}
	if due.IsZero() {
		return due, nil
	}
	return due, extend
}

// Hostname returns the host name to tell the server: the container's own, or its name if the host name is only the
// beginning of its ID, which is an engine's default. While neither is known it is the one that the server has.
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

// runTask runs the task of a lease with the lock held, if it is still due.
func runTask(ctx context.Context, y *book.Book, lock, id string, of taskFunc) error {
	release, err := y.Locks.Hold(ctx, lock, false)
	if err != nil {
		return err
	}
	defer release()
	l, err := getLease(y, id)
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

// releaseOrphan marks a lease without an endpoint to be released.
func releaseOrphan(_ context.Context, y *book.Book, l DHCPLease) error {
	y.LogOf(l.Network).Info("orphaned lease found", "address", l.Lease.Addr, "client", l.Name)
	return y.Update("lease released", func(tx store.Tx) error { return markReleasing(y, tx, l) })
}

// release releases an address at the server, and forgets the lease when that is done or was tried often enough.
func release(ctx context.Context, y *book.Book, l DHCPLease) error {
	ctx, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	err := sendRelease(ctx, y, l)
	if err == nil || l.Tries+1 >= releaseTries || l.Lease.State(y.Config.Now()) == dhcp.Expired {
		if err != nil {
			err = fmt.Errorf("release lease of %s: %w; it expires at %s",
				l.Lease.Addr, err, l.Lease.Expires.Format(time.DateTime))
		}
		return errors.Join(err, y.Update("lease gone", func(tx store.Tx) error { return dhcpLeases.Delete(tx, l.ID) }))
	}
	l.Tried, l.Tries = y.Config.Now(), l.Tries+1
	return errors.Join(err, y.Config.Store.Update(func(tx store.Tx) error { return dhcpLeases.Put(tx, l.ID, l) }))
}

// sendRelease sends a DHCPRELEASE from the host, with the client's MAC.
func sendRelease(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	wire, err := kdhcp.PlugWire(y.Config.Handle, l.LAN, mac)
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
	y.LogOf(l.Network).Info("lease released", "address", l.Lease.Addr, "client", l.Name, "server", l.Lease.Server)
	return nil
}

// extend extends a lease from inside the sandbox, or acquires another one if it has expired or the server refuses.
func extend(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	if !y.Enterable(e) {
		return nil
	}
	l.Hostname = Hostname(l, e)
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return err
	}
	box, err := kdhcp.OpenSandboxLink(e.Sandbox, e.NS, core.Alias(e.NetworkID, e.ID), mac)
	if err != nil { // the engine has not moved the link in yet, or is about to remove it
		return noteAttempt(y, l)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if l.Lease.State(y.Config.Now()) == dhcp.Expired {
		return handleLost(ctx, y, leased{l, e}, box, "it expired")
	}
	socket, err := box.Socket()
	if err != nil {
		return errors.Join(err, noteAttempt(y, l))
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	client, err := client(y, l, socket)
	if err != nil {
		return err
	}
	attempt, cancel := context.WithTimeout(ctx, l.Lease.AttemptTimeout())
	defer cancel()
	more, err := client.Extend(attempt, l.Lease)
	switch {
	case errors.Is(err, dhcp.ErrRefused):
		return handleLost(ctx, y, leased{l, e}, box, err.Error())
	case err != nil:
		s := l.Lease.State(y.Config.Now())
		if s == dhcp.Renewing && l.Tried.Before(l.Lease.Renew) || s == dhcp.Rebinding {
			y.LogOf(l.Network).Warn("lease renewal failed", "address", l.Lease.Addr,
				"container", e.Container.Name, "server", l.Lease.Server, "expires", l.Lease.Expires, "err", err)
		}
		return noteAttempt(y, l)
	}
	return applyExtension(ctx, y, leased{l, e}, more, box)
}

// noteAttempt records that an attempt to extend a lease failed.
func noteAttempt(y *book.Book, l DHCPLease) error {
	return changeHeld(y, l, func(now *DHCPLease) { now.Tried = y.Config.Now() })
}

// applyExtension applies what the server changed in an extended lease, and records it: address, router, routes and MTU.
// The kernel is first, so that after a crash the next extension has the same difference.
func applyExtension(
	ctx context.Context, y *book.Book, l leased, more dhcp.Lease, box *kdhcp.SandboxLink,
) (err error) {
	old := l.Lease
	if more.NextHop == nil { // an answer by IP does not show the MAC it came from
		more.NextHop = old.NextHop
	}
	same := old.Addr == more.Addr && old.Router == more.Router && old.MTU == more.MTU &&
		slices.Equal(old.Routes, more.Routes)
	var inside sandbox.Plug
	if !same {
		if inside, err = readdress(y, l, more, box); err != nil {
			return errors.Join(err, noteAttempt(y, l.DHCPLease))
		}
	}
	err = changeHeld(y, l.DHCPLease, func(now *DHCPLease) {
		now.Lease, now.Hostname, now.Tried = more, l.Hostname, time.Time{}
	})
	if err != nil {
		return err
	}
	y.LogOf(l.Network).Debug("lease extended", "address", more.Addr, "client", l.Name,
		"server", more.Server, "expires", more.Expires)
	if same {
		return nil
	}
	y.LogOf(l.Network).Info("lease changed", "container", l.endpoint.Container.Name, "address", more.Addr,
		"router", more.Router, "routes", len(more.Routes), "mtu", more.MTU, "server", more.Server)
	h, err := y.HoldNew(ctx, l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	defer h.Release()
	return y.Config.Store.Update(func(tx store.Tx) error {
		_, err := putMoved(tx, h, moved{old.Addr, more.Addr, inside})
		return err
	})
}

// changeHeld changes the record of a held lease. It does nothing if the lease was released meanwhile.
func changeHeld(y *book.Book, l DHCPLease, do func(*DHCPLease)) error {
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

// ReleaseOffers releases the leases that were being requested when the daemon died: no engine was told of them.
func ReleaseOffers(y *book.Book) error {
	return y.Config.Store.Update(func(tx store.Tx) error {
		leases, err := dhcpLeases.List(tx, "")
		if err != nil {
			return err
		}
		for _, l := range leases {
			if l.Phase != DHCPOffered {
				continue
			}
			if err := markReleasing(y, tx, l); err != nil {
				return err
			}
		}
		return nil
	})
}

// AuditLeases returns a finding for each held lease without an endpoint, and for each endpoint that is not as its lease
// says.
func AuditLeases(y *book.Book) (out []book.Finding, err error) {
	leases, err := DHCPLeases(y)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		if l.Phase != DHCPHeld || y.Config.Now().Sub(l.Since) < book.Young {
			continue
		}
		e, err := y.Endpoint(l.Network, l.Endpoint)
		if err == nil {
			found, err := auditLease(y, l, e)
			if err != nil {
				return nil, err
			}
			out = append(out, found...)
		}
		if !errors.Is(err, book.ErrNotFound) {
			continue
		}
		out = append(out, book.Finding{
			Kind: book.Orphan, Removable: true,
			Text: fmt.Sprintf("lease %s of DHCP server %s belongs to no endpoint",
				l.Lease.Addr.Addr(), l.Lease.Server),
			Remove: func(ctx context.Context) error { return releaseOrphan(ctx, y, l) },
		})
	}
	return out, nil
}

// auditLease returns the findings about an endpoint that has a lease.
func auditLease(y *book.Book, l DHCPLease, e modes.Endpoint) (out []book.Finding, err error) {
	if e.Phase != modes.Ready || !y.Enterable(e) || l.Lease.State(y.Config.Now()) == dhcp.Expired {
		return nil, nil
	}
	n, err := y.Network(l.Network)
	if errors.Is(err, book.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	texts, err := faults(y, n, e, l)
	if err != nil {
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		out = append(out, book.Finding{
			Kind: book.Fault, Network: book.Label(n),
			Text: fmt.Sprintf("%s is not as the lease of DHCP server %s says: %s; restart it",
				book.Owned(e), l.Lease.Server, text),
		})
	}
	return out, nil
}
