// Package fabric is a host's half of overlay networks: it keeps etcd and the kernel in step. It claims the host's
// addresses, keeps a few spare ones, claimed in advance, for containers that start while etcd is away, and gives each
// network's VXLAN device its peers.
//
// What this host has is recorded in its own database first, and in etcd as soon as possible; what other hosts have is
// in etcd first, with a copy in the database. So an etcd that is away, or comes back without its data, takes nothing
// from any container.
package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/mirror"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/fabric/dataplane"
	"netyard/fabric/nametable"
	"netyard/fabric/tunnel"
	"netyard/kernel"
	"netyard/store"
	"netyard/wake"
)

// WireGuardPort is the UDP port of WireGuard unless the configuration sets another.
const WireGuardPort = tunnel.Port

// Config is what an Agent needs.
type Config struct {
	Log    *slog.Logger
	Client *cluster.Client
	Store  *store.Store
	Kernel *kernel.Kernel
	// Host is this host, without its ID, which is in the database.
	Host record.Host
	// Port is the UDP port of VXLAN, used if this host creates the cluster.
	Port uint16
	// WireGuardPort is the UDP port of this host's WireGuard device; 0: the constant WireGuardPort.
	WireGuardPort uint16
	// Held says whether an endpoint of this host has an address of a network or will use it again, although it is not
	// published; nil: none.
	Held func(network string, addr netip.Addr) bool
	// Cooldown is how long an address that a container had is avoided while another is free.
	Cooldown time.Duration
	// BootID identifies the current boot of the host.
	BootID string
	// Fence is called with the endpoints of a network that have an address which is another host's according to etcd,
	// and why, whenever that changes; it must block their traffic. It is called again until it succeeds.
	Fence func(ctx context.Context, network string, endpoints map[string]string) error
}

// retryEvery is how often work that failed is tried again.
const retryEvery = time.Second

// An Agent is a host's part in overlay networks. It ties together what it has of each: the addresses, the names, the
// kernel's part of each network, and the tunnel.
type Agent struct {
	c      Config
	kernel Kernel
	// self is this host's ID.
	self string
	// hosts and members mirror the records of all hosts and memberships.
	hosts, members *mirror.Mirror
	addresses      *address.Records
	names          *nametable.Tables
	tunnel         *tunnel.Tunnel
	leaving        *leaving
	tasks          *tasks
	// wake makes syncLoop run at once.
	wake wake.Signal
	// moved is signalled when a network is bound or unbound.
	moved wake.Signal

	// mu guards what follows. Requests take it, so it is never held while the kernel, etcd or the database works.
	mu       sync.Mutex
	who      cluster.Identity
	networks map[string]*network
	// unbinding are networks that Unbind has not removed completely yet.
	unbinding map[string]*network
	// fenced says that an admin removed this host from the cluster. Until it rejoins, all overlay traffic is blocked.
	fenced bool
	// entered says that this host has found its cluster in etcd.
	entered bool
	// reason is why the host is not a member at the moment; nil: it is one.
	reason error
}

// A network is a network that is on this host. The Agent's lock guards what can change.
type network struct {
	Bound
	// claims mirrors the claims of all hosts to addresses of the network.
	claims *mirror.Mirror
	addrs  *address.Network
	plane  *dataplane.Network
	// loaded says that the saved claims have been loaded, so that the mirror can run; stop ends it.
	loaded bool
	stop   func()
	// fenced is what Fence was last called with; nil: it was not called yet.
	fenced map[string]string
}

// A Bound is a network that is on this host, and the link that leads to its other hosts.
type Bound struct {
	record.Network
	ID string
	// Link is the VXLAN device, Bridge the bridge that it is a port of, and MAC the bridge's MAC. The host's own
	// addresses are on the bridge.
	Link, Bridge string
	MAC          record.MAC
	// Alias is the alias of both links.
	Alias string
}

func (b Bound) links() dataplane.Links {
	return dataplane.Links{VXLAN: b.Link, Bridge: b.Bridge, Alias: b.Alias}
}

// errUnbound says that a network is not on this host any more.
var errUnbound = errors.New("it is not on this host any more")

// networks holds the networks that are on this host.
var networks = store.Bucket[Bound]{Name: "overlay_networks"}

// New makes an Agent from the records in the database. Without etcd, the saved copies already give it the peers.
func New(c Config) (*Agent, error) { return newAgent(c, onHost{c.Kernel}) }

