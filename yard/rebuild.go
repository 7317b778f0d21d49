package yard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/kernel"
	"netyard/modes"
	"netyard/store"
)

// flags are things to remember that are of no network.
var flags = store.Bucket[bool]{Name: "flags"}

const flagRebuilding = "rebuilding"

// LostRecords notes that there may have been records. Until they are rebuilt nothing unknown is taken for a stray.
func LostRecords(tx store.Tx) error { return flags.Put(tx, flagRebuilding, true) }

// Rebuilding says whether lost records are still to be made again.
func (y *Yard) Rebuilding() bool {
	lost := false
	err := y.c.Store.View(func(tx store.Tx) (err error) {
		lost, err = flags.Get(tx, flagRebuilding)
		return err
	})
	return err == nil && lost
}

// Unknown says whether there is something of netyard's on the host, beside its rules, that is in no record.
func (y *Yard) Unknown() (bool, error) {
	w, err := y.wanted()
	if err != nil {
		return false, err
	}
	snap, err := y.c.Kernel.LinkSnapshot()
	if err != nil {
		return false, err
	}
	return len(snap.Strays(w.objects)) > 0, nil
}

// Rebuild makes the records of what an engine has and the kernel still does, and then drops the strays. In between
// others make those of what is theirs; nil: there are none.
func (y *Yard) Rebuild(ctx context.Context, c Census, others func(context.Context) error) error {
	var errs []error
	for id, s := range c.Networks {
		if err := y.adoptNetwork(ctx, s, c); err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %s: %w", modes.Short(id), err))
		}
	}
	if others != nil {
		errs = append(errs, others(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(y.RecordsRebuilt(), y.forgetKept(c)); err != nil {
		return err
	}
	y.c.Log.Warn("the records are rebuilt", "engine", c.Engine, "networks", len(c.Networks), "endpoints", len(c.Endpoints))
	return y.prune(ctx)
}

// RecordsRebuilt ends the time in which the unknown is left alone.
func (y *Yard) RecordsRebuilt() error {
	return y.c.Store.Update(func(tx store.Tx) error { return flags.Delete(tx, flagRebuilding) })
}

// adoptNetwork makes the record of a network that its engine has. Whatever goes wrong, nothing is taken down:
// containers run on it.
func (y *Yard) adoptNetwork(ctx context.Context, s SeenNetwork, c Census) error {
	m, err := y.mode(s.Network.Mode)
	if err != nil {
		return err
	}
	release, err := y.locks.hold(ctx, s.Network.ID, false)
	if err != nil {
		return err
	}
	defer release()
	n, err := y.Network(s.Network.ID)
	if errors.Is(err, ErrNotFound) {
		n, err = y.adoptRecord(ctx, m, s, c)
	}
	if err != nil {
		return err
	}
	links, err := y.c.Kernel.Has()
	if err != nil {
		return err
	}
	errs := []error{m.Up(ctx, n)}
	var adopted []modes.Endpoint
	for id, s := range c.Endpoints {
		if s.NetworkID != n.ID {
			continue
		}
		e, err := y.adoptEndpoint(n, id, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", modes.Short(id), err))
			continue
		}
		adopted = append(adopted, e)
	}
	errs = append(errs, y.enforce(ctx)) // closed before anything is attached again
	for _, e := range adopted {
		if err := y.restoreEndpoint(ctx, m, n, e, links); err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", modes.Short(e.ID), err))
		}
	}
	return errors.Join(errs...)
}

func (y *Yard) adoptRecord(ctx context.Context, m modes.Mode, s SeenNetwork, c Census) (n modes.Network, err error) {
	n = s.Network
	if y.Claims(n.Mode) { // its addresses are of no pool of this host's
		s.Pools, n.Subnets = nil, slices.Clone(n.Subnets)
		for i := range n.Subnets {
			n.Subnets[i].Space = OverlaySpace
		}
	}
	if err := y.fillGateways(m, &n, c); err != nil {
		return n, err
	}
	if settler, ok := m.(modes.Settler); ok {
		if n.Settled, err = settler.Settle(ctx, n); err != nil {
			return n, err
		}
	}
	n.Phase, n.Created = modes.Ready, y.c.Now()
	return n, y.c.Store.Update(func(tx store.Tx) error {
		if n.Changed, err = changes.Get(tx, n.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		for _, r := range s.Pools {
			if err := y.adoptPool(tx, n, r); err != nil {
				return err
			}
		}
		return y.putNew(tx, n)
	})
}

// fillGateways finds the gateways that the engine chose itself, which it does not tell: the host has them on the
// bridge, or a container has its default route there.
func (y *Yard) fillGateways(m modes.Mode, n *modes.Network, c Census) error {
	for i, s := range n.Subnets {
		if s.Gateway.IsValid() {
			continue
		}
		gw, found, err := y.c.Kernel.HostAddr(s.Pool)
		if err != nil {
			return err
		}
		if _, lan := m.(modes.Sharer); lan { // there the gateway is the LAN's router
			gw, found = netip.Prefix{}, false
		}
		for _, e := range c.Endpoints {
			for _, a := range e.Gateways {
				if !found && e.NetworkID == n.ID && s.Pool.Contains(a) {
					gw, found = netip.PrefixFrom(a, s.Pool.Bits()), true
				}
			}
		}
		if found {
			n.Subnets[i].Gateway = gw
		}
	}
	return nil
}

func (y *Yard) adoptPool(tx store.Tx, n modes.Network, r ipam.PoolRequest) error {
	p, err := y.c.IPAM.RequestPool(tx, r)
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if s.Pool != p.Subnet {
			continue
		}
		if s.Gateway.IsValid() {
			if _, err := y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: s.Gateway.Addr(), Gateway: true}); err != nil {
				return err
			}
		}
		for _, a := range s.Aux {
			if _, err := y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a.Addr()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// adoptEndpoint makes the record of an endpoint that was found.
func (y *Yard) adoptEndpoint(n modes.Network, id string, s SeenEndpoint) (modes.Endpoint, error) {
	e := modes.Endpoint{
		ID: id, NetworkID: n.ID, Sandbox: s.Sandbox, Addrs: s.Addrs, MAC: s.MAC, Options: s.Options, Phase: modes.Ready,
		Created: y.c.Now(), Joined: y.c.Now(), BootID: y.c.BootID, Container: s.Container,
		Seen: kernel.IsNamespace(s.Sandbox), Ports: y.foundPorts(id, s), Attachment: s.Attachment, IfName: s.IfName, Inside: s.Inside,
	}
	if s.Attachment != "" {
		e.NS, e.Seen = kernel.NamespaceAt(s.Sandbox)
		if said, err := modes.ResolveEndpoint(n.Mode, s.Said); err == nil { // it was checked when the container was attached
			e.Options = said
		}
	}
	err := y.c.Store.Update(func(tx store.Tx) error {
		if known, err := getEndpoint(tx, n.ID, id); err == nil {
			e = known
			return nil
		}
		k, found, err := keptOf(tx, n.ID, id)
		if err != nil {
			return err
		}
		if found {
			e = k.of(e)
		}
		for _, a := range e.Addrs {
			if err := y.keepLease(tx, n, a.Addr(), e); err != nil {
				return err
			}
		}
		if e.Attachment != "" {
			if err := attachments.Put(tx, attachmentKey(e.Attachment, n.ID, e.IfName), id); err != nil {
				return err
			}
		}
		return putEndpoint(tx, e)
	})
	return e, err
}

// foundPorts are the ports that the kernel goes on giving to a container.
func (y *Yard) foundPorts(id string, s SeenEndpoint) (ports []modes.Port) {
	addrs := s.Addrs
	for _, p := range y.c.Kernel.Published() {
		if slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == p.To }) {
			ports = append(ports, modes.Port{Proto: p.Proto, HostIP: p.Host, HostPort: p.Port, ContainerPort: p.ToPort, Count: p.Count})
		}
	}
	slices.SortFunc(ports, comparePorts)
	ports = append(join(ports), y.foundInside(id, s.Sandbox)...)
	for _, p := range y.c.Kernel.Opened() {
		if slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == p.Addr }) {
			ports = append(ports, modes.Port{Proto: p.Proto, HostIP: p.Addr, HostPort: p.Port, ContainerPort: p.Port, Count: p.Count, Routed: true})
		}
	}
	return ports
}

