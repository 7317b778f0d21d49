// Package modes says what a network mode is: the contract, the desired state it acts on, and the table of options.
// Each mode lives in a folder of its own.
package modes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/dhcp"
	"netyard/kernel/sandbox"
)

// A Network is the desired state of one network. It is what the store keeps.
type Network struct {
	ID   string
	Name string `json:",omitempty"` // as the engine calls it; known only after the engine was asked
	// Engine is who asked for the network, and so who is asked whether it still wants it.
	Engine string `json:",omitempty"`
	Mode   string
	// Subnets are in the order the engine gave them.
	Subnets []Subnet          `json:",omitempty"`
	Options map[string]string `json:",omitempty"` // canonical names, see Resolve
	// Changed is what was changed in place since, see Change. It goes before Options, which stay what the engine asked
	// for.
	Changed map[string]string `json:",omitempty"`
	// Settled is what the mode decided when the network was created, see Settler.
	Settled map[string]string `json:",omitempty"`
	// DHCP are the pools whose addresses the DHCP servers of its LAN give.
	DHCP     []string `json:",omitempty"`
	Internal bool     `json:",omitempty"` // no way out
	IPv6     bool     `json:",omitempty"`
	Phase    Phase
	Created  time.Time
	Turned   time.Time `json:",omitzero"` // when Phase became what it is, while that is not Ready
}

// A Subnet is one address range of a network. Gateway is the host's own address in it; invalid when there is none.
type Subnet struct {
	Pool    netip.Prefix
	Gateway netip.Prefix            `json:",omitzero"`
	Aux     map[string]netip.Prefix `json:",omitempty"`
	Space   string                  `json:",omitempty"` // the IPAM's address space
	// Chosen: nobody named it, the IPAM took the next that was free.
	Chosen bool `json:",omitempty"`
}

// An Endpoint is the desired state of one sandbox's place in a network.
type Endpoint struct {
	ID        string
	NetworkID string
	// Sandbox is the path of the sandbox's network namespace; empty until the endpoint is joined.
	Sandbox string         `json:",omitempty"`
	Addrs   []netip.Prefix `json:",omitempty"`
	MAC     string         `json:",omitempty"`
	IfName  string         `json:",omitempty"` // the name asked for inside the sandbox
	// Options are what was said for this endpoint alone; canonical names, see ResolveEndpoint.
	Options map[string]string `json:",omitempty"`
	// Ports are published while the endpoint has them: an engine gives and takes them as the default route moves.
	Ports []Port `json:",omitempty"`
	// Lent: the ports were given without an engine's word that the default route is here. They go to the endpoint of
	// which it says so.
	Lent    bool `json:",omitempty"`
	Phase   Phase
	Created time.Time
	Joined  time.Time `json:",omitzero"`
	Turned  time.Time `json:",omitzero"` // when Phase became what it is, while that is not Ready
	// Seen says that the namespace has been seen behind Sandbox: only then does its absence say anything.
	Seen bool `json:",omitempty"`
	// Fenced is why nothing may go through its link: an address of it is another host's by now. Empty: it is not.
	Fenced string `json:",omitempty"`
	// Kept is what the mode noted of the host before the endpoint took it away, see Taker.
	Kept map[string]string `json:",omitempty"`
	// BootID is the boot the sandbox belongs to: another one means that the sandbox is dead.
	BootID string `json:",omitempty"`
	// Maker is the process of the engine that made the endpoint, where that can be seen: when it has ended, no word
	// about the endpoint need ever come.
	Maker sandbox.Process `json:",omitzero"`
	// Container is who the endpoint belongs to, found out in the background.
	Container Container `json:",omitzero"`
	// Attachment is what a CNI runtime calls the container (CNI_CONTAINERID): together with the network and IfName it
	// names the endpoint. Empty: the endpoint did not come by CNI.
	Attachment string `json:",omitempty"`
	// Config is the name of the CNI configuration it came by; empty when that is not known.
	Config string `json:",omitempty"`
	// Aliases are other names the container asked for on the network.
	Aliases []string `json:",omitempty"`
	// NS is the namespace that was behind Sandbox when the endpoint was plugged in, by CNI.
	NS core.NamespaceID `json:",omitzero"`
	// Into is, while the endpoint is being plugged in, an open descriptor of its namespace: a mode that can makes the
	// link there, under the name IfName, since to move and rename one costs the kernel tens of milliseconds. 0: there
	// is none.
	Into int `json:"-"`
	// Inside is what was plugged into the sandbox, by CNI.
	Inside sandbox.Plug `json:",omitzero"`
}