func newAgent(c Config, k Kernel) (*Agent, error) {
	who, err := cluster.LoadIdentity(c.Store)
	if err != nil {
		return nil, fmt.Errorf("load the host's identity: %w", err)
	}
	c.Host.ID = who.Host
	if c.Fence == nil {
		c.Fence = func(context.Context, string, map[string]string) error { return nil }
	}
	if c.Held == nil {
		c.Held = func(string, netip.Addr) bool { return false }
	}
	a := &Agent{
		c: c, kernel: k, self: who.Host, who: who, wake: wake.New(), networks: map[string]*network{},
		unbinding: map[string]*network{}, reason: etcd.ErrNotYet, tasks: &tasks{}, moved: wake.New(),
	}
	a.leaving = &leaving{store: c.Store, client: c.Client, kernel: k, self: who.Host, port: a.Port, gate: newGate()}
	if err := errors.Join(a.openAddresses(), a.openTunnel(), a.leaving.close(context.Background())); err != nil {
		return nil, err
	}
	a.hosts = mirror.New(c.Client.Client, c.Log, "host/", a.applyHostChanges)
	a.members = mirror.New(c.Client.Client, c.Log, "member/", a.applyHostChanges)
	for _, m := range []*mirror.Mirror{a.hosts, a.members} {
		if err := m.Load(c.Store); err != nil {
			return nil, err
		}
	}
	var bound []Bound
	err = c.Store.View(func(tx store.Tx) (err error) {
		bound, err = networks.List(tx, "")
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, b := range bound {
		b.Network.ID = b.ID
		if err := a.add(b); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// openAddresses opens the records of the host's addresses and, from these, the names of its endpoints.
func (a *Agent) openAddresses() (err error) {
	a.addresses, err = address.Open(address.Config{
		Log: a.c.Log, Store: a.c.Store, Etcd: a.c.Client, Host: a.self, Cooldown: a.c.Cooldown, Held: a.c.Held,
		Bound:  isBound,
		Reason: a.whyNoMember, Changed: func(network string) { a.names.Stale(network) }, Wake: a.wake.Send,
	})
	if err == nil {
		a.names = nametable.New(a.self, a.addresses.List)
	}
	return err
}

// openTunnel opens the host's WireGuard device.
func (a *Agent) openTunnel() (err error) {
	a.tunnel, err = tunnel.Open(tunnel.Config{
		Log: a.c.Log, Store: a.c.Store, Kernel: a.kernel, Host: a.c.Host,
		Port: cmp.Or(a.c.WireGuardPort, WireGuardPort), Peers: a.tunnelPeers, Needed: a.encrypts,
		Reason: a.whyNoMember, Start: a.startTask,
		Publish: func(ctx context.Context) error { return a.c.Client.Join(ctx, a.host()) },
	})
	return err
}

// startTask runs a task until Run ends, if this host has found its cluster.
func (a *Agent) startTask(task func(context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.entered {
		a.tasks.start(task)
	}
}

// whyNoMember returns why this host is not a member of the cluster at the moment; nil: it is one.
func (a *Agent) whyNoMember() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reason
}

// on returns the networks that are on this host.
func (a *Agent) on() (all []*network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.networks))
}

// has says whether a network is on this host.
func (a *Agent) has(id string) bool { return a.network(id) != nil }

// network returns a network that is on this host; nil when it is not.
func (a *Agent) network(id string) *network {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.networks[id]
}

// Port returns the UDP port of VXLAN: the cluster's, or the configured one if this host has never been in a cluster.
func (a *Agent) Port() uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cmp.Or(a.who.Meta.Port, a.c.Port)
}

// Local returns this host's VTEP.
func (a *Agent) Local() netip.Addr { return a.c.Host.VTEP }

// Bind records that a network is on this host; its links must exist. Run then joins the network in etcd.
func (a *Agent) Bind(b Bound) error {
	b.ID = b.Network.ID
	if a.unbinds(b.ID) { // the last Unbind failed
		if err := a.Unbind(b.ID); err != nil {
			return err
		}
	}
	n := a.network(b.ID)
	isNew := n == nil || n.Link != b.Link || n.Bridge != b.Bridge || n.MAC != b.MAC || n.Alias != b.Alias
	if isNew {
		if err := a.c.Store.Update(func(tx store.Tx) error { return bind(tx, b) }); err != nil {
			return fmt.Errorf("record network %s: %w", b.Name, err)
		}
	}
	if n != nil {
		if isNew { // happens only before Run: later readers hold no lock
			n.Bound = b
			n.plane.Relink(b.links())
		}
		n.plane.Unsure()
		return nil
	}
	if err := a.add(b); err != nil {
		return err
	}
	a.wake.Send()
	a.moved.Send()
	return nil
}

// isBound says whether a network is on this host according to the database.
func isBound(tx store.Tx, id string) bool {
	return slices.Contains(networks.Keys(tx, id), id)
}

// bind records a network, and the MAC of its bridge. What is left of an earlier time of the network on this host is
// forgotten: its addresses may be other hosts' by now.
func bind(tx store.Tx, b Bound) error {
	if !isBound(tx, b.ID) {
		if err := forget(tx, b.ID); err != nil {
			return err
		}
	}
	if err := address.SetMAC(tx, b.ID, b.MAC); err != nil {
		return err
	}
	return networks.Put(tx, b.ID, b)
}

// add starts the work on a network.
func (a *Agent) add(b Bound) (err error) {
	n := &network{Bound: b, stop: func() {}}
	n.claims = mirror.New(a.c.Client.Client, a.c.Log, claimsOf(b.ID),
		func(cs []record.Change) { a.applyAddressChanges(n, cs) })
	n.addrs, err = a.addresses.Network(b.Network, address.NetworkConfig{
		Claims: n.claims, HostChanged: func() { n.plane.Unsure() },
		Join: func(ctx context.Context) error { return a.join(ctx, n) },
	})
	if err != nil {
		return err
	}
	a.names.Add(b.Network)
	a.mu.Lock()
	n.plane = dataplane.New(dataplane.Config{
		Log: a.c.Log, Kernel: a.kernel, Host: a.self, Port: a.Port, Read: func() bool { return a.read(n) },
		Tunnel: a.tunnel.Update, HostAddrs: n.addrs.HostAddrs, Retry: a.wake.Send,
	}, b.Network, b.links(), a.fenced)
	a.networks[b.ID] = n // from here on it gets changes of hosts
	a.mu.Unlock()
	for _, m := range []*mirror.Mirror{a.hosts, a.members} {
		m.Each(func(r record.Record) { n.plane.Note([]record.Change{{Key: r.Key(), New: r}}) })
	}
	if err := n.claims.Load(a.c.Store); err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.networks, b.ID)
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n.loaded = true
	a.startMirror(n)
	return nil
}

