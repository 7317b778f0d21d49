package lease

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"netyard/ipam/dhcp"
	"netyard/kernel/core"
	kdhcp "netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/event"
)

const (
	// sixTime is how long an attempt to get an IPv6 address may take. Duplicate address detection takes a second for
	// the link-local address, and another one for the leased one.
	sixTime = 10 * time.Second
	// sixPause is the time between two attempts to get an address when no server gives one.
	sixPause = 10 * time.Second
	// leaveTime is how long the release of an IPv6 address may delay the end of a container.
	leaveTime = time.Second
)

// A Six is the IPv6 state of a lease's link. It is set up from inside the sandbox, after the container has joined.
type Six struct {
	On    bool       // IPv6 is enabled in the sandbox, as the network's options say
	Lease dhcp.Lease `json:",omitzero"` // by DHCPv6; without an address: none, or not yet
	Tried time.Time  `json:",omitzero"` // the last failed attempt
}

// checkSix refuses IPv6 where policies apply: they match addresses, and do not know those that a container gets this
// way.
func checkSix(m modes.Mode, n modes.Network, p DHCPPool) error {
	kind := modes.IPAMOpt(p.Options, "ipv6")
	if kind != "none" && m.Traits(n).Policed {
		return modes.Refuse("ipv6=%s: policies apply to mode %s, and would not know the addresses; "+
			"use it on networks whose packets do not pass this host's firewall", kind, n.Mode)
	}
	return nil
}

// sixTask returns the next task for the IPv6 of a lease's link and when it is due; nil if there is none.
func sixTask(y *book.Book, l DHCPLease, now time.Time) (time.Time, Task) {
	kind := modes.IPAMOpt(l.Options, "ipv6")
	if kind == "none" || l.Phase != DHCPHeld || l.Endpoint == "" {
		return time.Time{}, nil
	}
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil || e.Phase != modes.Ready || e.Sandbox == "" || !y.Config.Kernel.IsNamespace(e.Sandbox) {
		return time.Time{}, nil
	}
	switch {
	case !l.Six.On:
		return l.Six.Tried.Add(namePause), configureSix // the engine may still be setting up the link
	case kind != "dhcp":
		return time.Time{}, nil
	case !l.Six.Lease.Addr.IsValid():
		return l.Six.Tried.Add(sixPause), configureSix
	}
	due := l.Six.Lease.NextAttempt(now, l.Six.Tried)
	if due.IsZero() {
		return due, nil
	}
	return due, configureSix
}

