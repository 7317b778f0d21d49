package modes

import (
	"context"
	"errors"
	"net/netip"

	"netyard/kernel/core"
)

// An Overlay is a network of a cluster: it is on several hosts.
type Overlay struct {
	ID       string // in the cluster; a network's own differs on each host
	Name     string
	VNI      uint32 // VXLAN's number of it
	MTU      int    // inside, bytes
	Internal bool
	// Encrypted: what is between its hosts is inside WireGuard, or is not at all.
	Encrypted bool
	Subnets   []Subnet
}

// An OverlayLink is what a host has of an overlay.
type OverlayLink struct {
	Bridge, VXLAN string // their links
	Alias         string // what both carry
	MAC           string // the bridge's
}

// An OverlayHost is a host as the others of its cluster see it.
type OverlayHost struct {
	ID   string     // in the cluster; it stays when the address changes
	VTEP netip.Addr // where it takes VXLAN
	Port uint16     // UDP
	MTU  int        // of its link to the others, bytes
	// Tunnel is where it takes VXLAN of networks that are encrypted: its address inside WireGuard.
	Tunnel netip.Addr
	// Clear is why it can encrypt nothing; nil: it can.
	Clear error
}

// What WireGuard adds to a packet: its header and its tag, UDP, and IPv4 or IPv6 (struct message_data,
// drivers/net/wireguard/messages.h).
const tunnel4, tunnel6 = 60, 80

// TunnelMTU is the largest packet inside WireGuard, bytes.
func (h OverlayHost) TunnelMTU() int {
	if h.VTEP.Is6() {
		return h.MTU - tunnel6
	}
	return h.MTU - tunnel4
}

// Containers of an overlay ask for names at port 53 of its gateway's address (RFC 1035, section 4.2), and are answered
// at NamesPort, which is none of those that a kernel gives to clients: port 53 of all the host's addresses may be
// somebody else's.
const (
	DNSPort   = 53
	NamesPort = 30053
)

// ErrNoCluster says that there is nothing an overlay could be in.
var ErrNoCluster = errors.New("this host is in no cluster: etcd.endpoints is not set in its configuration")

// ErrNoOverlay says that there is no network of that name in the cluster.
var ErrNoOverlay = errors.New("is not in the cluster")

// A Fabric is the cluster that this host is in, as far as others have to know of it. Only Find and Grant wait for
// anybody.
type Fabric interface {
	// Find is the network of a name; one with subnets is made if it is not there, and one that is there and is
	// different is refused. Without subnets it only looks.
	Find(ctx context.Context, want Overlay) (Overlay, error)
	Host() OverlayHost
	// Up says that a network's links are on this host, Down that they are about to go; both are recorded, and the
	// others hear of it.
	Up(o Overlay, l OverlayLink) error
	Down(o Overlay) error
	// Attach says that the addresses of an endpoint are here, Detach that they are not any more.
	Attach(o Overlay, e Endpoint) error
	Detach(o Overlay, e Endpoint) error
	// Name says how an endpoint that was attached is called, as far as that is known by now. One that was detached it
	// leaves alone.
	Name(o Overlay, e Endpoint) error
	// Grant gives an owner an address of a network, the one that is named or any of a family; asked again, it is the
	// same. Release gives an address back.
	Grant(ctx context.Context, o Overlay, owner string, addr netip.Addr, v6 bool) (netip.Addr, error)
	Release(o Overlay, addr netip.Addr) error
	// Room says why no address of a family could be granted now; nil when one could.
	Room(o Overlay, v6 bool) error
	// Objects are what the network's other hosts make wanted in this one's kernel at the moment. The Fabric keeps them
	// so itself.
	Objects(o Overlay) []core.Object
	// Parting are the elements that stay for networks that this host has left, until the other hosts can know it.
	Parting() ([]core.Object, error)
}