// A Port is one published port, or a range of them: what the host gets on HostIP at HostPort and the Count-1 ports
// behind it goes to ContainerPort and those behind that.
type Port struct {
	Proto string // tcp, udp, sctp
	// HostIP is the host's address; the unspecified one of a family stands for all of that family.
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
	Count         uint16
	// Routed: the port is the container's own, by its own address, and nothing of the host's; HostIP and HostPort say
	// so. Where HostPort is another than ContainerPort, the container's address answers at both.
	Routed bool `json:",omitempty"`
}

// String reads like docker ps: 0.0.0.0:8080->80/tcp. One that is not of the host's: 10.9.0.2:80/tcp.
func (p Port) String() string {
	span := func(first uint16) string {
		if p.Count <= 1 {
			return strconv.Itoa(int(first))
		}
		return fmt.Sprintf("%d-%d", first, first+p.Count-1)
	}
	if p.Routed && p.HostPort == p.ContainerPort {
		return net.JoinHostPort(p.HostIP.String(), span(p.HostPort)) + "/" + p.Proto
	}
	return net.JoinHostPort(p.HostIP.String(), span(p.HostPort)) + "->" + span(p.ContainerPort) + "/" + p.Proto
}

// A Container is the owner of an endpoint as its engine knows it.
type Container struct {
	Engine string `json:",omitempty"`
	ID     string `json:",omitempty"`
	Name   string `json:",omitempty"`
	Image  string `json:",omitempty"`
	PID    int    `json:",omitempty"`
	// Hostname is what its processes believe the host to be called.
	Hostname string `json:",omitempty"`
	// Labels are those of the container; nil: they are not known yet.
	Labels map[string]string `json:",omitzero"`
}

// Equal says whether two are the same in all there is known of them.
func (c Container) Equal(d Container) bool {
	return c.Engine == d.Engine && c.ID == d.ID && c.Name == d.Name && c.Image == d.Image && c.PID == d.PID && c.Hostname == d.Hostname &&
		(c.Labels == nil) == (d.Labels == nil) && maps.Equal(c.Labels, d.Labels)
}

// A Phase says how far a change got; Restore settles those that are not Ready.
type Phase uint8

// The phases, in the order a record goes through them.
const (
	Pending  Phase = iota // recorded; the kernel may or may not match
	Ready                 // the caller may have been told that it exists
	Deleting              // the caller will be told that it is gone
)

// String is how a phase reads in tables and logs.
func (p Phase) String() string {
	switch p {
	case Pending:
		return "pending"
	case Ready:
		return "ready"
	case Deleting:
		return "deleting"
	}
	return "unknown"
}

// A Link says what must be done inside the sandbox. The zero Link: nothing.
type Link struct {
	SrcName   string // the interface to move in; empty when there is none
	DstPrefix string // its name inside is this and a number
	DstName   string // its whole name inside, for engines that can
	MTU       int
	Gateways  []netip.Addr
	Routes    []Route
}

// Mode makes the host match desired state. Check and Objects are pure. The rest are idempotent:
// twice is once, and undoing what is not there is not an error.
type Mode interface {
	// Check refuses a network this mode cannot be; the error names the option or field.
	Check(n Network) error
	Up(ctx context.Context, n Network) error
	Down(ctx context.Context, n Network) error
	Attach(ctx context.Context, n Network, e Endpoint) (Link, error)
	Detach(ctx context.Context, n Network, e Endpoint) error
	// Objects lists what Up and the Attaches of es leave in the kernel: doctor and gc compare it with what is there.
	Objects(n Network, es []Endpoint) []core.Object
}

