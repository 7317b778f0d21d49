package fabric

import (
	"context"
	"net"
	"net/netip"
	"time"

	"netyard/fabric/dataplane"
	"netyard/fabric/tunnel"
	"netyard/kernel"
	"netyard/kernel/overlay"
)

// Kernel is what an Agent does to the kernel.
type Kernel interface {
	dataplane.Kernel
	tunnel.Kernel
	// Carrier returns the link that has an address.
	Carrier(addr netip.Addr) (overlay.Underlay, error)
	// Echoes sends packets, and returns which were answered.
	Echoes(ctx context.Context, all []overlay.Probe) ([]bool, error)
}

// onHost is the kernel of this host.
type onHost struct{ *kernel.Kernel }

// ChangePeers changes the peers of a VXLAN device.
func (k onHost) ChangePeers(
	ctx context.Context, link string, set []overlay.Peer, gone []netip.Addr, unused []net.HardwareAddr,
) error {
	return overlay.ChangePeers(ctx, k.Handle, link, set, gone, unused)
}

// Encrypts returns why the kernel has no WireGuard.
func (k onHost) Encrypts() error { return overlay.CheckWireGuard(k.Handle) }

// AskAgain starts handshakes with peers.
func (k onHost) AskAgain(peers []overlay.WireGuardPeer, since time.Time) error {
	return overlay.RetryHandshakes(k.Handle, peers, since)
}

// Carrier returns the link that has an address.
func (k onHost) Carrier(addr netip.Addr) (overlay.Underlay, error) {
	return overlay.UnderlayOf(k.Handle, addr)
}

// Echoes sends packets.
func (k onHost) Echoes(ctx context.Context, all []overlay.Probe) ([]bool, error) {
	return overlay.SendProbes(ctx, k.Handle, all)
}
