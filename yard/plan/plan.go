// Package plan makes the kernel match the plans of modes. The objects of networks and endpoints are made and removed in
// the same way for all modes.
package plan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/modes"
)

// A Runner carries out plans on one host. All it does is idempotent, and it is no error to remove what does not exist.
type Runner struct {
	Kernel Kernel
	// Fabric is the cluster that this host is in; nil if it is in none.
	Fabric modes.Fabric
}

// Up makes a network. The set elements that keep it closed come first; the cluster is told last.
func (r Runner) Up(ctx context.Context, m modes.Mode, n modes.Network) error {
	first, rest := splitElements(m.Objects(n))
	if err := r.Kernel.Ensure(ctx, first...); err != nil {
		return err
	}
	c := m.Traits(n).Cluster
	if err := r.checkCluster(c); err != nil {
		return err
	}
	if err := r.Kernel.Ensure(ctx, rest...); err != nil || c == nil {
		return err
	}
	return r.Fabric.Up(*c, linksOf(rest))
}

// Down removes a network. The set elements that keep it closed go last, after all its other objects.
func (r Runner) Down(m modes.Mode, n modes.Network) error {
	first, rest := splitElements(m.Objects(n))
	var err error
	if c := r.joined(m, n); c != nil {
		err = r.Fabric.Down(*c)
	}
	if err := errors.Join(err, r.Kernel.Remove(rest...)); err != nil {
		return err
	}
	return r.Kernel.Remove(first...)
}

// Attach makes the objects of an endpoint on the host, and returns the link to set up in its sandbox.
func (r Runner) Attach(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	t := m.Traits(n)
	if err := r.checkCluster(t.Cluster); err != nil {
		return modes.Link{}, err
	}
	objects, link := m.Place(n, e)
	if t.OnHostLink { // the host's link may have been removed and added again since Up
		objects = append(m.Objects(n), objects...)
	}
	err := r.Kernel.Ensure(ctx, objects...)
	if core.IsNoLink(err) { // somebody removed the network's link, and its repair has not begun
		err = r.Kernel.Ensure(ctx, append(m.Objects(n), objects...)...)
	}
	if err != nil {
		return modes.Link{}, err
	}
	if t.Cluster != nil && e.Fenced == "" {
		if err := r.Fabric.Attach(*t.Cluster, e); err != nil {
			return modes.Link{}, err
		}
	}
	return r.withRoutes(e, link)
}

// Link returns the link of an endpoint, as Attach does, and makes nothing.
func (r Runner) Link(m modes.Mode, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	_, link := m.Place(n, e)
	return r.withRoutes(e, link)
}

// withRoutes adds the routes that depend on the host's addresses.
func (r Runner) withRoutes(e modes.Endpoint, link modes.Link) (modes.Link, error) {
	if !link.ToHost {
		return link, nil
	}
	var err error
	link.Routes, err = r.routesToHost(e, link.Routes)
	return link, err
}

// Detach removes the objects of an endpoint from the host. The host end of a veth pair goes first, and its queues with
// it: to remove the queues one by one costs the kernel tens of milliseconds more.
func (r Runner) Detach(m modes.Mode, n modes.Network, e modes.Endpoint) error {
	var err error
	if c := r.joined(m, n); c != nil {
		err = r.Fabric.Detach(*c, e)
	}
	e.Fenced = "" // its ports may be in the kernel nevertheless: unfencing may have failed half-way
	objects, _ := m.Place(n, e)
	// Remove removes the last object first.
	slices.SortStableFunc(objects, func(a, b core.Object) int { return vethRank(a) - vethRank(b) })
	return errors.Join(err, r.Kernel.Remove(objects...))
}

