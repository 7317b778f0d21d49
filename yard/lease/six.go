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
	// sixTime is how long an attempt at an IPv6 address may take: the kernel asks for a second whether anybody has the
	// link's own, and for another one about the server's.
	sixTime = 10 * time.Second
	// sixPause is between two looks for an address that nobody gives.
	sixPause = 10 * time.Second
	// leaveTime is how long a container that ends waits for the server to hear that its IPv6 address is free.
	leaveTime = time.Second
)

// A Six is what the link of a lease has of IPv6. It is had from inside, when the container is there.
type Six struct {
	On    bool       // its sandbox has it as its network does
	Lease dhcp.Lease `json:",omitzero"` // by DHCPv6; without an address: none, or not yet
	Tried time.Time  `json:",omitzero"`
}

// checkSix refuses IPv6 where policies are about the packets: they go by addresses, which nobody told them.
func checkSix(m modes.Mode, n modes.Network, p DHCPPool) error {
	kind := modes.IPAMOpt(p.Options, "ipv6")
	if kind != "none" && m.Traits(n).Policed {
		return fmt.Errorf("%w: ipv6=%s: policies are about the packets of mode %s, and they would not know the addresses; it is for networks on the LAN whose packets do not come by this host's firewall", modes.ErrOption, kind, n.Mode)
	}
	return nil
}

// sixTask is what is to be done about the IPv6 of a lease's link, and when; nil: nothing.
func sixTask(y *book.Book, l DHCPLease, now time.Time) (time.Time, Task) {
	kind := modes.IPAMOpt(l.Options, "ipv6")
	if kind == "none" || l.Phase != DHCPHeld || l.Endpoint == "" {
		return time.Time{}, nil
	}
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil || e.Phase != modes.Ready || e.Sandbox == "" || !core.IsNamespace(e.Sandbox) {
		return time.Time{}, nil
	}
	switch {
	case !l.Six.On:
		return l.Six.Tried.Add(namePause), six // the engine may not be through with the link
	case kind != "dhcp":
		return time.Time{}, nil
	case !l.Six.Lease.Addr.IsValid():
		return l.Six.Tried.Add(sixPause), six
	}
	due := l.Six.Lease.Due(now, l.Six.Tried)
	if due.IsZero() {
		return due, nil
	}
	return due, six
}

