// Package modes says what a network mode is: the contract, the desired state it acts on, and the table of options.
// Each mode lives in a folder of its own.
package modes

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"netyard/kernel/core"
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
	Options map[string]string `json:",omitempty"` // canonical names, see Table.Resolve
	// Changed is what was changed in place since, see Table.Change. It goes before Options, which stay what the engine asked
	// for.
	Changed map[string]string `json:",omitempty"`
	// Settled is what the mode decided when the network was created, see Mode.
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
	// Options are what was said for this endpoint alone; canonical names, see Table.ResolveEndpoint.
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
	// Kept is what was noted of a device of the host before the endpoint took it away, see Traits.Device.
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
	MTU       int    // 0: it has the right one
	Gateways  []netip.Addr
	Routes    []Route
	// ToHost asks for a route on the link to each of the host's addresses that the host uses towards the endpoint and
	// that is not in its subnets. They are known once the objects are there; package plan adds them to Routes.
	ToHost bool
}

// Link is the link of an endpoint, under the name that was asked for it.
func (n Network) Link(e Endpoint, src string, mtu int) Link {
	l := Link{SrcName: src, DstPrefix: IfacePrefix.Of(n), MTU: mtu}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l
}

// A Mode is one kind of network. It is pure: it says what is wanted, and package plan makes it so, compares it and
// removes it. Only Settle may look at the host, by the facts it is given, and at the cluster.
type Mode interface {
	// Options are the mode's own rows of the table of options.
	Options() []Option
	// Settle refuses a network that this mode cannot be, on this host or beside others; the error names the option or
	// field. It returns what is decided once, by what the host is like when the network is created: that is recorded as
	// Settled and stays. Of a network that is Ready, options are being changed: it is only checked, and what was
	// decided is returned as it is.
	Settle(ctx context.Context, f Facts, n Network, others []Network) (map[string]string, error)
	// Traits says what the rest of netyard has to know of a network of this mode.
	Traits(n Network) Traits
	// Objects are what a network wants in the kernel, in the order they are made. Elements of sets at the beginning are
	// there before the first link is, and until the last one is gone.
	Objects(n Network) []core.Object
	// Place is what an endpoint wants in the kernel, and what is to be done in its sandbox.
	Place(n Network, e Endpoint) ([]core.Object, Link)
}

// Env is what a mode is given.
type Env struct {
	// Fabric is the cluster that this host is in; nil: it is in none.
	Fabric Fabric
}

// New makes a Mode.
type New func(Env) Mode

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