// Objects returns all objects that a network and the given endpoints of it want in the kernel.
func (r Runner) Objects(m modes.Mode, n modes.Network, es ...modes.Endpoint) []core.Object {
	objects := m.Objects(n)
	if c := m.Traits(n).Cluster; c != nil {
		if r.Fabric == nil {
			return objects
		}
		objects = append(objects, r.Fabric.Objects(*c)...)
	}
	for _, e := range es {
		objects = append(objects, r.ObjectsOf(m, n, e)...)
	}
	return objects
}

// ObjectsOf returns the objects that an endpoint wants in the kernel, without those of its network.
func (r Runner) ObjectsOf(m modes.Mode, n modes.Network, e modes.Endpoint) []core.Object {
	if m.Traits(n).Cluster != nil && r.Fabric == nil { // without the cluster it is unknown what it needs
		return nil
	}
	objects, _ := m.Place(n, e)
	return objects
}

// TakeDevice returns the state of the host's device that an endpoint takes, to be recorded first; nil if it takes none.
// It refuses a device that one of the other endpoints has.
func (r Runner) TakeDevice(m modes.Mode, n modes.Network, others []modes.Endpoint) (map[string]string, error) {
	dev := m.Traits(n).Device
	if dev == "" {
		return nil, nil
	}
	if len(others) > 0 {
		who := "endpoint " + modes.Short(others[0].ID)
		if name := others[0].Container.Name; name != "" {
			who = "container " + name
		}
		return nil, fmt.Errorf("take device %s: %s has it", dev, who)
	}
	st, err := r.Kernel.Device(dev)
	if err != nil {
		return nil, fmt.Errorf("take device %s: %w", dev, err)
	}
	return modes.NoteDevice(st)
}

// checkCluster refuses an overlay on a host that is in no cluster.
func (r Runner) checkCluster(c *modes.Overlay) error {
	if c != nil && r.Fabric == nil {
		return fmt.Errorf("network %s: %w", c.Name, modes.ErrNoCluster)
	}
	return nil
}

// joined returns the overlay of a network if this host has joined it, otherwise nil.
func (r Runner) joined(m modes.Mode, n modes.Network) *modes.Overlay {
	c := m.Traits(n).Cluster
	if c == nil || r.Fabric == nil || c.ID == "" {
		return nil
	}
	return c
}

// linksOf returns the links of an overlay that the cluster must know.
func linksOf(objects []core.Object) (l modes.OverlayLink) {
	for _, o := range objects {
		switch o := o.(type) {
		case bridge.Bridge:
			l.Bridge, l.Alias, l.MAC = o.Name, o.Alias, o.MAC.String()
		case overlay.VXLAN:
			l.VXLAN = o.Name
		}
	}
	return l
}

// splitElements splits a list into the set elements at its beginning and the rest.
func splitElements(objects []core.Object) (first, rest []core.Object) {
	at := slices.IndexFunc(objects, func(o core.Object) bool {
		_, element := o.(nft.Element)
		return !element
	})
	if at < 0 {
		return objects, nil
	}
	return objects[:at], objects[at:]
}

// vethRank is 1 for the host end of a veth pair, and 0 for other objects.
func vethRank(o core.Object) int {
	if _, ok := o.(bridge.Veth); ok {
		return 1
	}
	return 0
}

// routesToHost adds the routes that Link.ToHost asks for. Without them, packets to the host's own address would go by
// way of the LAN's router and come back on the host's link on the parent.
func (r Runner) routesToHost(e modes.Endpoint, routes []modes.Route) ([]modes.Route, error) {
	for _, a := range e.Addrs {
		src, err := r.Kernel.SourceFor(a.Addr())
		if err != nil {
			return routes, fmt.Errorf("attach endpoint %s: %w", modes.Short(e.ID), err)
		}
		inSubnet := slices.ContainsFunc(e.Addrs, func(a netip.Prefix) bool { return a.Masked().Contains(src) })
		if src.IsValid() && !inSubnet {
			routes = append(routes, modes.Route{Dst: netip.PrefixFrom(src, src.BitLen())})
		}
	}
	return routes, nil
}
