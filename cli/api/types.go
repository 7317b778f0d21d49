// Package api is the daemon's admin API: HTTP and JSON on a unix socket that only root may use. It has the server, and
// the client that the CLI uses.
package api

import (
	"cmp"
	"encoding/hex"
	"net/netip"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/yard/book"
	"netyard/yard/lease"
)

// Version identifies the daemon.
type Version struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
	// Goroutines shows leaks: in an idle daemon, it is constant.
	Goroutines int `json:"goroutines"`
}

// A Network is a network as the admin socket shows it.
type Network struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Engine owns the network: docker, or netyard for those that the admin or a CNI configuration created.
	Engine    string            `json:"engine,omitempty"`
	Mode      string            `json:"mode"`
	State     string            `json:"state"`
	Internal  bool              `json:"internal"`
	Subnets   []Subnet          `json:"subnets"`
	Options   map[string]string `json:"options,omitempty"`
	Settled   map[string]string `json:"settled,omitempty"`
	Endpoints int               `json:"endpoints"`
	Created   time.Time         `json:"created"`
	// Segments says how large segments TCP may send on the network's links, and what keeps them from being larger.
	Segments string `json:"segments,omitempty"`
	// Reach has the endpoints of an overlay on all hosts.
	Reach []Reached `json:"reach,omitempty"`
	// Objects describes the network's kernel objects.
	Objects []string `json:"objects,omitempty"`
}

// A NetworkRequest says which network to create. Gateways, ranges and auxiliary addresses belong to the subnets that
// contain them.
type NetworkRequest struct {
	Name     string            `json:"name"`
	Mode     string            `json:"mode,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	Subnets  []string          `json:"subnets,omitempty"`
	Gateways []string          `json:"gateways,omitempty"`
	Ranges   []string          `json:"ip_ranges,omitempty"`
	Aux      map[string]string `json:"aux_addresses,omitempty"`
	IPv6     bool              `json:"ipv6,omitempty"`
	Internal bool              `json:"internal,omitempty"`
}

// A Subnet is an address range of a network.
type Subnet struct {
	Pool    string            `json:"pool"`
	Gateway string            `json:"gateway,omitempty"`
	Aux     map[string]string `json:"aux,omitempty"`
	IPAM    string            `json:"ipam"`
}

// An Endpoint is a row of netyard ps.
type Endpoint struct {
	ID          string `json:"id"`
	Container   string `json:"container"`
	ContainerID string `json:"container_id"`
	// Namespace is that of a pod.
	Namespace string   `json:"namespace,omitempty"`
	Image     string   `json:"image,omitempty"`
	PID       int      `json:"pid,omitempty"`
	Engine    string   `json:"engine"`
	Network   string   `json:"network"`
	NetworkID string   `json:"network_id"`
	Mode      string   `json:"mode"`
	Addresses []string `json:"addresses"`
	MAC       string   `json:"mac"`
	Interface string   `json:"interface"`
	// Options are those set for this endpoint alone.
	Options map[string]string `json:"options,omitempty"`
	Ports   []string          `json:"ports"`
	State   string            `json:"state"`
	Sandbox string            `json:"sandbox,omitempty"`
	Aliases []string          `json:"aliases,omitempty"`
	// Attachment identifies the container to its CNI runtime.
	Attachment string    `json:"attachment,omitempty"`
	Created    time.Time `json:"created"`
	Joined     time.Time `json:"joined,omitzero"`
}

// A Port is a published port, or a range of them: a row of netyard ports.
type Port struct {
	Proto       string `json:"proto"`
	HostIP      string `json:"host_ip"`
	HostPort    int    `json:"host_port"`
	HostPortEnd int    `json:"host_port_end"`
	// Routed: the port is published at the container's own address. HostIP and HostPort are the container's; no port of
	// the host is used.
	Routed bool `json:"routed"`
	// Address and Port are the container's; PortEnd is the last port of a range.
	Address     string `json:"address"`
	Port        int    `json:"port"`
	PortEnd     int    `json:"port_end"`
	Container   string `json:"container"`
	ContainerID string `json:"container_id"`
	EndpointID  string `json:"endpoint_id"`
	Engine      string `json:"engine"`
	Network     string `json:"network"`
	NetworkID   string `json:"network_id"`
	// State is "published"; "conflict" if the port belongs to another owner; "shadowing" if the container has the port
	// and a program of the host listens on it too and receives nothing. Owner is that other owner or program. "address
	// missing" if the host has lost the address; the port is published again as soon as the host has it.
	State string `json:"state"`
	Owner string `json:"owner,omitempty"`
}

// The states of a port.
const (
	PortPublished   = "published"
	PortConflict    = "conflict"
	PortShadowing   = "shadowing"
	PortAddressLost = "address missing"
)

// A Lease is an address that is not free: of netyard's IPAM, or from a DHCP server.
type Lease struct {
	Pool    string    `json:"pool"`
	Address string    `json:"address"`
	Network string    `json:"network"`
	Kind    string    `json:"kind"`
	State   string    `json:"state"`
	Name    string    `json:"name,omitempty"`
	MAC     string    `json:"mac,omitempty"`
	Since   time.Time `json:"since"`
	// The fields below are of leases from a DHCP server only. DNS and NTP are what the server offers; netyard only
	// shows them.
	Server   string    `json:"server,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
	Router   string    `json:"router,omitempty"`
	DNS      []string  `json:"dns,omitempty"`
	NTP      []string  `json:"ntp,omitempty"`
	Domain   string    `json:"domain,omitempty"`
	MTU      int       `json:"mtu,omitempty"`
	Hostname string    `json:"hostname,omitempty"`
	ClientID string    `json:"client_id,omitempty"`
}

