package modes

import (
	"net"
	"net/netip"
	"slices"

	"netyard/kernel/dhcp"
	"netyard/kernel/gso"
	"netyard/kernel/sandbox"
)

// Traits tell the rest of netyard what it has to know of a network. With the zero value, endpoints have addresses on a
// link without a hardware address of its own, publish no ports, and have the host as their gateway.
type Traits struct {
	MAC MACRule
	// Addressless: its endpoints have no addresses, and so neither gateways nor ports.
	Addressless bool
	// Policed: its endpoints' traffic passes the host's firewall, so that policies apply.
	Policed bool
	// Isolated: its endpoints do not reach each other on the link.
	Isolated bool
	// Publish says where ports can be published.
	Publish Publishing
	// Sharing is set where endpoints share the host's addresses: a port that a program in the sandbox listens on
	// becomes a port of the host.
	Sharing *PortSharing
	// Device is the network card of the host that is moved into the sandbox; empty: none. Its state is recorded with
	// the endpoint before, so that it can be restored.
	Device string
	// Gatewayless are the families for which the network needs no gateway unless one is requested.
	Gatewayless Families
	// Reserved are addresses that are given only to endpoints that request them.
	Reserved Reservation
	// OnHostLink: its links are made on a link of the host, which may disappear and come back. So the network's objects
	// are ensured again before each endpoint's. The gateway is a router on that link, and not the host.
	OnHostLink bool
	// HostLink is the host's link whose LAN the endpoints are on. They cannot have an address that the host has there.
	HostLink string
	// LAN is the LAN whose DHCP server can give its endpoints addresses.
	LAN LAN
	// Segments says how large the segments may be that TCP hands to its links.
	Segments gso.Want
	// Cluster is the cluster's network that it belongs to; nil: none. Its addresses are claimed there.
	Cluster *Overlay
}

// A MACRule says which hardware address an endpoint's link gets.
type MACRule uint8

// The rules.
const (
	// MACNone: the link has none of its own, so none can be asked for.
	MACNone MACRule = iota
	// MACDerived: one that is asked for, or else one that follows from the address, see StableMAC.
	MACDerived
	// MACAsIs: one that is asked for, or else the one that the link has already.
	MACAsIs
)

// String returns the rule's name.
func (r MACRule) String() string { return [...]string{"none", "derived", "as-is"}[r] }

// Default returns the hardware address of an endpoint for which none was requested; empty: none is set.
func (r MACRule) Default(e Endpoint) string {
	if r != MACDerived {
		return ""
	}
	return e.StableMAC().String()
}

// A Publishing says where a network's ports are published. Neither OnHost nor OnOwn: nowhere.
type Publishing struct {
	// OnHost: on addresses of the host.
	OnHost bool
	// OnOwn: on the containers' own addresses, by a table in their sandboxes.
	OnOwn bool
	// Binds are the host's addresses for ports that name none; empty: all of them.
	Binds []netip.Addr
	// Routed are the families in which containers are reached by their own addresses: there a published port opens
	// theirs, and takes none of the host's.
	Routed Families
}

// Families says of each family whether something holds for it.
type Families struct{ V4, V6 bool }

// Has says whether the family of an address is among them.
func (f Families) Has(a netip.Addr) bool { return a.Is4() && f.V4 || a.Is6() && f.V6 }

// A Reservation has addresses with a meaning for their network, and the option that names them.
type Reservation struct {
	Option string
	Addrs  []netip.Addr
}

// A LAN is the place of a network's endpoints on a LAN.
type LAN struct {
	// Port is the link they are on; without a parent, they are on no LAN.
	Port dhcp.LANPort
	// Refusal is why they are on no LAN, where that needs an explanation.
	Refusal error
}

// A PortSharing says which ports that programs in a sandbox listen on become the host's.
type PortSharing struct{ Include, Exclude []PortRange }

// Ports returns the ports of the host for the sockets of an endpoint's sandbox: those bound to all addresses or to the
// endpoint's own. Sockets on loopback, on another network's address or on one interface stay private. Adjacent ports
// are not joined to a range, so that the others stay published when one closes.
func (s PortSharing) Ports(e Endpoint, ls []sandbox.Listener) (shared []Port) {
	has := map[Port]bool{}
	for _, l := range ls {
		if !s.shares(l) {
			continue
		}
		for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			own := e.Address(all.Is4())
			if !own.IsValid() || !l.Both && l.Addr != all && l.Addr != own {
				continue
			}
			p := Port{Proto: l.Proto, HostIP: all, HostPort: l.Port, ContainerPort: l.Port, Count: 1}
			if !has[p] {
				has[p] = true
				shared = append(shared, p)
			}
		}
	}
	return shared
}

// shares says whether a socket's port is shared. A port that the kernel chose belongs to a client, unless it is
// included.
func (s PortSharing) shares(l sandbox.Listener) bool {
	in := func(ranges []PortRange) bool {
		return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.Has(l.Proto, l.Port) })
	}
	switch {
	case l.Bound, in(s.Exclude):
		return false
	case len(s.Include) > 0:
		return in(s.Include)
	}
	return !l.Ephemeral
}

// HardwareAddr returns the hardware address of an endpoint's link: the recorded one, or the one derived from its
// address.
func (e Endpoint) HardwareAddr() net.HardwareAddr {
	if mac, err := net.ParseMAC(e.MAC); err == nil {
		return mac
	}
	return e.StableMAC()
}
