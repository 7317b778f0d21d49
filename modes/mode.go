// Package modes is the contract of a network mode: the desired state that a mode plans for, what it returns, and the
// types of its options. Each mode has a folder of its own.
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

// A Network is the desired state of one network, as the store keeps it.
type Network struct {
	ID   string
	Name string `json:",omitempty"` // the engine's name for it; empty until the engine was asked
	// Engine is the engine that created the network, and that is asked whether it still wants it.
	Engine string `json:",omitempty"`
	Mode   string
	// Subnets are in the order the engine gave them.
	Subnets []Subnet          `json:",omitempty"`
	Options map[string]string `json:",omitempty"` // canonical names, see Table.Resolve
	// Changed are the options that were changed in place since, see Table.Change. They override Options, which stay
	// what the engine asked for.
	Changed map[string]string `json:",omitempty"`
	// Settled is what the mode decided when the network was created, see Mode.Settle.
	Settled map[string]string `json:",omitempty"`
	// DHCP are the pools whose addresses come from DHCP servers of the LAN.
	DHCP     []string `json:",omitempty"`
	Internal bool     `json:",omitempty"` // nothing leaves it, and nothing comes in
	IPv6     bool     `json:",omitempty"`
	Phase    Phase
	Created  time.Time
	Turned   time.Time `json:",omitzero"` // when Phase last changed; zero when it is Ready
}

// A Subnet is one address range of a network. Gateway is the host's own address in it; invalid when there is none.
type Subnet struct {
	Pool    netip.Prefix
	Gateway netip.Prefix            `json:",omitzero"`
	Aux     map[string]netip.Prefix `json:",omitempty"`
	Space   string                  `json:",omitempty"` // the IPAM's address space
	// Chosen: no subnet was requested, and the IPAM chose the next free one.
	Chosen bool `json:",omitempty"`
}

// An Endpoint is the desired state of one container's place on a network.
type Endpoint struct {
	ID        string
	NetworkID string
	// Sandbox is the path of the sandbox's network namespace; empty until the endpoint is joined.
	Sandbox string         `json:",omitempty"`
	Addrs   []netip.Prefix `json:",omitempty"`
	MAC     string         `json:",omitempty"`
	IfName  string         `json:",omitempty"` // the name asked for inside the sandbox
	// Options are the endpoint's own, by canonical names, see Table.ResolveEndpoint.
	Options map[string]string `json:",omitempty"`
	// Ports are the ports published now. An engine adds and removes them as the container's default route moves.
	Ports []Port `json:",omitempty"`
	// Lent: the ports were published before the engine said which endpoint has the default route. They move to the one
	// that it names.
	Lent bool `json:",omitempty"`
	// Asked are the ports that an engine asked for when it chose the endpoint as gateway, until it withdraws them.
	Asked []AskedPort `json:",omitempty"`
	// Left is the sandbox that the endpoint has left while the engine had not withdrawn its ports.
	Left string `json:",omitempty"`
	// Opened: the ports are those of a routed network, which are open wherever the container has its default route.
	Opened bool `json:",omitempty"`
	// Beside are the IDs of the other endpoints in the sandbox, if this one has open ports: they may carry the answers.
	Beside  []string `json:",omitempty"`
	Phase   Phase
	Created time.Time
	Joined  time.Time `json:",omitzero"`
	Turned  time.Time `json:",omitzero"` // when Phase last changed; zero when it is Ready
	// Seen: the namespace has been seen at Sandbox. Only then does its absence mean that the sandbox has ended.
	Seen bool `json:",omitempty"`
	// Fenced is why the endpoint's traffic is blocked: one of its addresses belongs to another host. Empty: it is not.
	Fenced string `json:",omitempty"`
	// Kept is the state of a device of the host before it was moved into the sandbox, see Traits.Device.
	Kept map[string]string `json:",omitempty"`
	// BootID is the boot of the host that the sandbox belongs to. After another boot the sandbox is gone.
	BootID string `json:",omitempty"`
	// Maker is the process of the engine that created the endpoint, where it can be seen. When it has ended, the engine
	// may never mention the endpoint again.
	Maker sandbox.Process `json:",omitzero"`
	// Container is the endpoint's owner, found in the background.
	Container Container `json:",omitzero"`
	// Attachment is the CNI runtime's ID of the container (CNI_CONTAINERID). With the network and IfName it identifies
	// the endpoint. Empty: the endpoint did not come by CNI.
	Attachment string `json:",omitempty"`
	// Config is the name of the endpoint's CNI configuration; empty when it is not known.
	Config string `json:",omitempty"`
	// Aliases are other names the container asked for on the network.
	Aliases []string `json:",omitempty"`
	// NS is the namespace that was at Sandbox when the endpoint was attached by CNI.
	NS core.NamespaceID `json:",omitzero"`
	// Into is an open descriptor of the endpoint's namespace while it is being attached; 0: none. A mode that can
	// creates the link there, named IfName: moving and renaming a link costs the kernel tens of milliseconds.
	Into int `json:"-"`
	// Inside is what CNI configured in the sandbox.
	Inside sandbox.Plug `json:",omitzero"`
}

