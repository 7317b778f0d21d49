package lease

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"netyard/ipam/dhcp"
	kdhcp "netyard/kernel/dhcp"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/port"
)

// leased is a lease with its endpoint.
type leased struct {
	DHCPLease

	endpoint modes.Endpoint
}

// handleLost handles a lease that expired or was refused. The container gets another address, or, with on_lost=down,
// its link is taken down.
func handleLost(ctx context.Context, y *book.Book, l leased, box *kdhcp.SandboxLink, why string) error {
	e := l.endpoint
	what := []any{
		"endpoint", e.ID, "container", e.Container.Name, "address", l.Lease.Addr, "reason", why,
	}
	if modes.IPAMOpt(l.Options, "on_lost") == "down" {
		y.LogOf(l.Network).Error("lease lost, link taken down; restart the container", what...)
		err := errors.Join(box.Down(), markDown(y, l.DHCPLease))
		tellLease(y, event.LeaseDown, l.DHCPLease, e, fmt.Sprintf(
			"%s lost %s: %s; its link is down until it is restarted", book.Owned(e), l.Lease.Addr.Addr(), why))
		return err
	}
	if l.Tried.Before(l.Lease.Expires) || l.Tried.IsZero() { // only the first time
		y.LogOf(l.Network).Error("lease lost, another address requested", what...)
		tellLease(y, event.LeaseLost, l.DHCPLease, e, fmt.Sprintf("%s lost %s: %s; another address is requested",
			book.Owned(e), l.Lease.Addr.Addr(), why))
	}
	fresh, err := replace(ctx, y, l.DHCPLease, e, box)
	if err != nil { // the address must not be used (RFC 2131, 4.4.5); the next attempt follows later
		removed := removeAddress(y, l, box)
		return errors.Join(err, removed, changeHeld(y, l.DHCPLease, func(now *DHCPLease) {
			now.Tried = y.Config.Now()
			now.Lease.Expires = earlier(now.Lease.Expires, now.Tried)
			now.Lease.Rebind = earlier(now.Lease.Rebind, now.Tried)
			now.Lease.Renew = earlier(now.Lease.Renew, now.Tried)
		}))
	}
	is, err := readdress(y, l, fresh, box)
	if err != nil {
		return errors.Join(err, noteAttempt(y, l.DHCPLease))
	}
	if fresh.Addr != l.Lease.Addr {
		y.LogOf(l.Network).Error("container readdressed; its engine still shows the old address",
			append(what, "now", fresh.Addr)...)
	}
	if err := recordReaddress(ctx, y, l.DHCPLease, fresh, is); err != nil {
		return err
	}
	l.Lease = fresh
	tellLease(y, event.LeaseMoved, l.DHCPLease, e, fmt.Sprintf("%s has %s now; its engine still shows %s",
		book.Owned(e), fresh.Addr.Addr(), l.Given))
	return nil
}

// markDown records that a lease was lost and its link taken down.
func markDown(y *book.Book, l DHCPLease) error {
	return changeHeld(y, l, func(now *DHCPLease) { now.Phase, now.Since = DHCPDown, y.Config.Now() })
}

// replace acquires another lease for a container that lost its own, with the same address if possible.
func replace(
	ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.SandboxLink,
) (fresh dhcp.Lease, err error) {
	wire, err := wireOf(y, l, box)
	if err != nil {
		return fresh, err
	}
	defer func() { err = errors.Join(err, wire.Close()) }()
	client, err := client(y, l, wire)
	if err != nil {
		return fresh, err
	}
	ctx, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	return client.Acquire(ctx, dhcp.Wish{Addr: l.Lease.Addr.Addr(), Declined: declined(y, l, e)})
}

// declined returns a function that logs and tells that an address was declined, since a host on the LAN has it.
func declined(y *book.Book, l DHCPLease, e modes.Endpoint) func(dhcp.Lease, net.HardwareAddr) {
	return func(of dhcp.Lease, holder net.HardwareAddr) {
		y.LogOf(l.Network).Warn("address declined: a host on the LAN has it",
			"container", e.Container.Name, "address", of.Addr.Addr(),
			"holder", holder.String(), "server", of.Server)
		l.Lease = of
		tellLease(y, event.LeaseDeclined, l, e, fmt.Sprintf(
			"%s on %s is declined: %s has it, unknown to DHCP server %s", of.Addr.Addr(), l.LAN, holder, of.Server))
	}
}

