// Package fabric is a host's half of overlay networks: it keeps etcd and the kernel in step. It claims the host's
// addresses, keeps a few warm (claimed in advance) for containers that start while etcd is away, and gives each
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
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/mirror"
	"netyard/cluster/peers"
	"netyard/cluster/record"
	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

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

const (
	// retryEvery is how often work that failed is tried again.
	retryEvery = time.Second
	// useTimeout is how long an address stays granted to an endpoint that does not publish it: an engine's requests end
	// within seconds.
	useTimeout = 5 * time.Minute
)

// An Agent is a host's part in overlay networks.
type Agent struct {
	c Config
	// self is this host's ID.
	self string
	// hosts and members mirror the records of all hosts and memberships.
	hosts, members *mirror.Mirror
	wake           chan struct{}
	// names holds the names of endpoints; moved is signalled when a network is bound or unbound.
	names *nameTables
	moved chan struct{}
	// reapAtOnce makes useTimeout 0, in tests.
	reapAtOnce atomic.Bool

	mu       sync.Mutex
	who      cluster.Identity
	networks map[string]*network
	// fenced says that an admin removed this host from the cluster. Until it rejoins, all overlay traffic is blocked.
	fenced bool
	// entered says that this host has found its cluster in etcd.
	entered bool
	// reason is why the host is not a member at the moment; nil: it is one.
	reason error
	tasks  *tasks
	tunnel tunnel
}

