package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/ipam"
	kports "netyard/kernel/ports"
	"netyard/modes"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/enforce"
	"netyard/yard/overlay"
	"netyard/yard/port"
	"netyard/yard/source"
)

const flagRebuilding = "rebuilding"

// MarkRecordsLost records that the database may have been lost. Until the records are rebuilt, nothing unknown counts
// as a stray.
func MarkRecordsLost(tx store.Tx) error { return book.Flags.Put(tx, flagRebuilding, true) }

// Rebuilding reports whether lost records have not been rebuilt yet.
func Rebuilding(y *yard.Yard) bool {
	lost := false
	err := y.Config.Store.View(func(tx store.Tx) (err error) {
		lost, err = book.Flags.Get(tx, flagRebuilding)
		return err
	})
	return err == nil && lost
}

// EndRebuild ends the rebuild on a host without a Docker engine, when what others know was rebuilt, and removes the
// strays. It leaves everything as it is while a link is in no record: a container may use it.
func EndRebuild(ctx context.Context, y *yard.Yard) error {
	if !Rebuilding(y) {
		return nil
	}
	if strays, err := HasStrays(y); err != nil || strays {
		return err
	}
	if err := RecordsRebuilt(y); err != nil {
		return err
	}
	return Prune(ctx, y)
}

// HasStrays reports whether the host has links of netyard's that are in no record. What was being made or removed when
// the daemon ended is in one.
func HasStrays(y *yard.Yard) (bool, error) {
	w, err := enforce.AllWanted(y.Book)
	if err != nil {
		return false, err
	}
	snap, err := y.Config.Kernel.LinkSnapshot()
	if err != nil {
		return false, err
	}
	return len(snap.Strays(slices.Concat(w.Objects, w.MayExist))) > 0, nil
}