// six turns IPv6 on, and sees to the address that DHCPv6 gives.
func six(ctx context.Context, y *book.Book, l DHCPLease) (err error) {
	e, err := y.Endpoint(l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	n, err := y.Network(l.Network)
	if err != nil {
		return err
	}
	box, err := enter(l, e)
	if err != nil { // not moved in yet, or about to be taken out
		return triedSix(y, l)
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if !l.Six.On {
		if !box.IsUp() {
			return triedSix(y, l)
		}
		slaac := modes.IPAMOpt(l.Options, "ipv6") == "slaac"
		if err := box.EnableIPv6(slaac, !n.Internal); err != nil {
			return errors.Join(err, triedSix(y, l))
		}
		return changeSix(y, l, func(now *DHCPLease) { now.Six = Six{On: true} })
	}
	ctx, cancel := context.WithTimeout(ctx, sixTime)
	defer cancel()
	err = leaseSix(ctx, y, l, e, box)
	if err != nil {
		err = errors.Join(err, triedSix(y, l))
	}
	return err
}

func enter(l DHCPLease, e modes.Endpoint) (*kdhcp.InnerLink, error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	return kdhcp.EnterLink(e.Sandbox, core.Alias(e.NetworkID, e.ID), mac)
}

// changeSix is change, unless the lease is another endpoint's by now.
func changeSix(y *book.Book, l DHCPLease, do func(*DHCPLease)) error {
	return change(y, l, func(now *DHCPLease) {
		if now.Endpoint == l.Endpoint {
			do(now)
		}
	})
}

func triedSix(y *book.Book, l DHCPLease) error {
	return changeSix(y, l, func(now *DHCPLease) { now.Six.Tried = y.Config.Now() })
}

// leaseSix gets an address by DHCPv6, or more time for the one that is there.
func leaseSix(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.InnerLink) (err error) {
	socket, err := box.Socket6(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.Close()) }()
	client, old, now := client6(y, l, socket), l.Six.Lease, y.Config.Now()
	if old.Addr.IsValid() && old.State(now) != dhcp.Expired {
		attempt, cancel := context.WithTimeout(ctx, old.Patience())
		defer cancel()
		more, err := client.Extend(attempt, old)
		if !errors.Is(err, dhcp.ErrRefused) {
			return takeSix(ctx, y, l, more, box, err)
		}
		if down, err := lostSix(y, l, e, box, err.Error()); down || err != nil {
			return err
		}
	} else if old.Addr.IsValid() && l.Six.Tried.Before(old.Expires) { // not each time
		if down, err := lostSix(y, l, e, box, "it has run out"); down || err != nil {
			return err
		}
	}
	fresh, err := client.Acquire(ctx, old.Addr.Addr())
	if err := takeSix(ctx, y, l, fresh, box, err); err != nil {
		if !errors.Is(err, kdhcp.ErrDuplicate) {
			return err
		}
		l.Lease = fresh
		y.Config.Log.Warn("IPv6 address declined: somebody on the LAN has it", "network", l.Network, "container", e.Container.Name, "address", fresh.Addr.Addr(), "server", fresh.Server)
		tellLease(y, event.LeaseDeclined, l, e, fmt.Sprintf("%s on %s is declined: somebody has it, without the DHCPv6 server %s knowing", fresh.Addr.Addr(), l.LAN, fresh.Server))
		return errors.Join(err, client.Decline(ctx, fresh), changeSix(y, l, func(now *DHCPLease) { now.Six.Lease = dhcp.Lease{} }))
	}
	y.Config.Log.Info("IPv6 lease", "network", l.Network, "container", e.Container.Name, "address", fresh.Addr, "server", fresh.Server, "expires", fresh.Expires)
	if old.Addr.IsValid() {
		l.Lease = fresh
		tellLease(y, event.LeaseMoved, l, e, fmt.Sprintf("%s has %s now", book.Owned(e), fresh.Addr.Addr()))
	}
	return nil
}

// takeSix records what was granted, and then has the link have it: the kernel takes the address away when the time is
// up.
func takeSix(ctx context.Context, y *book.Book, l DHCPLease, granted dhcp.Lease, box *kdhcp.InnerLink, err error) error {
	if err != nil {
		return err
	}
	if err := changeSix(y, l, func(now *DHCPLease) { now.Six.Lease, now.Six.Tried = granted, time.Time{} }); err != nil {
		return err
	}
	left := func(end time.Time) time.Duration {
		if end.IsZero() {
			return 0
		}
		return max(end.Sub(y.Config.Now()), time.Second) // 0 would be for ever
	}
	return box.SetAddr6(ctx, granted.Addr, left(granted.Preferred), left(granted.Expires))
}

// lostSix deals with an IPv6 address that is the container's no more; down says that its link was taken down for it.
func lostSix(y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.InnerLink, why string) (down bool, err error) {
	addr := l.Six.Lease.Addr
	what := []any{"network", l.Network, "endpoint", e.ID, "container", e.Container.Name, "address", addr, "why", why}
	told := l
	told.Lease = l.Six.Lease
	if modes.IPAMOpt(l.Options, "on_lost") == "down" {
		y.Config.Log.Error("IPv6 lease lost: the container's link is taken down; start the container anew", what...)
		tellLease(y, event.LeaseDown, told, e, fmt.Sprintf("%s lost %s: %s; its link is down until it is started anew", book.Owned(e), addr.Addr(), why))
		return true, errors.Join(box.Down(), change(y, l, func(now *DHCPLease) { now.Phase, now.Since = DHCPDown, y.Config.Now() }))
	}
	y.Config.Log.Error("IPv6 lease lost: looking for another address", what...)
	tellLease(y, event.LeaseLost, told, e, fmt.Sprintf("%s lost %s: %s; another address is looked for", book.Owned(e), addr.Addr(), why))
	return false, box.DropAddr6(addr)
}

// client6 is the lease's DHCPv6 client: the same to a server as its DHCP client, if that has an identifier (RFC 4361,
// 6.1).
func client6(y *book.Book, l DHCPLease, t dhcp.Transport6) *dhcp.Client6 {
	const iaidAt, duidAt = 1, 5
	c := &dhcp.Client6{Transport6: t, Hostname: l.Hostname, Now: y.Config.Now}
	if len(l.ClientID) > duidAt {
		copy(c.IAID[:], l.ClientID[iaidAt:duidAt])
		c.DUID = l.ClientID[duidAt:]
		return c
	}
	mac, _ := net.ParseMAC(l.MAC) // it is one of ours
	copy(c.IAID[:], ClientID(y, l.LAN, "")[iaidAt:duidAt])
	c.DUID = append([]byte{0, 3, 0, 1}, mac...) // DUID-LL of Ethernet (RFC 8415, 11.4)
	return c
}

// LeaveSix gives back the IPv6 address of an endpoint that leaves its sandbox, as long as it is there: from without,
// nobody could. What the server does not hear of expires by itself.
func LeaveSix(ctx context.Context, y *book.Book, e modes.Endpoint) {
	l, ok, err := Of(y, e)
	if err != nil || !ok || !l.Six.Lease.Addr.IsValid() || l.Six.Lease.State(y.Config.Now()) == dhcp.Expired || !core.IsNamespace(e.Sandbox) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := sayLeave(ctx, y, l, e); err != nil {
		y.Config.Log.Warn("release an IPv6 address; the server frees it by itself", "network", l.Network, "address", l.Six.Lease.Addr.Addr(), "expires", l.Six.Lease.Expires, "err", err)
	}
	if err := changeSix(y, l, func(now *DHCPLease) { now.Six = Six{} }); err != nil {
		y.Config.Log.Error("note that an IPv6 address was released", "network", l.Network, "address", l.Six.Lease.Addr.Addr(), "err", err)
	}
}

func sayLeave(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint) (err error) {
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
	err = box.DropAddr6(l.Six.Lease.Addr) // before the server hears (RFC 8415, 18.2.7)
	return errors.Join(err, client6(y, l, socket).Release(ctx, l.Six.Lease))
}
