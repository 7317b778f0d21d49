package modes

import (
	"context"
	"errors"
	"net/netip"

	"netyard/kernel/core"
)

// An Overlay is a network of a cluster, on several hosts.
type Overlay struct {
	ID       string // in the cluster; each host's network has an ID of its own
	Name     string
	VNI      uint32 // VXLAN network identifier
	MTU      int    // inside, bytes
	Internal bool
	// Encrypted: traffic between its hosts is inside WireGuard, and never in clear.
	Encrypted bool
	Subnets   []Subnet
}

// An OverlayLink names the links of an overlay on one host.
type OverlayLink struct {
	Bridge, VXLAN string // the names of the links
	Alias         string // what both carry
	MAC           string // the bridge's
}

// An OverlayHost is a host as the other hosts of its cluster see it.
type OverlayHost struct {
	ID   string     // in the cluster; stays when the address changes
	VTEP netip.Addr // where it receives VXLAN
	Port uint16     // UDP
	MTU  int        // of its link to the others, bytes
	// Tunnel is where it receives VXLAN of encrypted networks: its address inside WireGuard.
	Tunnel netip.Addr
	// Clear is why it cannot encrypt; nil: it can.
	Clear error
}

// What WireGuard adds to a packet: its header and its tag, UDP, and IPv4 or IPv6 (struct message_data,
// drivers/net/wireguard/messages.h).
const tunnel4, tunnel6 = 60, 80

// TunnelMTU returns the largest packet inside WireGuard, bytes.
func (h OverlayHost) TunnelMTU() int {
	if h.VTEP.Is6() {
		return h.MTU - tunnel6
	}
	return h.MTU - tunnel4
}

// Containers of an overlay send DNS queries to port 53 of the gateway's address (RFC 1035, section 4.2). netyard
// answers at NamesPort, outside the kernel's range for clients, since another program may have port 53 of all
// addresses.
const (
	DNSPort   = 53
	NamesPort = 30053
)

// ErrNoCluster says that the host has joined no cluster.
var ErrNoCluster = errors.New("this host is in no cluster: etcd.endpoints is not set in its configuration")

// ErrNoOverlay says that the cluster has no network of that name.
var ErrNoOverlay = errors.New("is not in the cluster")

// A Fabric is the cluster that this host has joined. Only Find and Grant wait for other hosts or etcd.
type Fabric interface {
	// Find returns the network of that name. With subnets, it creates a missing network, and refuses one that differs.
	// Without subnets it only looks.
	Find(ctx context.Context, want Overlay) (Overlay, error)
	Host() OverlayHost
	// Up records that a network's links are on this host, Down that they are about to be removed; both tell the other
	// hosts.
	Up(o Overlay, l OverlayLink) error
	Down(o Overlay) error
	// Attach announces that the addresses of an endpoint are on this host, Detach that they no longer are.
	Attach(o Overlay, e Endpoint) error
	Detach(o Overlay, e Endpoint) error
	// Name announces the names of an attached endpoint, as far as they are known. It ignores a detached one.
	Name(o Overlay, e Endpoint) error
	// Grant claims an address of a network for an owner: the given one, or any of a family. Asked again, it returns the
	// same. Release ends a claim.
	Grant(ctx context.Context, o Overlay, owner string, addr netip.Addr, v6 bool) (netip.Addr, error)
	Release(o Overlay, addr netip.Addr) error
	// CheckRoom returns why no address of a family could be granted now; nil: one could.
	CheckRoom(o Overlay, v6 bool) error
	// HostOf returns the name of the other host that has a container with a hardware address on a network; empty: none
	// has, as far as this host knows.
	HostOf(o Overlay, mac string) string
	// Objects returns what this host's kernel needs for the network's peers now. The Fabric itself keeps it there.
	Objects(o Overlay) []core.Object
	// LeavingObjects returns the elements that stay for networks that this host has left, until the other hosts know of
	// it.
	LeavingObjects() ([]core.Object, error)
}