// startMirror runs the mirror of a network's claims, once there is something to mirror. The caller holds the lock.
func (a *Agent) startMirror(n *network) {
	if a.entered && n.loaded && a.networks[n.ID] == n {
		n.stop = a.tasks.start(n.claims.Run)
	}
}

// Unbind removes a network from this host. Its addresses are released in etcd as soon as etcd answers.
func (a *Agent) Unbind(id string) error {
	a.mu.Lock()
	n := a.networks[id]
	delete(a.networks, id)
	stop := func() {}
	if n != nil {
		a.unbinding[id], stop = n, n.stop
	}
	n = a.unbinding[id] // also one that an Unbind which failed has taken
	a.mu.Unlock()
	a.names.Remove(id)
	a.moved.Send()
	stop()
	err := a.unbind(id, n)
	a.wake.Send()
	if err != nil {
		return fmt.Errorf("remove network %s from this host: %w", id, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.unbinding, id)
	return nil
}

// unbinds says whether Unbind has not removed a network completely yet.
func (a *Agent) unbinds(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unbinding[id] != nil
}

// unbind removes what there is of a network; n is nil for one that never came up. It is closed before it can be left.
func (a *Agent) unbind(id string, n *network) error {
	err := a.leaving.add(id, n, func(tx store.Tx) error {
		if err := networks.Delete(tx, id); err != nil {
			return err
		}
		return forget(tx, id)
	})
	if err != nil || n == nil {
		return err
	}
	err = n.plane.Remove()
	if n.Encrypted {
		err = errors.Join(err, a.tunnel.Release())
	}
	return err
}

// forget deletes what is recorded of the addresses of a network, and the saved claims.
func forget(tx store.Tx, id string) error {
	if err := address.Forget(tx, id); err != nil {
		return err
	}
	return mirror.Discard(tx, claimsOf(id))
}

// claimsOf returns the prefix of the claims to addresses of a network.
func claimsOf(id string) string { return record.AddrKind + "/" + id + "/" }

// UnbindExcept unbinds all networks but those with these IDs: a daemon that died may have left others.
func (a *Agent) UnbindExcept(ids []string) error {
	var others []string
	for _, n := range a.on() {
		if !slices.Contains(ids, n.ID) {
			others = append(others, n.ID)
		}
	}
	for _, id := range others {
		if err := a.Unbind(id); err != nil {
			return err
		}
	}
	return nil
}

// Networks returns the networks that are on this host.
func (a *Agent) Networks() (all []Bound) {
	for _, n := range a.on() {
		all = append(all, n.Bound)
	}
	return all
}

// NetworkChanges returns a channel that receives when a network was bound to this host or unbound.
func (a *Agent) NetworkChanges() <-chan struct{} { return a.moved }
