package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"netyard/ipam/dhcp"
	kdhcp "netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/event"
	"netyard/yard/port"
)

// lost deals with an address that is the container's no more: it gets another one, or no traffic.
func lost(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.InnerLink, why string) error {
	what := []any{"network", l.Network, "endpoint", e.ID, "container", e.Container.Name, "address", l.Lease.Addr, "why", why}
	if modes.IPAMOpt(l.Options, "on_lost") == "down" {
		y.Config.Log.Error("lease lost: the container's link is taken down; start the container anew", what...)
		err := errors.Join(box.Down(), change(y, l, func(now *DHCPLease) { now.Phase, now.Since = DHCPDown, y.Config.Now() }))
		tellLease(y, event.LeaseDown, l, e, fmt.Sprintf("%s lost %s: %s; its link is down until it is started anew", book.Owned(e), l.Lease.Addr.Addr(), why))
		return err
	}
	if l.Tried.Before(l.Lease.Expires) || l.Tried.IsZero() { // not each time
		y.Config.Log.Error("lease lost: looking for another address", what...)
		tellLease(y, event.LeaseLost, l, e, fmt.Sprintf("%s lost %s: %s; another address is looked for", book.Owned(e), l.Lease.Addr.Addr(), why))
	}
	fresh, err := replace(ctx, y, l, e, box)
	if err != nil { // the address must not be used (RFC 2131, 4.4.5), and is looked for again in a while
		return errors.Join(err, box.Readdress(l.Lease.Addr, netip.Prefix{}, netip.Addr{}, nil), change(y, l, func(now *DHCPLease) {
			now.Tried = y.Config.Now()
			now.Lease.Expires = earlier(now.Lease.Expires, now.Tried)
			now.Lease.Rebind, now.Lease.Renew = earlier(now.Lease.Rebind, now.Tried), earlier(now.Lease.Renew, now.Tried)
		}))
	}
	if err := readdress(y, l, l.Lease.Addr, fresh, box); err != nil {
		return err
	}
	if fresh.Addr != l.Lease.Addr {
		y.Config.Log.Error("container re-addressed; its engine goes on showing the old address", append(what, "now", fresh.Addr)...)
	}
	if err := readdressed(ctx, y, l, fresh); err != nil {
		return err
	}
	l.Lease = fresh
	tellLease(y, event.LeaseMoved, l, e, fmt.Sprintf("%s has %s now; its engine goes on showing %s", book.Owned(e), fresh.Addr.Addr(), l.Given))
	return nil
}

// replace gets another lease for a container that lost its own, the same address if it can be.
func replace(ctx context.Context, y *book.Book, l DHCPLease, e modes.Endpoint, box *kdhcp.InnerLink) (fresh dhcp.Lease, err error) {
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

// declined says of an address that somebody on the LAN has it, who was not given it.
func declined(y *book.Book, l DHCPLease, e modes.Endpoint) func(dhcp.Lease, net.HardwareAddr) {
	return func(of dhcp.Lease, holder net.HardwareAddr) {
		y.Config.Log.Warn("address declined: somebody on the LAN has it", "network", l.Network, "container", e.Container.Name, "address", of.Addr.Addr(), "holder", holder.String(), "server", of.Server)
		l.Lease = of
		tellLease(y, event.LeaseDeclined, l, e, fmt.Sprintf("%s on %s is declined: %s has it, without the DHCP server %s knowing", of.Addr.Addr(), l.LAN, holder, of.Server))
	}
}

// tellLease is tell about a lease of an endpoint.
func tellLease(y *book.Book, kind string, l DHCPLease, e modes.Endpoint, text string) {
	n, err := y.Network(l.Network)
	if err != nil { // it is being deleted
		n = modes.Network{ID: l.Network}
	}
	v := book.About(kind, n, e, text)
	v.Address = l.Lease.Addr.Addr().String()
	y.Tell(v)
}

// wireOf is a way to the LAN for a container without an address. What is sent to a shared hardware address does not
// reach it.
func wireOf(y *book.Book, l DHCPLease, box *kdhcp.InnerLink) (*kdhcp.Wire, error) {
	if !l.LAN.Shared() {
		return box.Wire()
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	return kdhcp.PlugWire(y.Config.Kernel.Handle, l.LAN, mac)
}

func readdress(y *book.Book, l DHCPLease, from netip.Prefix, to dhcp.Lease, box *kdhcp.InnerLink) error {
	n, err := y.Network(l.Network)
	if err != nil {
		return err
	}
	routes := map[netip.Prefix]netip.Addr{}
	for _, r := range to.Routes {
		routes[r.Dst] = r.Via
	}
	gateway := to.Router
	if n.Internal {
		gateway, routes = netip.Addr{}, nil
	}
	return box.Readdress(from, to.Addr, gateway, maps.Clone(routes))
}

// readdressed records the address that a container has now, and has the kernel know it by that.
func readdressed(ctx context.Context, y *book.Book, l DHCPLease, fresh dhcp.Lease) error {
	release, err := y.Hold(ctx, l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	defer release()
	var was, is modes.Endpoint
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
		was, is, err = moveEndpoint(tx, l, fresh)
		return err
	})
	if err != nil || is.ID == "" || l.Lease.Addr == fresh.Addr {
		return err
	}
	n, err := y.Network(l.Network)
	if err != nil {
		return err
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return err
	}
	return errors.Join(enforce.Enforce(ctx, y), port.Program(ctx, y, m, n, was, is)) // before anybody can reach it there
}

// moveEndpoint records what the endpoint of a lease has now.
func moveEndpoint(tx store.Tx, l DHCPLease, to dhcp.Lease) (was, is modes.Endpoint, err error) {
	was, err = book.GetEndpoint(tx, l.Network, l.Endpoint)
	if errors.Is(err, book.ErrNotFound) || err == nil && was.Phase != modes.Ready {
		return was, is, nil
	}
	if err != nil {
		return was, is, err
	}
	n, err := book.GetNetwork(tx, l.Network)
	if err != nil {
		return was, is, err
	}
	is = was
	if was.Inside.Link != "" {
		is.Inside = reroute(was.Inside, n.Internal, l.Lease, to)
	}
	if l.Lease.Addr == to.Addr {
		return was, is, book.PutEndpoint(tx, is)
	}
	if err := book.DropClaim(tx, book.ClaimKey(was.NetworkID, l.Lease.Addr.Addr()), was.ID); err != nil {
		return was, is, err
	}
	is.Addrs = slices.Clone(was.Addrs)
	for i, a := range is.Addrs {
		if a.Addr() == l.Lease.Addr.Addr() {
			is.Addrs[i] = to.Addr
		}
	}
	is.Ports = port.OwnPortsAt(was.Ports, l.Lease.Addr.Addr(), to.Addr.Addr())
	return was, is, book.PutEndpoint(tx, is)
}