// tellLease records an event about a lease of an endpoint.
func tellLease(y *book.Book, kind string, l DHCPLease, e modes.Endpoint, text string) {
	n, err := y.Network(l.Network)
	if err != nil { // it is being deleted
		n = modes.Network{ID: l.Network}
	}
	v := book.About(kind, n, e, text)
	v.Address = l.Lease.Addr.Addr().String()
	y.Tell(v)
}

// wireOf returns a link to the LAN for a container without an address: from its sandbox, or from the host if containers
// share a MAC, since frames to that MAC do not reach the sandbox.
func wireOf(y *book.Book, l DHCPLease, box *kdhcp.SandboxLink) (*kdhcp.Wire, error) {
	if !l.LAN.Shared() {
		return box.Wire()
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	return kdhcp.PlugWire(y.Config.Handle, l.LAN, mac)
}

// readdress changes what a container has by its lease to what it has by another one, and returns how it is configured
// then. What cannot be changed does not keep the lease from being recorded: it is logged, and the audit reports it.
func readdress(y *book.Book, l leased, to dhcp.Lease, box *kdhcp.SandboxLink) (is sandbox.Plug, err error) {
	n, err := y.Network(l.Network)
	if err != nil {
		return is, err
	}
	was, is, err := changeOf(y, n, l.endpoint, l.DHCPLease, to)
	if err != nil {
		return is, err
	}
	if err := box.Readdress(was, is); err != nil {
		y.LogOf(l.Network).Error("lease not applied completely; restart the container",
			"endpoint", l.endpoint.ID, "container", l.endpoint.Container.Name, "address", to.Addr, "err", err)
	}
	return is, nil
}

// removeAddress removes from a container what it has by a lease.
func removeAddress(y *book.Book, l leased, box *kdhcp.SandboxLink) error {
	n, err := y.Network(l.Network)
	if err != nil {
		return err
	}
	was, err := insideOf(y, n, l.endpoint, l.DHCPLease)
	if err != nil {
		return err
	}
	return box.Readdress(was, sandbox.Plug{Metric: was.Metric})
}

// recordReaddress records the new address of a container, and updates its policies and ports in the kernel.
func recordReaddress(ctx context.Context, y *book.Book, l DHCPLease, fresh dhcp.Lease, inside sandbox.Plug) error {
	h, err := y.HoldNew(ctx, l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	defer h.Release()
	was, is := h.Endpoint, h.Endpoint
	err = y.Update("lease moved", func(tx store.Tx) error {
		now, err := dhcpLeases.Get(tx, l.ID)
		if errors.Is(err, store.ErrNotFound) || err == nil && now.Phase != DHCPHeld {
			return nil
		}
		if err != nil {
			return err
		}
		now.Lease, now.Hostname, now.Tried = fresh, l.Hostname, time.Time{}
		if err := dhcpLeases.Put(tx, l.ID, now); err != nil {
			return err
		}
		is, err = putMoved(tx, h, moved{l.Lease.Addr, fresh.Addr, inside})
		return err
	})
	if err != nil || l.Lease.Addr == fresh.Addr || slices.Equal(was.Addrs, is.Addrs) {
		return err
	}
	// Policies come before ports, since nobody can reach the container before.
	return errors.Join(enforce.Enforce(ctx, y), port.Program(ctx, h, was, is))
}

// A moved says what an endpoint had and has by its lease.
type moved struct {
	from, to netip.Prefix
	inside   sandbox.Plug // its configuration in the sandbox, if it came by CNI
}

// putMoved records the address and routes that an endpoint has now, if it is ready, and returns it.
func putMoved(tx store.Tx, h *book.Held, m moved) (is modes.Endpoint, err error) {
	was := h.Endpoint
	if was.ID == "" || was.Phase != modes.Ready {
		return was, nil
	}
	is = was
	if was.Inside.Link != "" {
		is.Inside = m.inside
	}
	if m.from == m.to {
		return is, h.PutIn(tx, is)
	}
	if err := book.DropClaim(tx, book.ClaimKey(was.NetworkID, m.from.Addr()), was.ID); err != nil {
		return was, err
	}
	is.Addrs = slices.Clone(was.Addrs)
	for i, a := range is.Addrs {
		if a.Addr() == m.from.Addr() {
			is.Addrs[i] = m.to
		}
	}
	is.Ports = port.OwnPortsAt(was.Ports, m.from.Addr(), m.to.Addr())
	return is, h.PutIn(tx, is)
}
