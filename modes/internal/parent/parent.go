// Package parent has what macvlan and ipvlan share: the link of the host that containers' links are made on.
package parent

import (
	"errors"
	"net"
	"net/netip"

	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/gso"
	"netyard/kernel/lan"
	"netyard/modes"
)

// A Kind has what differs between the two modes.
type Kind struct {
	// Name is the mode's, and the kernel's for its links.
	Name string
	// MAC is the rule for hardware addresses of a network's links.
	MAC func(n modes.Network) modes.MACRule
	// Setting is the kernel's mode of the links of a network, and their flag.
	Setting func(n modes.Network) (mode, flag string)
	// Share refuses n beside another network of the same mode on the same parent.
	Share func(n, other modes.Network) error
	// Fit refuses a link of the host as the parent of a network.
	Fit func(f modes.Facts, n modes.Network, name string, link core.LinkInfo) error
	// Member refuses a network whose containers cannot ask the LAN's DHCP servers.
	Member func(n modes.Network) error
	// Routed: the host routes for the network's containers, and all they send leaves by their link.
	Routed func(n modes.Network) bool
	// ByInput: traffic to the network's containers passes the host's input rules instead of theirs; nil: of no network.
	ByInput func(n modes.Network) bool
	// Returns refuses a network whose containers' replies would not come back by the host's own link; nil: they do.
	Returns func(n modes.Network) error
}

// Traits returns the traits of a network of the kind. Traffic to a container does not pass the host, so ports are
// published on the containers' own addresses, and on the host's as well with host_publish. Only the user knows which
// address the router of the LAN has, if there is one.
func (k Kind) Traits(n modes.Network) modes.Traits {
	return modes.Traits{
		MAC: k.MAC(n), Segments: segments(n), OnHostLink: true, HostLink: Parent.Of(n), LAN: k.lan(n),
		Gatewayless: modes.Families{V4: true, V6: true},
		Publish:     modes.Publishing{OnOwn: true, OnHost: HostPublish.Of(n), Binds: modes.Bind.Of(n)},
	}
}

// lan returns the LAN that the parent is on.
func (k Kind) lan(n modes.Network) modes.LAN {
	if island(n) {
		return modes.LAN{Refusal: errors.New("a network without a parent is on no LAN; add -o parent=")}
	}
	if err := k.Member(n); err != nil {
		return modes.LAN{Refusal: err}
	}
	p := top(n)
	return modes.LAN{Port: dhcp.LANPort{Kind: k.Name, Parent: p.Name, MAC: p.MAC}}
}

// Objects returns the parent, its VLAN links, and the host's own link on it.
func (k Kind) Objects(n modes.Network) (objects []core.Object) {
	if island(n) {
		objects = append(objects, lan.IsolatedParent{Name: linkName(n), Alias: core.Alias(n.ID, "")})
	} else {
		objects = append(objects, base(n))
	}
	for _, v := range vlans(n) {
		objects = append(objects, v)
	}
	if HostAccess.Of(n) {
		objects = append(objects, k.shim(n))
	}
	if HostPublish.Of(n) {
		objects = append(objects, k.gate(n)...)
	}
	return objects
}

// Place returns the link of an endpoint, its published ports, and the host's routes to it.
func (k Kind) Place(n modes.Network, e modes.Endpoint) ([]core.Object, modes.Link) {
	c := lan.Child{
		Name: core.Name(core.PeerPrefix, e.ID), Alias: core.Alias(n.ID, e.ID), Parent: top(n), Kind: k.Name,
		MTU: mtu(n), MAC: k.mac(n, e), Sandbox: e.Sandbox, NS: e.NS,
		Segments: segments(n),
	}
	c.Mode, c.Flag = k.Setting(n)
	objects := append([]core.Object{c}, k.redirects(n, e)...)
	if HostAccess.Of(n) {
		for _, a := range e.Addrs {
			objects = append(objects, lan.HostRoute{Shim: k.shim(n), Dst: a.Addr(), MAC: c.MAC})
		}
	}
	return append(objects, k.hostPorts(n, e)...), k.link(n, e, c)
}

// mac returns the hardware address of an endpoint's link; nil: it has the parent's.
func (k Kind) mac(n modes.Network, e modes.Endpoint) net.HardwareAddr {
	switch rule := k.MAC(n); {
	case rule == modes.MACNone, rule == modes.MACAsIs && e.MAC == "":
		return nil
	}
	return e.HardwareAddr()
}

// link returns what to do in the sandbox, with the routes to everything that is not on the link.
func (k Kind) link(n modes.Network, e modes.Endpoint, c lan.Child) modes.Link {
	l := n.Link(e, c.Name, c.MTU)
	switch {
	case k.Routed(n):
		l.Routes = everywhere(n, e)
		return l
	case !island(n):
		l.Gateways = n.Gateways(e)
	}
	l.ToHost = HostAccess.Of(n)
	return l
}

// everywhere returns a default route on the link for each family of an endpoint.
func everywhere(n modes.Network, e modes.Endpoint) (routes []modes.Route) {
	if n.Internal || island(n) {
		return nil
	}
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if e.Address(all.Is4()).IsValid() {
			routes = append(routes, modes.Route{Dst: netip.PrefixFrom(all, 0)})
		}
	}
	return routes
}

func (k Kind) shim(n modes.Network) lan.Shim {
	mode, _ := k.Setting(n)
	return lan.ShimOn(top(n), k.Name, mode, n.ID)
}

// segments says how large the segments of a network may be: all that leaves it does by the parent.
func segments(n modes.Network) gso.Want {
	want := gso.Want{Big: modes.BigTCP.Of(n) != "false"}
	if want.Big && !island(n) {
		want.Link = top(n).Name
	}
	return want
}

// mtu returns the MTU of a network's links; 0: the parent's.
func mtu(n modes.Network) int {
	if _, given := n.Options[modes.MTU.Name]; given {
		return modes.MTU.Of(n)
	}
	return 0
}
