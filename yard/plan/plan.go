// Package plan makes the kernel match what modes plan: a network's objects and an endpoint's, made and removed in one
// way for all modes.
package plan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/kernel"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/modes"
)

// A Runner makes plans true on one host. What it does is idempotent: twice is once, and undoing what is not there is
// not an error.
type Runner struct {
	Kernel *kernel.Kernel
	// Fabric is the cluster that this host is in; nil: it is in none.
	Fabric modes.Fabric
}

// Up makes a network. What keeps it closed is there first; the cluster hears of it last.
func (r Runner) Up(ctx context.Context, m modes.Mode, n modes.Network) error {
	first, rest := apart(m.Objects(n))
	if err := r.Kernel.Ensure(ctx, first...); err != nil {
		return err
	}
	c := m.Traits(n).Cluster
	if err := r.reachable(c); err != nil {
		return err
	}
	if err := r.Kernel.Ensure(ctx, rest...); err != nil || c == nil {
		return err
	}
	return r.Fabric.Up(*c, linksOf(rest))
}

// Down removes a network. What keeps it closed stays while something else of it may be there.
func (r Runner) Down(m modes.Mode, n modes.Network) error {
	first, rest := apart(m.Objects(n))
	var err error
	if c := r.joined(m, n); c != nil {
		err = r.Fabric.Down(*c)
	}
	if err := errors.Join(err, r.Kernel.Remove(rest...)); err != nil {
		return err
	}
	return r.Kernel.Remove(first...)
}

// Attach makes what an endpoint wants on the host, and returns what is to be done in its sandbox.
func (r Runner) Attach(ctx context.Context, m modes.Mode, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	t := m.Traits(n)
	if err := r.reachable(t.Cluster); err != nil {
		return modes.Link{}, err
	}
	objects, link := m.Place(n, e)
	if t.OnHostLink { // that link may have come back since Up
		objects = append(m.Objects(n), objects...)
	}
	if err := r.Kernel.Ensure(ctx, objects...); err != nil {
		return modes.Link{}, err
	}
	if t.Cluster != nil && e.Fenced == "" {
		if err := r.Fabric.Attach(*t.Cluster, e); err != nil {
			return modes.Link{}, err
		}
	}
	if !link.ToHost {
		return link, nil
	}
	var err error
	link.Routes, err = r.routesToHost(e, link.Routes)
	return link, err
}

// Detach removes what an endpoint wants on the host. Its end of a pair goes first and takes its queues with it: to
// remove those one by one costs the kernel tens of milliseconds more.
func (r Runner) Detach(m modes.Mode, n modes.Network, e modes.Endpoint) error {
	var err error
	if c := r.joined(m, n); c != nil {
		err = r.Fabric.Detach(*c, e)
	}
	objects, _ := m.Place(n, e)
	// The last one is removed first.
	slices.SortStableFunc(objects, func(a, b core.Object) int { return pair(a) - pair(b) })
	return errors.Join(err, r.Kernel.Remove(objects...))
}

// Objects are all that a network and endpoints of it want in the kernel.
func (r Runner) Objects(m modes.Mode, n modes.Network, es ...modes.Endpoint) []core.Object {
	objects := m.Objects(n)
	if c := m.Traits(n).Cluster; c != nil {
		if r.Fabric == nil { // whether its endpoints are right, nobody can say
			return objects
		}
		objects = append(objects, r.Fabric.Objects(*c)...)
	}
	for _, e := range es {
		more, _ := m.Place(n, e)
		objects = append(objects, more...)
	}
	return objects
}

// Take returns what is to be recorded before an endpoint takes a device of the host; nil when it takes none. It refuses
// a device that one of the others has.
func (r Runner) Take(m modes.Mode, n modes.Network, others []modes.Endpoint) (map[string]string, error) {
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
	st, err := r.Facts().Device(dev)
	if err != nil {
		return nil, fmt.Errorf("take device %s: %w", dev, err)
	}
	return modes.NoteDevice(st)
}

// reachable refuses a network of a cluster on a host that is in none.
func (r Runner) reachable(c *modes.Overlay) error {
	if c != nil && r.Fabric == nil {
		return fmt.Errorf("network %s: %w", c.Name, modes.ErrNoCluster)
	}
	return nil
}

// joined is the cluster's network that a network is, if this host has joined it; nil when not.
func (r Runner) joined(m modes.Mode, n modes.Network) *modes.Overlay {
	c := m.Traits(n).Cluster
	if c == nil || r.Fabric == nil || c.ID == "" {
		return nil
	}
	return c
}

// linksOf are the links of a cluster's network that the cluster has to know of.
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

// apart splits the elements at the beginning of a list from the rest.
func apart(objects []core.Object) (first, rest []core.Object) {
	at := slices.IndexFunc(objects, func(o core.Object) bool {
		_, element := o.(nft.Element)
		return !element
	})
	if at < 0 {
		return objects, nil
	}
	return objects[:at], objects[at:]
}

// pair is 1 for the host's end of a pair of links.
func pair(o core.Object) int {
	if _, ok := o.(bridge.Veth); ok {
		return 1
	}
	return 0
}

// routesToHost adds the routes that Link.ToHost asks for. Without them, what is for the host's own address would go by
// the LAN's router, and come back by the host's link on the parent.
func (r Runner) routesToHost(e modes.Endpoint, routes []modes.Route) ([]modes.Route, error) {
	for _, a := range e.Addrs {
		src, err := lan.SourceFor(r.Kernel.Handle, a.Addr())
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