// configureSix enables IPv6 on the link, and then gets or renews an address by DHCPv6.
func configureSix(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	n, err := y.Network(l.Network)
	if err != nil {
		return err
	}
	box, err := enter(l, e)
	if err != nil { // the link has not been moved in yet, or is about to be removed
		return noteSixAttempt(y, l)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if !l.Six.On {
		if !box.IsUp() {
			return noteSixAttempt(y, l)
		}
		slaac := modes.IPAMOpt(l.Options, "ipv6") == "slaac"
		if err := box.EnableIPv6(slaac, !n.Internal); err != nil {
			return errors.Join(err, noteSixAttempt(y, l))
		}
		return changeSix(y, l, func(now *DHCPLease) { now.Six = Six{On: true} })
	}
	ctx, cancel := context.WithTimeout(ctx, sixTime)
	defer cancel()
	err = leaseSix(ctx, y, l, e, box)
	if err != nil {
		err = errors.Join(err, noteSixAttempt(y, l))
	}
	return err
}

// enter opens the link of a lease in the sandbox of its endpoint.
func enter(l DHCPLease, e modes.Endpoint) (*kdhcp.SandboxLink, error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	return kdhcp.OpenSandboxLink(e.Sandbox, core.Alias(e.NetworkID, e.ID), mac)
}

// changeSix is changeHeld, but does nothing if the lease has another endpoint by now.
func changeSix(y *book.Book, l DHCPLease, do func(*DHCPLease)) error {
	return changeHeld(y, l, func(now *DHCPLease) {
		if now.Endpoint == l.Endpoint {
			do(now)
		}
	})
}

// noteSixAttempt records that an attempt failed.
func noteSixAttempt(y *book.Book, l DHCPLease) error {
	return changeSix(y, l, func(now *DHCPLease) { now.Six.Tried = y.Config.Now() })
}

// leaseSix acquires an address by DHCPv6, or extends the lease of the present one.
func leaseSix(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.SandboxLink) (err error) {
	socket, err := box.Socket6(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	client, old, now := client6(y, l, socket), l.Six.Lease, y.Config.Now()
	if old.Addr.IsValid() && old.State(now) != dhcp.Expired {
		attempt, cancel := context.WithTimeout(ctx, old.AttemptTimeout())
		defer cancel()
		more, err := client.Extend(attempt, old)
		if !errors.Is(err, dhcp.ErrRefused) {
			if err != nil {
				return err
			}
			return applySix(ctx, y, l, more, box)
		}
		if down, err := handleLostSix(y, l, e, box, err.Error()); down || err != nil {
			return err
		}
	} else if old.Addr.IsValid() && l.Six.Tried.Before(old.Expires) { // only the first time
		if down, err := handleLostSix(y, l, e, box, "it expired"); down || err != nil {
			return err
		}
	}
	fresh, err := client.Acquire(ctx, old.Addr.Addr())
	if err == nil {
		err = applySix(ctx, y, l, fresh, box)
	}
	if err != nil {
		if !errors.Is(err, kdhcp.ErrDuplicate) {
			return err
		}
		l.Lease = fresh
		y.LogOf(l.Network).Warn("IPv6 address declined: a host on the LAN has it",
			"container", e.Container.Name, "address", fresh.Addr.Addr(), "server", fresh.Server)
		tellLease(y, event.LeaseDeclined, l, e, fmt.Sprintf(
			"%s on %s is declined: another host has it, unknown to DHCPv6 server %s",
			fresh.Addr.Addr(), l.LAN, fresh.Server))
		forget := func(now *DHCPLease) { now.Six.Lease = dhcp.Lease{} }
		return errors.Join(err, client.Decline(ctx, fresh), changeSix(y, l, forget))
	}
	y.LogOf(l.Network).Info("IPv6 lease acquired", "container", e.Container.Name,
		"address", fresh.Addr, "server", fresh.Server, "expires", fresh.Expires)
	if old.Addr.IsValid() {
		l.Lease = fresh
		tellLease(y, event.LeaseMoved, l, e, fmt.Sprintf("%s has %s now", book.Owned(e), fresh.Addr.Addr()))
	}
	return nil
}

// applySix records a granted lease, and then sets its address on the link. The kernel removes the address when it
// expires.
func applySix(
	ctx context.Context, y *book.Book, l DHCPLease, granted dhcp.Lease, box *kdhcp.SandboxLink,
) error {
	record := func(now *DHCPLease) { now.Six.Lease, now.Six.Tried = granted, time.Time{} }
	if err := changeSix(y, l, record); err != nil {
		return err
	}
	left := func(end time.Time) time.Duration {
		if end.IsZero() {
			return 0
		}
		return max(end.Sub(y.Config.Now()), time.Second) // 0 would mean forever
	}
	return box.SetAddr6(ctx, granted.Addr, left(granted.Preferred), left(granted.Expires))
}

// handleLostSix handles an IPv6 lease that expired or was refused: it removes the address or, with on_lost=down, takes
// the link down. down reports the latter.
func handleLostSix(
	y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.SandboxLink, why string,
) (down bool, err error) {
	addr := l.Six.Lease.Addr
	what := []any{
		"endpoint", e.ID, "container", e.Container.Name, "address", addr, "reason", why,
	}
	told := l
	told.Lease = l.Six.Lease
	if modes.IPAMOpt(l.Options, "on_lost") == "down" {
		y.LogOf(l.Network).Error("IPv6 lease lost, link taken down; restart the container", what...)
		tellLease(y, event.LeaseDown, told, e, fmt.Sprintf("%s lost %s: %s; its link is down until it is restarted",
			book.Owned(e), addr.Addr(), why))
		return true, errors.Join(box.Down(), markDown(y, l))
	}
	y.LogOf(l.Network).Error("IPv6 lease lost, another address requested", what...)
	tellLease(y, event.LeaseLost, told, e, fmt.Sprintf("%s lost %s: %s; another address is requested",
		book.Owned(e), addr.Addr(), why))
	return false, box.RemoveAddr6(addr)
}

// client6 returns the DHCPv6 client of a lease. It has the identity of the lease's DHCP client, if that has an
// identifier (RFC 4361, 6.1).
func client6(y *book.Book, l DHCPLease, t dhcp.Transport6) *dhcp.Client6 {
	const iaidAt, duidAt = 1, 5
	c := &dhcp.Client6{Transport6: t, Hostname: l.Hostname, Now: y.Config.Now}
	if len(l.ClientID) > duidAt {
		copy(c.IAID[:], l.ClientID[iaidAt:duidAt])
		c.DUID = l.ClientID[duidAt:]
		return c
	}
	mac, _ := net.ParseMAC(l.MAC) // netyard wrote it, so it is valid
	copy(c.IAID[:], ClientID(y, l.LAN, "")[iaidAt:duidAt])
	c.DUID = append([]byte{0, 3, 0, 1}, mac...) // DUID-LL of Ethernet (RFC 8415, 11.4)
	return c
}

// ReleaseIPv6 releases the IPv6 address of an endpoint before it leaves its sandbox: it can be done only from inside. A
// lease whose release does not reach the server expires.
func ReleaseIPv6(ctx context.Context, y *book.Book, e modes.Endpoint) {
	l, ok, err := Of(y, e)
	if err != nil || !ok || !l.Six.Lease.Addr.IsValid() || !y.Config.Kernel.IsNamespace(e.Sandbox) ||
		l.Six.Lease.State(y.Config.Now()) == dhcp.Expired {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := sendRelease6(ctx, y, l, e); err != nil {
		y.LogOf(l.Network).Warn("IPv6 address not released; the lease will expire",
			"container", e.Container.Name, "address", l.Six.Lease.Addr.Addr(),
			"expires", l.Six.Lease.Expires, "err", err)
	}
	if err := changeSix(y, l, func(now *DHCPLease) { now.Six = Six{} }); err != nil {
		y.LogOf(l.Network).Error("IPv6 release not recorded",
			"container", e.Container.Name, "address", l.Six.Lease.Addr.Addr(), "err", err)
	}
}

// sendRelease6 removes the IPv6 address from the link and releases its lease.
func sendRelease6(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint) (err error) {
	box, err := enter(l, e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	socket, err := box.Socket6(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	err = box.RemoveAddr6(l.Six.Lease.Addr) // before the release (RFC 8415, 18.2.7)
	return errors.Join(err, client6(y, l, socket).Release(ctx, l.Six.Lease))
}
