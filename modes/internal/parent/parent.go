// Package parent is what macvlan and ipvlan have in common: the link of the host that containers' links are made on.
package parent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/lan"
	"netyard/modes"
)

// A Kind is what makes one of the two modes.
type Kind struct {
	// Name is the mode's, and the kernel's for its links.
	Name string
	// Setting is the kernel's mode of the links of a network, and their flag.
	Setting func(n modes.Network) (mode, flag string)
	// Share refuses n beside another network of the same mode on the same parent.
	Share func(n, other modes.Network) error
	// Settle refuses a network for the link of the host that it would be on, which is empty where there is none.
	Settle func(n modes.Network, name string, link core.LinkInfo) error
	// MAC is the hardware address of an endpoint's link; nil where it has the parent's.
	MAC func(n modes.Network, e modes.Endpoint) net.HardwareAddr
	// Member refuses a network whose containers cannot ask the LAN's DHCP servers.
	Member func(n modes.Network) error
	// Routed says that a network is behind the host, which routes for it: whatever its containers send leaves by their
	// link.
	Routed func(n modes.Network) bool
	// ByInput says that what is for a network's containers comes in by the host's rules instead of theirs; nil: of
	// none.
	ByInput func(n modes.Network) bool
	// Returns refuses a network whose containers' answers would not come back to the host by its own link; nil: they
	// do.
	Returns func(n modes.Network) error
}

// Mode is a modes.Mode of one kind.
type Mode struct {
	Kind   Kind
	Kernel *kernel.Kernel
}

// hostAccess says whether the host has a link of its own on the parent.
func hostAccess(n modes.Network) bool { return n.OptBool("host_access") }

// Up makes the parent, if it is netyard's to make, and the host's own link on it.
func (m Mode) Up(ctx context.Context, n modes.Network) error {
	return m.Kernel.Ensure(ctx, m.networkObjects(n)...)
}

// Down undoes Up.
func (m Mode) Down(_ context.Context, n modes.Network) error {
	return m.Kernel.Remove(m.networkObjects(n)...)
}

// Attach makes the link of an endpoint and the host's routes to it. A parent may have come back since Up.
func (m Mode) Attach(ctx context.Context, n modes.Network, e modes.Endpoint) (modes.Link, error) {
	objects := append(m.networkObjects(n), m.endpointObjects(n, e)...)
	if err := m.Kernel.Ensure(ctx, objects...); err != nil {
		return modes.Link{}, err
	}
	l := modes.Link{SrcName: core.Name(core.PeerPrefix, e.ID), DstPrefix: n.Opt("iface_prefix"), MTU: mtu(n)}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l, m.routes(n, e, &l)
}

// Detach undoes Attach.
func (m Mode) Detach(_ context.Context, n modes.Network, e modes.Endpoint) error {
	return m.Kernel.Remove(m.endpointObjects(n, e)...)
}

// Objects is what Up and the Attaches leave.
func (m Mode) Objects(n modes.Network, es []modes.Endpoint) []core.Object {
	objects := m.networkObjects(n)
	for _, e := range es {
		objects = append(objects, m.endpointObjects(n, e)...)
	}
	return objects
}

// LAN is the one that the parent is on.
func (m Mode) LAN(n modes.Network) (dhcp.LANPort, error) {
	if island(n) {
		return dhcp.LANPort{}, errors.New("a network without a parent is on no LAN; say -o parent=")
	}
	if err := m.Kind.Member(n); err != nil {
		return dhcp.LANPort{}, err
	}
	p := top(n)
	return dhcp.LANPort{Kind: m.Kind.Name, Parent: p.Name, MAC: p.MAC}, nil
}

func (m Mode) networkObjects(n modes.Network) (objects []core.Object) {
	if island(n) {
		objects = append(objects, lan.Island{Name: name(n), Alias: core.Alias(n.ID, "")})
	} else {
		objects = append(objects, base(n))
	}
	for _, v := range vlans(n) {
		objects = append(objects, v)
	}
	if hostAccess(n) {
		objects = append(objects, m.shim(n))
	}
	if hostPublish(n) {
		objects = append(objects, m.gate(n)...)
	}
	return objects
}

func (m Mode) endpointObjects(n modes.Network, e modes.Endpoint) []core.Object {
	c := lan.Child{
		Name: core.Name(core.PeerPrefix, e.ID), Alias: core.Alias(n.ID, e.ID), Parent: top(n), Kind: m.Kind.Name,
		MTU: mtu(n), MAC: m.Kind.MAC(n, e), Sandbox: e.Sandbox,
	}
	c.Mode, c.Flag = m.Kind.Setting(n)
	objects := append([]core.Object{c}, m.redirects(n, e)...)
	if hostAccess(n) {
		for _, a := range e.Addrs {
			objects = append(objects, lan.HostRoute{Shim: m.shim(n), Dst: a.Addr(), MAC: c.MAC})
		}
	}
	return append(objects, m.hostPorts(n, e)...)
}

func (m Mode) shim(n modes.Network) lan.Shim {
	mode, _ := m.Kind.Setting(n)
	return lan.ShimOn(top(n), m.Kind.Name, mode, n.ID)
}

// mtu is what the links of a network carry; 0 is what the parent carries.
func mtu(n modes.Network) int {
	if _, said := n.Options["mtu"]; said {
		return n.OptInt("mtu")
	}
	return 0
}

// routes says where an endpoint sends what is not for its neighbours.
func (m Mode) routes(n modes.Network, e modes.Endpoint, l *modes.Link) error {
	switch {
	case m.Kind.Routed(n):
		l.Routes = everywhere(n, e)
		return nil
	case island(n):
	default:
		l.Gateways = n.Gateways(e)
	}
	if !hostAccess(n) {
		return nil
	}
	// Where the host's address is not a neighbour's, the way to it would lead over the LAN's router, and back by the
	// shim.
	for _, a := range e.Addrs {
		src, err := lan.SourceFor(m.Kernel.Handle, a.Addr())
		if err != nil {
			return fmt.Errorf("attach endpoint %s: %w", modes.Short(e.ID), err)
		}
		if src.IsValid() && !neighbour(e, src) {
			l.Routes = append(l.Routes, modes.Route{Dst: single(src)})
		}
	}
	return nil
}
