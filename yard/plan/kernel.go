package plan

import (
	"context"
	"net/netip"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/policy"
	"netyard/kernel/ports"
	"netyard/kernel/sandbox"
	"netyard/modes"
)

// A Kernel is what the life of networks and endpoints needs of the host's kernel. Host is the real one; package
// yard/yardtest has one that records objects and prints them. What looks at packets and LANs (DHCP, trace) takes a
// core.Handle instead.
type Kernel interface {
	Objects
	Firewall
	Sandboxes
	modes.Facts

	// UsedPrefixes returns the subnets that the host's links, except one, and routes have.
	UsedPrefixes(except string) ([]netip.Prefix, error)
	// AddrsIn returns the host's own addresses in some subnets, and the link of each.
	AddrsIn(subnets ...netip.Prefix) (map[netip.Addr]string, error)
	// HostAddr returns the host's address in a subnet.
	HostAddr(subnet netip.Prefix) (a netip.Prefix, found bool, err error)
	// SourceFor returns the address that the host uses towards another one.
	SourceFor(dst netip.Addr) (netip.Addr, error)
	SetLinkMTU(link string, mtu int) error
	// BusyReason describes what requests wait for when the kernel does not answer.
	BusyReason() string
}

// Objects are made, removed and compared.
type Objects interface {
	// Ensure makes all objects, in order. It stops at the first one that it cannot make.
	Ensure(ctx context.Context, objects ...core.Object) error
	// Remove removes all objects, the last one first. It continues after an error, and returns all errors.
	Remove(objects ...core.Object) error
	// AddOwners records who wants the shared objects among these.
	AddOwners(objects ...core.Object)
	// Plugged reports whether a sandbox has the link of an endpoint; o is the object that plugs it in.
	Plugged(o core.Object) (bool, error)
	// Has returns the names and the aliases of the host's links.
	Has() (map[string]bool, error)
	// Snapshot reads the state of the kernel, to be compared with what is wanted; LinkSnapshot leaves out the firewall.
	Snapshot() (Snapshot, error)
	LinkSnapshot() (Snapshot, error)
	// FaultsOf describes each of some objects that is missing or different, without the firewall. It returns how much
	// it read, which depends on these objects alone.
	FaultsOf(objects []core.Object) (faults []kernel.Fault, reads int, err error)
	// Changes names the links that changes were about which may have affected an object, until ctx ends.
	Changes(ctx context.Context) (*core.Changes, error)
}

// A Snapshot is the kernel at one moment.
type Snapshot interface {
	// Faults describes each wanted object that is missing or different.
	Faults(wanted []core.Object) []kernel.Fault
	// Strays returns the things of netyard's that belong to none of the known objects.
	Strays(known []core.Object) []core.Stray
}

// A Firewall has the ruleset, and the set elements that policies and published ports consist of.
type Firewall interface {
	// LoadFirewall loads the ruleset and every element wanted so far. AdoptFirewall first adopts all elements that are
	// in the kernel, AdoptPolicy those of policy.
	LoadFirewall() error
	AdoptFirewall() error
	AdoptPolicy() error
	// HasPolicy reports whether the kernel has elements of policy.
	HasPolicy() (bool, error)
	// PolicyObjects returns what makes the kernel enforce the policy of all subjects, Enforce replaces the elements of
	// policy by those among the objects, and EndFlows ends the connections that policy does not allow.
	PolicyObjects(subjects []policy.Subject) []core.Object
	Enforce(ctx context.Context, objects []core.Object, settled ...netip.Addr) error
	EndFlows(subjects []policy.Subject) error
	// Published and Opened return the ports whose elements are wanted.
	Published() []ports.Publication
	Opened() []ports.OpenPort
}

// Sandboxes are the namespaces of containers, the host's sockets, and its processes.
type Sandboxes interface {
	// SandboxID returns the ID of the network namespace that a descriptor refers to, NamespaceAt of the one at a path;
	// IsNamespace reports whether there is one.
	SandboxID(fd int) (core.NamespaceID, error)
	NamespaceAt(path string) (id core.NamespaceID, ok bool)
	IsNamespace(path string) bool
	// PlugIn moves a link into the sandbox behind a descriptor and sets it up. Unplug removes it, PlugFaults describes
	// how it differs.
	PlugIn(ctx context.Context, fd int, p sandbox.Plug) error
	Unplug(fd int, p sandbox.Plug) error
	PlugFaults(fd int, p sandbox.Plug) ([]string, error)
	// FindIn lists netyard's links in the sandbox at a path.
	FindIn(path string) ([]sandbox.Found, error)
	// DefaultRoutes lists the default routes of the sandbox at a path.
	DefaultRoutes(path string, id core.NamespaceID) ([]sandbox.DefaultRoute, error)
	// Listeners lists the host's sockets that receive packets; with protos, only those protocols.
	Listeners(protos ...string) ([]sandbox.Listener, error)
	// EphemeralPorts returns the first and the last port that sockets get that ask for none.
	EphemeralPorts() (first, last uint16, err error)
	// Hostname returns the host name that a process sees.
	Hostname(pid int) (string, error)
}