// An AskedPort is a port that an engine asks for, or a run of Count consecutive ones.
type AskedPort struct {
	Proto string // tcp, udp, sctp
	// HostIP is the host's address; invalid: the network's default.
	HostIP netip.Addr `json:",omitzero"`
	// HostPort is 0 for any free port; with HostPortEnd it is the first port of a range, of which one is published.
	HostPort      uint16 `json:",omitempty"`
	HostPortEnd   uint16 `json:",omitempty"`
	ContainerPort uint16
	Count         uint16
}

// A Port is a published port, or a range of Count ports: traffic to HostIP from HostPort on goes to the container from
// ContainerPort on.
type Port struct {
	Proto string // tcp, udp, sctp
	// HostIP is the host's address; the unspecified one of a family stands for all of that family.
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
	Count         uint16
	// Routed: the port is published on the container's own address, which is HostIP, and takes no port of the host. If
	// HostPort and ContainerPort differ, the container answers at both.
	Routed bool `json:",omitempty"`
}

// String writes the port as docker ps does: 0.0.0.0:8080->80/tcp; on the container's own address: 10.9.0.2:80/tcp.
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

// A Container is the owner of an endpoint, as its engine knows it.
type Container struct {
	Engine string `json:",omitempty"`
	ID     string `json:",omitempty"`
	Name   string `json:",omitempty"`
	Image  string `json:",omitempty"`
	PID    int    `json:",omitempty"`
	// Hostname is the host name inside the container.
	Hostname string `json:",omitempty"`
	// Labels are the container's own, which who runs it has set; nil: they are not known yet.
	Labels map[string]string `json:",omitzero"`
	// ImageLabels are those that it has from its image. An image may come from anybody, so they allow nothing.
	ImageLabels map[string]string `json:",omitempty"`
}

// Equal says whether all fields of two containers are the same.
func (c Container) Equal(d Container) bool {
	return c.Engine == d.Engine && c.ID == d.ID && c.Name == d.Name && c.Image == d.Image &&
		c.PID == d.PID && c.Hostname == d.Hostname &&
		(c.Labels == nil) == (d.Labels == nil) && maps.Equal(c.Labels, d.Labels) &&
		maps.Equal(c.ImageLabels, d.ImageLabels)
}

// A Phase is how far a change got. After a crash, Restore completes or undoes what is not Ready.
type Phase uint8

// The phases, in the order that a record goes through them.
const (
	Pending  Phase = iota // recorded; the kernel may or may not match
	Ready                 // the caller may know that it exists
	Deleting              // being removed; the caller may know that it is gone
)

// String returns the phase's name in tables and logs.
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

// A Link says what is to be done in the sandbox; the zero Link: nothing.
type Link struct {
	SrcName   string // the link to move in; empty: none
	DstPrefix string // the prefix of its name inside, before a number
	DstName   string // its full name inside, for engines that take one
	MTU       int    // 0: the link has the right one
	Gateways  []netip.Addr
	Routes    []Route
	// ToHost asks for a route on the link to the addresses that the host uses towards the endpoint, unless they are in
	// its subnets. They are known once the objects are made; package plan then adds the routes.
	ToHost bool
}

// Link returns the link of an endpoint, with the name that was requested for it.
func (n Network) Link(e Endpoint, src string, mtu int) Link {
	l := Link{SrcName: src, DstPrefix: IfacePrefix.Of(n), MTU: mtu}
	if e.IfName != "" {
		l.DstPrefix, l.DstName = strings.TrimRight(e.IfName, "0123456789"), e.IfName
	}
	return l
}

// A Mode is one kind of network. It returns what is wanted, and changes nothing: package plan makes the objects,
// compares them with the kernel and removes them. Only Settle looks at the host, by the facts it is given, and at the
// cluster.
type Mode interface {
	// Options returns the mode's rows of the table of options.
	Options() []Option
	// Settle refuses a network that cannot be had on this host, or beside the other networks; the error names the
	// option or field. It returns what is decided once, when the network is created, from what the host is like then.
	// That is recorded as Settled and stays. A network that is Ready is being changed: Settle then only checks it, and
	// returns its Settled.
	Settle(ctx context.Context, f Facts, n Network, others []Network) (map[string]string, error)
	// Traits returns what the rest of netyard has to know of a network.
	Traits(n Network) Traits
	// Objects returns what a network wants in the kernel, in the order in which it is made. Elements of sets at the
	// beginning are added before the first link is made, and removed after the last link.
	Objects(n Network) []core.Object
	// Place returns what an endpoint wants in the kernel, and what is to be done in its sandbox.
	Place(n Network, e Endpoint) ([]core.Object, Link)
}

// An Env has what a mode is made with.
type Env struct {
	// Fabric is the cluster that this host is in; nil: it is in none.
	Fabric Fabric
}

// New makes a Mode.
type New func(Env) Mode

// Equal says whether two networks were requested alike, whatever was changed or decided since.
func (n Network) Equal(m Network) bool {
	return n.ID == m.ID && n.Mode == m.Mode && n.Internal == m.Internal && n.IPv6 == m.IPv6 &&
		maps.Equal(n.Options, m.Options) &&
		slices.EqualFunc(n.Subnets, m.Subnets, func(a, b Subnet) bool {
			return a.Pool == b.Pool && a.Gateway == b.Gateway && maps.Equal(a.Aux, b.Aux)
		})
}

// Short returns the beginning of an ID, as people see it and as names of kernel objects contain it.
func Short(id string) string {
	const n = 12
	if len(id) > n {
		return id[:n]
	}
	return id
}
