package plan

import (
	"context"
	"net/netip"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/gso"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/sandbox"
)

// Host is the real kernel of a host.
type Host struct{ *kernel.Kernel }

var _ Kernel = Host{}

// Snapshot reads the state of the kernel, to be compared with what is wanted.
func (h Host) Snapshot() (Snapshot, error) { return h.Kernel.Snapshot() }

// LinkSnapshot is Snapshot without the firewall.
func (h Host) LinkSnapshot() (Snapshot, error) { return h.Kernel.LinkSnapshot() }

// PolicyObjects returns what makes the kernel enforce the policy of all subjects.
func (h Host) PolicyObjects(subjects []policy.Subject) []core.Object {
	return policy.Objects(h.Handle, subjects)
}

// EndFlows ends the connections that policy does not allow.
func (h Host) EndFlows(subjects []policy.Subject) error { return policy.EndFlows(h.Handle, subjects) }

// Published returns the published ports whose elements are wanted.
func (h Host) Published() []ports.Publication { return ports.Published(h.Handle) }

// Opened returns the opened ports whose elements are wanted.
func (h Host) Opened() []ports.OpenPort { return ports.Opened(h.Handle) }

// NamespaceAt returns the ID of the namespace at a path.
func (Host) NamespaceAt(path string) (core.NamespaceID, bool) { return core.NamespaceAt(path) }

// IsNamespace reports whether a namespace is at a path.
func (Host) IsNamespace(path string) bool { return core.IsNamespace(path) }

// PlugIn moves a link into a sandbox and sets it up.
func (h Host) PlugIn(ctx context.Context, fd int, p sandbox.Plug) error {
	return sandbox.PlugIn(ctx, h.Handle, fd, p)
}

// Unplug removes a link from a sandbox.
func (Host) Unplug(fd int, p sandbox.Plug) error { return sandbox.Unplug(fd, p) }

// PlugFaults describes how a link in a sandbox differs from its configuration.
func (Host) PlugFaults(fd int, p sandbox.Plug) ([]string, error) { return p.Faults(fd) }

// DefaultRoutes lists the default routes of the sandbox at a path.
func (Host) DefaultRoutes(path string, id core.NamespaceID) ([]sandbox.DefaultRoute, error) {
	return sandbox.DefaultRoutes(path, id)
}

// FindIn lists netyard's links in the sandbox at a path.
func (h Host) FindIn(path string) ([]sandbox.Found, error) { return sandbox.FindIn(h.Handle, path) }

// Listeners lists the host's sockets that receive packets.
func (h Host) Listeners(protos ...string) ([]sandbox.Listener, error) {
	return sandbox.Listeners(h.Handle, protos...)
}

// EphemeralPorts returns the range of ports that sockets get that ask for none.
func (h Host) EphemeralPorts() (first, last uint16, err error) {
	return sandbox.EphemeralPorts(h.Handle)
}

// SourceFor returns the address that the host uses towards another one.
func (h Host) SourceFor(dst netip.Addr) (netip.Addr, error) { return lan.SourceFor(h.Handle, dst) }

// BusyReason describes what requests wait for when the kernel does not answer.
func (h Host) BusyReason() string { return nft.BusyReason(h.Handle) }

// HasAddr reports whether an address is one of the host's own.
func (h Host) HasAddr(a netip.Addr) (bool, error) { return sandbox.HasAddr(h.Handle, a) }

// LinkAddrs returns the addresses of a link.
func (h Host) LinkAddrs(link string) ([]netip.Prefix, error) {
	return lan.Addrs(h.Handle, lan.Parent{Name: link})
}

// ReversePath returns how strictly the host filters packets by their source address.
func (h Host) ReversePath(link string) (string, error) { return lan.ReversePath(h.Handle, link) }

// Device returns the state of a network card.
func (h Host) Device(name string) (device.State, error) { return device.StateOf(h.Handle, name) }

// SegmentLimit returns how large the segments of a network may be.
func (h Host) SegmentLimit(want gso.Want) (gso.Limit, error) { return gso.Now(h.Handle, want) }