// A Settler is a Mode that decides something once, by what the host is like when a network is created; the decision
// goes into Settled and stays, whatever the host is like later.
type Settler interface {
	Settle(ctx context.Context, n Network) (map[string]string, error)
}

// A MACer is a Mode whose links have a hardware address of their own.
type MACer interface {
	// MAC is the address of an endpoint for which none was asked.
	MAC(n Network, e Endpoint) string
}

// A Policed is a Mode with networks whose endpoints' packets come by the host's firewall, so that policies hold for
// them.
type Policed interface{ Policed(n Network) bool }

// An Addressless is a Mode whose endpoints have no addresses, and so neither gateways nor ports.
type Addressless interface{ Addressless() }

// A Publisher is a Mode that can give ports of the host to its endpoints.
type Publisher interface {
	// Publishes says why a network cannot have ports published; nil when it can.
	Publishes(n Network) error
	// Binds are the host's addresses that ports are published on for which none was asked; none: all of them.
	Binds(n Network) []netip.Addr
}

// A PortSharer is a Mode whose endpoints share the host's addresses: what a program in the sandbox listens on, the host
// listens on.
type PortSharer interface {
	// Shares says whether the endpoints of a network do.
	Shares(n Network) bool
	// Shared are the ports, one each, that the sockets of a sandbox ask of the host.
	Shared(n Network, e Endpoint, ls []sandbox.Listener) []Port
}

// A Taker is a Mode whose endpoints take something of the host's with them.
type Taker interface {
	// Keep says what it is like, for Detach to make it so again: it goes into the endpoint's record, as Kept, before
	// Attach. others are the endpoints of the network that are in a sandbox already. Nil: nothing is taken.
	Keep(ctx context.Context, n Network, e Endpoint, others []Endpoint) (map[string]string, error)
}

// A Router is a Publisher with networks whose containers are reached by their own addresses.
type Router interface {
	// Routes says whether a family of a network is routed: there the ports that containers publish are their own.
	Routes(n Network, v6 bool) bool
}

// A Redirector is a Publisher with networks that no port of the host leads to: there ports are published on the
// containers' own addresses.
type Redirector interface {
	// Redirects says whether a network is one of those.
	Redirects(n Network) bool
	// Both says whether such a network gives the host's ports as well.
	Both(n Network) bool
}

// A Gatewayless is a Mode with networks that need no address of the host for a family.
type Gatewayless interface {
	Gatewayless(n Network) (v4, v6 bool)
}

// A Keeper is a Mode with networks that some addresses mean something to: nobody gets one of those who did not ask for
// it.
type Keeper interface {
	// Keeps are the addresses, and the option that says them.
	Keeps(n Network) (option string, addrs []netip.Addr)
}

// A Sharer is a Mode whose networks use what other networks may be using too.
type Sharer interface {
	// Share refuses a network that cannot be beside the others, of whatever mode they are. It is pure.
	Share(n Network, others []Network) error
}

// A LANer is a Mode whose endpoints can be on a LAN of the host's, where somebody else has a say in addresses.
type LANer interface {
	// LAN is where the links of a network's endpoints are; an error says why they are on none.
	LAN(n Network) (dhcp.LANPort, error)
}

// Env is what a mode is given.
type Env struct {
	Log    *slog.Logger
	Kernel *kernel.Kernel
	// Fabric is the cluster that this host is in; nil: it is in none.
	Fabric Fabric
}

// New makes a Mode.
type New func(Env) (Mode, error)

// Equal says whether two requests for a network ask for the same thing, whatever became of them since.
func (n Network) Equal(m Network) bool {
	return n.ID == m.ID && n.Mode == m.Mode && n.Internal == m.Internal && n.IPv6 == m.IPv6 &&
		maps.Equal(n.Options, m.Options) &&
		slices.EqualFunc(n.Subnets, m.Subnets, func(a, b Subnet) bool {
			return a.Pool == b.Pool && a.Gateway == b.Gateway && maps.Equal(a.Aux, b.Aux)
		})
}

// Short is the beginning of an id, as people see it and as names of kernel objects carry it.
func Short(id string) string {
	const n = 12
	if len(id) > n {
		return id[:n]
	}
	return id
}