// foundInside are the ports of an endpoint's own address that its sandbox goes on redirecting.
func (y *Yard) foundInside(id, sandbox string) (ports []modes.Port) {
	found, err := kernel.Redirected(sandbox, id)
	if err != nil {
		y.c.Log.Warn("look for published ports in a sandbox", "endpoint", id, "err", err)
	}
	for _, p := range found {
		ports = append(ports, modes.Port{Proto: p.Proto, HostIP: p.Host, HostPort: p.Port, ContainerPort: p.ToPort, Count: p.Count, Routed: true})
	}
	slices.SortFunc(ports, comparePorts)
	return join(ports)
}

// keepLease sees to it that the address of an endpoint is leased, if it is one of netyard's own IPAM.
func (y *Yard) keepLease(tx store.Tx, n modes.Network, a netip.Addr, e modes.Endpoint) error {
	for _, s := range n.Subnets {
		if s.Space != Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.c.IPAM.PoolOf(tx, s.Pool, n.ID)
		if errors.Is(err, ipam.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if l, err := y.c.IPAM.LeaseAt(tx, p.ID, a); err == nil && l.State == ipam.StateActive {
			return nil
		}
		_, err = y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a, Name: e.Container.Name})
		if errors.Is(err, ipam.ErrTaken) { // reserved for another one while this one had it already
			_, err = y.c.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a})
		}
		return err
	}
	return nil
}