// A Request names an address to reserve or release. Pool may be empty if only one pool contains the address.
type Request struct {
	Pool    string `json:"pool"`
	Address string `json:"address"`
	Name    string `json:"name,omitempty"`
}

// A Change has the options of a network or an endpoint to change, and their values. An empty value restores the
// default.
type Change struct {
	Options map[string]string `json:"options"`
}

// failure is the answer to a request that failed.
type failure struct {
	Error string `json:"error"`
}

func networkView(n modes.Network, endpoints int) Network {
	v := Network{
		ID: n.ID, Name: n.Name, Engine: n.Engine, Mode: n.Mode, State: n.Phase.String(), Internal: n.Internal,
		Options: n.Now(), Settled: n.Settled, Endpoints: endpoints, Created: n.Created, Subnets: []Subnet{},
	}
	for _, s := range n.Subnets {
		sub := Subnet{Pool: s.Pool.String(), IPAM: s.Space}
		if s.Gateway.IsValid() {
			sub.Gateway = s.Gateway.Addr().String()
		}
		for name, a := range s.Aux {
			if sub.Aux == nil {
				sub.Aux = map[string]string{}
			}
			sub.Aux[name] = a.Addr().String()
		}
		v.Subnets = append(v.Subnets, sub)
	}
	return v
}

func endpointView(e modes.Endpoint, n modes.Network, state, hostLink string) Endpoint {
	v := Endpoint{
		ID: e.ID, Container: e.Container.Name, ContainerID: e.Container.ID,
		Namespace: e.Container.Namespace, Image: e.Container.Image, PID: e.Container.PID, Engine: e.Container.Engine,
		Network: n.Name, NetworkID: e.NetworkID, Mode: n.Mode, MAC: e.MAC, Interface: hostLink,
		State: state, Options: e.Options, Sandbox: e.Sandbox, Aliases: e.Aliases, Attachment: e.Attachment,
		Created: e.Created, Joined: e.Joined, Addresses: []string{}, Ports: []string{},
	}
	for _, a := range e.Addrs {
		v.Addresses = append(v.Addresses, a.String())
	}
	for _, p := range e.Ports {
		v.Ports = append(v.Ports, p.String())
	}
	return v
}

func portViews(
	e modes.Endpoint, n modes.Network, conflicts []book.Conflict, lost map[netip.Addr]bool,
) (views []Port) {
	show := func(p modes.Port, state, owner string) {
		v := Port{
			State: state, Owner: owner, Proto: p.Proto, Routed: p.Routed,
			HostIP: p.HostIP.String(), HostPort: int(p.HostPort), HostPortEnd: int(p.HostPort) + int(p.Count) - 1,
			Port: int(p.ContainerPort), PortEnd: int(p.ContainerPort) + int(p.Count) - 1,
			Container: e.Container.Name, ContainerID: e.Container.ID, EndpointID: e.ID, Engine: e.Container.Engine,
			Network: n.Name, NetworkID: n.ID,
		}
		for _, a := range e.Addrs {
			if a.Addr().Is4() == p.HostIP.Is4() {
				v.Address = a.Addr().String()
				break
			}
		}
		views = append(views, v)
	}
	shadows := map[modes.Port]string{}
	for _, c := range conflicts {
		if c.Shadow {
			shadows[c.Port] = c.Owner
		} else {
			show(c.Port, PortConflict, c.Owner)
		}
	}
	for _, p := range e.Ports {
		owner, shadowing := shadows[p]
		switch {
		case shadowing:
			show(p, PortShadowing, owner)
		case lost[p.HostIP]:
			show(p, PortAddressLost, "")
		default:
			show(p, PortPublished, "")
		}
	}
	return views
}

func leaseView(l ipam.Lease, network string) Lease {
	return Lease{
		Pool: l.Pool, Address: l.Addr.String(), Network: network, Kind: string(l.Kind), State: string(l.State),
		Name: l.Name, MAC: l.MAC, Since: l.Since,
	}
}

// dhcpv6View returns the DHCPv6 lease that an endpoint has besides its DHCPv4 lease.
func dhcpv6View(l lease.DHCPLease, network string) Lease {
	l.Lease = l.Six.Lease
	v := dhcpView(l, network)
	v.Kind = "dhcpv6"
	return v
}

func dhcpView(l lease.DHCPLease, network string) Lease {
	v := Lease{
		Pool: l.Pool, Address: l.Lease.Addr.Addr().String(), Network: network, Kind: "dhcp", State: l.State(time.Now()),
		Name: cmp.Or(l.Hostname, l.Name), MAC: l.MAC, Since: l.Since, Server: l.Lease.Server.String(),
		Expires: l.Lease.Expires, Domain: l.Lease.Domain, MTU: l.Lease.MTU, Hostname: l.Hostname,
		ClientID: hex.EncodeToString(l.ClientID),
	}
	if l.Lease.Router.IsValid() {
		v.Router = l.Lease.Router.String()
	}
	for _, a := range l.Lease.DNS {
		v.DNS = append(v.DNS, a.String())
	}
	for _, a := range l.Lease.NTP {
		v.NTP = append(v.NTP, a.String())
	}
	return v
}