// Rebuild rebuilds the records from what an engine and the kernel have, and then removes the strays. Before that,
// others rebuilds the records of other sources; nil: there are none.
func Rebuild(ctx context.Context, y *yard.Yard, c Census, others func(context.Context) error) error {
	var errs []error
	for id, s := range c.Networks {
		if !c.here(id) {
			continue
		}
		if err := adoptNetwork(ctx, y, s, c); err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %s: %w", cmp.Or(s.Name, modes.Short(id)), err))
		}
	}
	if others != nil {
		errs = append(errs, others(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := errors.Join(RecordsRebuilt(y), forgetKept(y, c)); err != nil {
		return err
	}
	y.Config.Log.Warn("records rebuilt",
		"engine", c.Engine, "networks", len(c.Networks), "endpoints", len(c.Endpoints))
	return Prune(ctx, y)
}

// RecordsRebuilt ends the state in which nothing unknown counts as a stray.
func RecordsRebuilt(y *yard.Yard) error {
	return y.Config.Store.Update(func(tx store.Tx) error { return book.Flags.Delete(tx, flagRebuilding) })
}

// adoptNetwork makes the record of a network that its engine has. On errors it removes nothing, since containers use
// the network.
func adoptNetwork(ctx context.Context, y *yard.Yard, s SeenNetwork, c Census) error {
	h, err := y.HoldNewNetwork(ctx, s.Network.ID)
	if err != nil {
		return err
	}
	defer h.Release()
	if h.Network.ID == "" {
		if h.Mode, err = y.Mode(s.Network.Mode); err != nil {
			return err
		}
		if h.Network, err = adoptRecord(ctx, y, h.Mode, s, c); err != nil {
			return err
		}
	}
	n := h.Network
	links, err := y.Config.Kernel.Has()
	if err != nil {
		return err
	}
	errs := []error{y.Plan().Up(ctx, h.Mode, n)}
	var adopted []modes.Endpoint
	for id, s := range c.Endpoints {
		if s.NetworkID != n.ID || detachedSince(y, n, id, s) {
			continue
		}
		e, err := adoptEndpoint(y, n, id, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", modes.Short(id), err))
			continue
		}
		adopted = append(adopted, e)
	}
	errs = append(errs, enforce.Enforce(ctx, y.Book)) // policies are in force before endpoints are attached again
	for _, e := range adopted {
		if err := restoreEndpoint(ctx, y, h.With(e), found{links: links}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", book.Owned(e), err))
		}
	}
	return errors.Join(errs...)
}

// adoptRecord makes the record of a network and those of its pools.
func adoptRecord(
	ctx context.Context, y *yard.Yard, m modes.Mode, s SeenNetwork, c Census,
) (n modes.Network, err error) {
	n = s.Network
	if overlay.Claims(y.Book, n.Mode) { // its addresses are in the cluster's pools, not in this host's
		s.Pools, n.Subnets = nil, slices.Clone(n.Subnets)
		for i := range n.Subnets {
			n.Subnets[i].Space = overlay.Space
		}
	}
	if err := fillGateways(y, m, &n, c); err != nil {
		return n, err
	}
	if n.Settled, err = m.Settle(ctx, y.Config.Kernel, n, nil); err != nil {
		return n, err
	}
	n.Phase, n.Created = modes.Ready, y.Config.Now()
	return n, y.Config.Store.Update(func(tx store.Tx) error {
		if n.Changed, err = book.Changes.Get(tx, n.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		for _, r := range s.Pools {
			if err := adoptPool(y, tx, n, r); err != nil {
				return err
			}
		}
		return y.PutNew(tx, n)
	})
}

// fillGateways finds the gateways that the engine chose itself and does not list: the host has them on the bridge, or a
// container's default route leads to them.
func fillGateways(y *yard.Yard, m modes.Mode, n *modes.Network, c Census) error {
	for i, s := range n.Subnets {
		if s.Gateway.IsValid() {
			continue
		}
		gw, found, err := y.Config.Kernel.HostAddr(s.Pool)
		if err != nil {
			return err
		}
		if t := m.Traits(*n); t.OnHostLink || t.Cluster != nil { // the gateway is the LAN's router, or the cluster's
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

// adoptPool requests a network's pool and its gateway and auxiliary addresses from the IPAM.
func adoptPool(y *yard.Yard, tx store.Tx, n modes.Network, r ipam.PoolRequest) error {
	p, err := y.Config.IPAM.RequestPool(tx, r)
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if s.Pool != p.Subnet {
			continue
		}
		if s.Gateway.IsValid() {
			gw := ipam.AddressRequest{Pool: p.ID, Addr: s.Gateway.Addr(), Gateway: true}
			if _, err := y.Config.IPAM.RequestAddress(tx, gw); err != nil {
				return err
			}
		}
		for _, a := range s.Aux {
			if _, err := y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a.Addr()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// detachedSince reports whether an attachment without a record has lost its link since the census: its runtime has
// detached it meanwhile, and will not do so again. The network is held, so nobody attaches or detaches now.
func detachedSince(y *yard.Yard, n modes.Network, id string, s SeenEndpoint) bool {
	if s.Attachment == "" {
		return false
	}
	if _, err := y.Endpoint(n.ID, id); err == nil {
		return false
	}
	now, err := FindIn(y, s.Sandbox)
	_, there := now[id]
	return err != nil || !there
}

// adoptEndpoint makes the record of an endpoint in a census, if it has none.
func adoptEndpoint(y *yard.Yard, n modes.Network, id string, s SeenEndpoint) (modes.Endpoint, error) {
	e := modes.Endpoint{
		ID: id, NetworkID: n.ID, Sandbox: s.Sandbox, Addrs: s.Addrs, MAC: s.MAC, Options: s.Options, Phase: modes.Ready,
		Created: y.Config.Now(), Joined: y.Config.Now(), BootID: y.Config.BootID, Container: s.Container,
		Seen: y.Config.Kernel.IsNamespace(s.Sandbox), Ports: FoundPorts(y, id, s),
		Attachment: s.Attachment, IfName: s.IfName, Inside: s.Inside,
	}
	if s.Attachment != "" {
		e.NS, e.Seen = y.Config.Kernel.NamespaceAt(s.Sandbox)
		// They were valid when the container was attached.
		if options, err := y.Options.ResolveEndpoint(n.Mode, s.Said); err == nil {
			e.Options = options
		}
	}
	err := y.Config.Store.Update(func(tx store.Tx) error {
		if known, err := book.GetEndpoint(tx, n.ID, id); err == nil {
			e = known
			return nil
		}
		k, found, err := book.KeptOf(tx, n.ID, id)
		if err != nil {
			return err
		}
		if found {
			e = k.Of(e)
		}
		if err := source.Ensure(y.Book, tx, n, e); err != nil {
			return err
		}
		if e.Attachment != "" {
			if err := book.Attachments.Put(tx, book.AttachmentKey(e.Attachment, n.ID, e.IfName), id); err != nil {
				return err
			}
		}
		return book.PutEndpoint(tx, e)
	})
	return e, err
}

// FoundPorts returns the ports that are published for a container in the kernel.
func FoundPorts(y *yard.Yard, id string, s SeenEndpoint) (ports []modes.Port) {
	addrs := s.Addrs
	for _, p := range y.Config.Kernel.Published() {
		if slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == p.To }) {
			ports = append(ports, modes.Port{
				Proto: p.Proto, HostIP: p.Host, HostPort: p.Port, ContainerPort: p.ToPort, Count: p.Count,
			})
		}
	}
	slices.SortFunc(ports, port.ComparePorts)
	ports = append(port.Join(ports), foundInside(y, id, s.Sandbox)...)
	for _, p := range y.Config.Kernel.Opened() {
		if slices.ContainsFunc(addrs, func(a netip.Prefix) bool { return a.Addr() == p.Addr }) {
			ports = append(ports, modes.Port{
				Proto: p.Proto, HostIP: p.Addr, HostPort: p.Port, ContainerPort: p.Port, Count: p.Count, Routed: true,
			})
		}
	}
	return ports
}

// foundInside returns the ports of an endpoint's own address that are redirected in its sandbox.
func foundInside(y *yard.Yard, id, sandbox string) (ports []modes.Port) {
	found, err := kports.Redirected(sandbox, id)
	if err != nil {
		y.Config.Log.Warn("published ports in a sandbox not read", "endpoint", id, "err", err)
	}
	for _, p := range found {
		ports = append(ports, modes.Port{
			Proto: p.Proto, HostIP: p.Host, HostPort: p.Port, ContainerPort: p.ToPort, Count: p.Count, Routed: true,
		})
	}
	slices.SortFunc(ports, port.ComparePorts)
	return port.Join(ports)
}
