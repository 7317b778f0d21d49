package yard

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
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// lost deals with an address that is the container's no more: it gets another one, or no traffic.
func (y *Yard) lost(ctx context.Context, l DHCPLease, e modes.Endpoint, box *kernel.InnerLink, why string) error {
	what := []any{"network", l.Network, "endpoint", e.ID, "container", e.Container.Name, "address", l.Lease.Addr, "why", why}
	if modes.IPAMOpt(l.Options, "on_lost") == "down" {
		y.c.Log.Error("lease lost: the container's link is taken down; start the container anew", what...)
		err := errors.Join(box.Down(), y.change(l, func(now *DHCPLease) { now.Phase, now.Since = DHCPDown, y.c.Now() }))
		y.tellLease(LeaseDown, l, e, fmt.Sprintf("%s lost %s: %s; its link is down until it is started anew", owned(e), l.Lease.Addr.Addr(), why))
		return err
	}
	if l.Tried.Before(l.Lease.Expires) || l.Tried.IsZero() { // not each time
		y.c.Log.Error("lease lost: looking for another address", what...)
		y.tellLease(LeaseLost, l, e, fmt.Sprintf("%s lost %s: %s; another address is looked for", owned(e), l.Lease.Addr.Addr(), why))
	}
	fresh, err := y.replace(ctx, l, e, box)
	if err != nil { // the address must not be used (RFC 2131, 4.4.5), and is looked for again in a while
		return errors.Join(err, box.Readdress(l.Lease.Addr, netip.Prefix{}, netip.Addr{}, nil), y.change(l, func(now *DHCPLease) {
			now.Tried = y.c.Now()
			now.Lease.Expires = earlier(now.Lease.Expires, now.Tried)
			now.Lease.Rebind, now.Lease.Renew = earlier(now.Lease.Rebind, now.Tried), earlier(now.Lease.Renew, now.Tried)
		}))
	}
	if err := y.readdress(l, l.Lease.Addr, fresh, box); err != nil {
		return err
	}
	if fresh.Addr != l.Lease.Addr {
		y.c.Log.Error("container re-addressed; its engine goes on showing the old address", append(what, "now", fresh.Addr)...)
	}
	if err := y.readdressed(ctx, l, fresh); err != nil {
		return err
	}
	l.Lease = fresh
	y.tellLease(LeaseMoved, l, e, fmt.Sprintf("%s has %s now; its engine goes on showing %s", owned(e), fresh.Addr.Addr(), l.Given))
	return nil
}

// replace gets another lease for a container that lost its own, the same address if it can be.
func (y *Yard) replace(ctx context.Context, l DHCPLease, e modes.Endpoint, box *kernel.InnerLink) (fresh dhcp.Lease, err error) {
	wire, err := y.wireOf(l, box)
	if err != nil {
		return fresh, err
	}
	defer func() { err = errors.Join(err, wire.Close()) }()
	client, err := y.client(l, wire)
	if err != nil {
		return fresh, err
	}
	ctx, cancel := context.WithTimeout(ctx, acquireTime)
	defer cancel()
	return client.Acquire(ctx, dhcp.Wish{Addr: l.Lease.Addr.Addr(), Declined: y.declined(l, e)})
}

// declined says of an address that somebody on the LAN has it, who was not given it.
func (y *Yard) declined(l DHCPLease, e modes.Endpoint) func(dhcp.Lease, net.HardwareAddr) {
	return func(of dhcp.Lease, holder net.HardwareAddr) {
		y.c.Log.Warn("address declined: somebody on the LAN has it", "network", l.Network, "container", e.Container.Name, "address", of.Addr.Addr(), "holder", holder.String(), "server", of.Server)
		l.Lease = of
		y.tellLease(LeaseDeclined, l, e, fmt.Sprintf("%s on %s is declined: %s has it, without the DHCP server %s knowing", of.Addr.Addr(), l.LAN, holder, of.Server))
	}
}

// tellLease is tell about a lease of an endpoint.
func (y *Yard) tellLease(kind string, l DHCPLease, e modes.Endpoint, text string) {
	n, err := y.Network(l.Network)
	if err != nil { // it is being deleted
		n = modes.Network{ID: l.Network}
	}
	v := about(kind, n, e, text)
	v.Address = l.Lease.Addr.Addr().String()
	y.tell(v)
}

// wireOf is a way to the LAN for a container without an address. What is sent to a shared hardware address does not reach it.
func (y *Yard) wireOf(l DHCPLease, box *kernel.InnerLink) (*kernel.Wire, error) {
	if !l.LAN.Shared() {
		return box.Wire()
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	return y.c.Kernel.PlugWire(l.LAN, mac)
}

func (y *Yard) readdress(l DHCPLease, from netip.Prefix, to dhcp.Lease, box *kernel.InnerLink) error {
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
func (y *Yard) readdressed(ctx context.Context, l DHCPLease, fresh dhcp.Lease) error {
	release, err := y.hold(ctx, l.Network, l.Endpoint)
	if err != nil {
		return err
	}
	defer release()
	var was, is modes.Endpoint
	err = y.update("lease moved", func(tx store.Tx) error {
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
	m, err := y.mode(n.Mode)
	if err != nil {
		return err
	}
	return errors.Join(y.enforce(ctx), y.program(ctx, m, n, was, is)) // before anybody can reach it there
}

// moveEndpoint records what the endpoint of a lease has now.
func moveEndpoint(tx store.Tx, l DHCPLease, to dhcp.Lease) (was, is modes.Endpoint, err error) {
	was, err = getEndpoint(tx, l.Network, l.Endpoint)
	if errors.Is(err, ErrNotFound) || err == nil && was.Phase != modes.Ready {
		return was, is, nil
	}
	if err != nil {
		return was, is, err
	}
	n, err := getNetwork(tx, l.Network)
	if err != nil {
		return was, is, err
	}
	is = was
	if was.Inside.Link != "" {
		is.Inside = reroute(was.Inside, n.Internal, l.Lease, to)
	}
	if l.Lease.Addr == to.Addr {
		return was, is, putEndpoint(tx, is)
	}
	if err := dropClaim(tx, claimKey(was.NetworkID, l.Lease.Addr.Addr()), was.ID); err != nil {
		return was, is, err
	}
	is.Addrs = slices.Clone(was.Addrs)
	for i, a := range is.Addrs {
		if a.Addr() == l.Lease.Addr.Addr() {
			is.Addrs[i] = to.Addr
		}
	}
	is.Ports = ownPortsAt(was.Ports, l.Lease.Addr.Addr(), to.Addr.Addr())
	return was, is, putEndpoint(tx, is)
}