// A network is a network that is on this host, with its state.
type network struct {
	Bound
	book   *peers.Book
	keeper *keeper
	addrs  *mirror.Mirror
	stop   func()
	// vteps are the VTEPs from which frames are accepted; nil: the kernel was not given any yet.
	vteps []netip.Addr
	// host are the host's own addresses.
	host []core.Addr
	// complete says that the kernel was given everything after everything had been read from etcd.
	complete bool
	// unsure says that the kernel may lack something, so that it is given everything again.
	unsure bool
	// shut says that all traffic is blocked until it is known which of the host's former addresses are still its own.
	shut bool
	// fenced is what Fence was last called with; nil: it was not called yet.
	fenced map[string]string

	coolMu   sync.Mutex
	cooldown time.Duration
	// cooling are the addresses in cooldown, and since when; changedCooling are those whose record differs.
	cooling        map[netip.Addr]time.Time
	changedCooling map[netip.Addr]bool
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

// networks holds the networks that are on this host.
var networks = store.Bucket[Bound]{Name: "overlay_networks"}

// New makes an Agent from the records in the database. Without etcd, the saved copies already give it the peers.
func New(c Config) (*Agent, error) {
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
		c: c, self: who.Host, who: who, wake: make(chan struct{}, 1), networks: map[string]*network{},
		reason: etcd.ErrNotYet, tasks: &tasks{}, names: newNameTables(), moved: make(chan struct{}, 1),
	}
	if err := errors.Join(a.releaseInterrupted(), a.openTunnel(), a.closeLeftNetworks()); err != nil {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range bound {
		b.Network.ID = b.ID
		if err := a.add(b); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// closeLeftNetworks closes networks that this host has left without etcd having recorded that, see Parting.
func (a *Agent) closeLeftNetworks() error {
	objects, err := a.Parting()
	if err != nil {
		return err
	}
	return a.c.Kernel.Ensure(context.Background(), objects...)
}

// Port returns the UDP port of VXLAN.
func (a *Agent) Port() uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.port()
}

// port returns the cluster's port, or the configured one if this host has never been in a cluster.
func (a *Agent) port() uint16 { return cmp.Or(a.who.Meta.Port, a.c.Port) }

// Local returns this host's VTEP.
func (a *Agent) Local() netip.Addr { return a.c.Host.VTEP }

// Bind records that a network is on this host; its links must exist. Run then joins the network in etcd.
func (a *Agent) Bind(b Bound) error {
	b.ID = b.Network.ID
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.networks[b.ID]
	isNew := n == nil || n.Link != b.Link || n.Bridge != b.Bridge || n.MAC != b.MAC || n.Alias != b.Alias
	if isNew {
		if err := a.c.Store.Update(func(tx store.Tx) error { return bind(tx, b) }); err != nil {
			return fmt.Errorf("record network %s: %w", b.Name, err)
		}
	}
	if n != nil {
		if isNew { // happens only before Run: later readers hold no lock
			n.Bound = b
		}
		n.unsure = true
		a.wakeUp()
		return nil
	}
	if err := a.add(b); err != nil {
		return err
	}
	a.wakeUp()
	a.notifyMoved()
	return nil
}

// bind records a network, and updates the MAC of the host's own addresses there: that of a bridge can change with the
// host's.
func bind(tx store.Tx, b Bound) error {
	own, err := owns.List(tx, b.ID+"/")
	if err != nil {
		return err
	}
	for _, o := range own {
		if o.Use != record.OfHost || o.MAC == b.MAC {
			continue
		}
		o.MAC, o.Synced = b.MAC, false
		if err := owns.Put(tx, o.key(), o); err != nil {
			return err
		}
	}
	return networks.Put(tx, b.ID, b)
}

// add starts the work on a network. The caller holds the lock.
func (a *Agent) add(b Bound) error {
	n := &network{
		keeper: &keeper{a, b.ID},
		Bound:  b, book: peers.NewBook(a.self, b.Network), stop: func() {}, unsure: true,
		cooldown: a.c.Cooldown, cooling: map[netip.Addr]time.Time{}, changedCooling: map[netip.Addr]bool{},
	}
	if err := a.loadCooling(n); err != nil {
		return err
	}
	for _, m := range []*mirror.Mirror{a.hosts, a.members} {
		m.Each(func(r record.Record) { n.book.Apply([]record.Change{{Key: r.Key(), New: r}}) })
	}
	n.addrs = mirror.New(a.c.Client.Client, a.c.Log, "addr/"+b.ID+"/",
		func(cs []record.Change) { a.applyAddressChanges(n, cs) })
	a.networks[b.ID] = n
	a.names.open(b.Network)
	a.mu.Unlock() // Load calls applyAddressChanges, which locks
	err := n.addrs.Load(a.c.Store)
	a.mu.Lock()
	if err != nil {
		return err
	}
	if a.entered {
		n.stop = a.tasks.start(n.addrs.Run)
	}
	return nil
}

// Unbind removes a network from this host. Its addresses are released in etcd as soon as etcd answers.
func (a *Agent) Unbind(id string) error {
	a.mu.Lock()
	n := a.networks[id]
	delete(a.networks, id)
	a.mu.Unlock()
	a.names.close(id)
	a.notifyMoved()
	if n != nil {
		n.stop()
	}
	err := a.forgetNetwork(id, n)
	if err == nil && n != nil {
		err = a.c.Kernel.Ensure(context.Background(), a.closedElements(id, n.VNI)...)
	}
	if err == nil {
		err = mirror.Discard(a.c.Store, "addr/"+id+"/")
	}
	if err == nil && n != nil {
		err = a.c.Kernel.Remove(elements(overlay.VTEPs(a.Port(), n.VNI, n.vteps), id)...)
		if n.Encrypted {
			err = errors.Join(err, a.releaseDevice())
		}
	}
	a.wakeUp()
	if err != nil {
		return fmt.Errorf("remove network %s from this host: %w", id, err)
	}
	return nil
}

// forgetNetwork deletes the records of a network, and records that it is to be left in etcd.
func (a *Agent) forgetNetwork(id string, n *network) error {
	return a.c.Store.Update(func(tx store.Tx) error {
		if err := networks.Delete(tx, id); err != nil {
			return err
		}
		for _, key := range owns.Keys(tx, id+"/") {
			if err := owns.Delete(tx, key); err != nil {
				return err
			}
		}
		for _, key := range cooling.Keys(tx, id+"/") {
			if err := cooling.Delete(tx, key); err != nil {
				return err
			}
		}
		if n != nil {
			if err := leftVNIs.Put(tx, id, n.VNI); err != nil {
				return err
			}
		}
		return leftNetworks.Put(tx, id, true)
	})
}

// Keep unbinds all networks but those with these IDs: a daemon that died may have left others.
func (a *Agent) Keep(ids []string) error {
	a.mu.Lock()
	var others []string
	for id := range a.networks {
		if !slices.Contains(ids, id) {
			others = append(others, id)
		}
	}
	a.mu.Unlock()
	for _, id := range others {
		if err := a.Unbind(id); err != nil {
			return err
		}
	}
	return nil
}

// leftNetworks holds networks that were removed from this host and not left in etcd yet.
var leftNetworks = store.Bucket[bool]{Name: "overlay_leaving"}

// leftVNIs holds the VNIs of those networks. The other hosts take this one for a member until it has left in etcd, so
// the networks stay closed: nothing that a container sends can leave as a frame of theirs.
var leftVNIs = store.Bucket[uint32]{Name: "overlay_parting"}

// closedElements returns the elements that keep such a network closed. They belong to the Agent alone, see Parting.
func (a *Agent) closedElements(id string, vni uint32) []core.Object {
	return elements(overlay.Closed(a.Port(), vni), "parting "+id)
}

// Parting returns the elements that keep networks closed which were removed from this host and not left in etcd yet.
func (a *Agent) Parting() (objects []core.Object, err error) {
	err = a.c.Store.View(func(tx store.Tx) error {
		return leftVNIs.Each(tx, "", func(id string, vni uint32) error {
			objects = append(objects, a.closedElements(id, vni)...)
			return nil
		})
	})
	return objects, err
}

// removeClosed removes the elements of a network that this host has left in etcd.
func (a *Agent) removeClosed(id string) error {
	var vni uint32
	err := a.c.Store.View(func(tx store.Tx) (err error) { vni, err = leftVNIs.Get(tx, id); return err })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = a.c.Kernel.Remove(a.closedElements(id, vni)...)
	}
	return err
}

// wakeUp makes syncLoop run at once.
func (a *Agent) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
