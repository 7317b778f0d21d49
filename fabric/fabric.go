// Package fabric is a host's half of overlay networks: it keeps etcd and the kernel of one mind. It claims the host's
// addresses, keeps a few in store for containers that come while etcd is away, and tells each network's VXLAN device
// who is where.
//
// What the host has is in its own file first and in etcd as soon as that can be; what the others have is in etcd first,
// with a copy in the file. So an etcd that is away, or comes back without its memory, takes nothing from anybody.
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
	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

// Config is all that an Agent needs.
type Config struct {
	Log    *slog.Logger
	Client *cluster.Client
	Store  *store.Store
	Kernel *kernel.Kernel
	// Host is this host, but for its id, which is in the file.
	Host cluster.Host
	// Port is the UDP port of VXLAN, if this host founds the cluster.
	Port uint16
	// WireGuardPort is that of this host; 0: WireGuardPort.
	WireGuardPort uint16
	// Held says whether somebody of this host has an address of a network, or means to have it again; nil: nobody who
	// is not reached by it.
	Held func(network string, addr netip.Addr) bool
	// Cooldown is how long an address that a container had is passed over while there is another.
	Cooldown time.Duration
	// BootID tells one life of the host's kernel from the next.
	BootID string
	// Fence is told which endpoints of a network have an address that etcd says is another host's, and why, whenever
	// that changed; nothing may go through their links. It is told again until it answers without an error.
	Fence func(ctx context.Context, network string, endpoints map[string]string) error
}

const (
	// settleEvery is how often what was not to be had is tried again.
	settleEvery = time.Second
	// patience is how long an address waits for the endpoint that it was granted to: an engine's requests end in
	// seconds.
	patience = 5 * time.Minute
)

// An Agent is a host's part in overlay networks.
type Agent struct {
	c Config
	// self is this host's id.
	self string
	// hosts and members are of all networks.
	hosts, members *cluster.Mirror
	poked          chan struct{}
	// rolls say who is called what; moved tells that there is another one.
	rolls *rolls
	moved chan struct{}
	// impatient makes patience nothing, in tests.
	impatient atomic.Bool

	mu       sync.Mutex
	who      cluster.Identity
	networks map[string]*network
	// fenced: an administrator took this host out. Until it is back nothing of an overlay gets in or out.
	fenced bool
	// entered: etcd has the cluster that this host belongs to.
	entered bool
	// reason is why the host is no member at the moment; nil: it is one.
	reason error
	tasks  *tasks
	tunnel tunnel
}

// A network is one that is on this host.
type network struct {
	Bound
	book   *cluster.Book
	keeper *keeper
	addrs  *cluster.Mirror
	stop   func()
	// vteps are the hosts whose frames are let in.
	vteps []netip.Addr
	// host are the host's own addresses.
	host []core.Addr
	// sure: the kernel was told everything after everything had been read.
	sure bool
	// unsure: the kernel may not know what it was told, and is told all of it again.
	unsure bool
	// shut: nothing gets in or out until it is known which of the addresses that this host had are still its own.
	shut bool
	// fenced is what was told of the endpoints that have another host's address; nil: nothing was told yet.
	fenced map[string]string

	restMu   sync.Mutex
	cooldown time.Duration
	// resting are the addresses that rest, and since when; turned are those of which the file says otherwise.
	resting map[netip.Addr]time.Time
	turned  map[netip.Addr]bool
}

// A Bound is a network that is on this host, and the link that leads to its other hosts.
type Bound struct {
	cluster.Network
	ID string
	// Link is the VXLAN device, Bridge the bridge that it is a port of, and MAC the bridge's: the host's own addresses
	// are there.
	Link, Bridge string
	MAC          cluster.MAC
	// Alias is what those links carry.
	Alias string
}

// networks are those that are on this host.
var networks = store.Bucket[Bound]{Name: "overlay_networks"}

// New makes an Agent of what the file has. Without etcd it already tells the kernel who the others were.
func New(c Config) (*Agent, error) {
	who, err := cluster.LoadIdentity(c.Store)
	if err != nil {
		return nil, fmt.Errorf("read who this host is: %w", err)
	}
	c.Host.ID = who.Host
	if c.Fence == nil {
		c.Fence = func(context.Context, string, map[string]string) error { return nil }
	}
	if c.Held == nil {
		c.Held = func(string, netip.Addr) bool { return false }
	}
	a := &Agent{
		c: c, self: who.Host, who: who, poked: make(chan struct{}, 1), networks: map[string]*network{}, reason: cluster.ErrNotYet, tasks: &tasks{}, rolls: newRolls(), moved: make(chan struct{}, 1),
	}
	if err := errors.Join(a.recover(), a.openTunnel(), a.keepClosed()); err != nil {
		return nil, err
	}
	a.hosts = c.Client.NewMirror(c.Log, "host/", a.everywhere)
	a.members = c.Client.NewMirror(c.Log, "member/", a.everywhere)
	for _, m := range []*cluster.Mirror{a.hosts, a.members} {
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

// keepClosed closes the networks again that etcd has not heard this host has left.
func (a *Agent) keepClosed() error {
	objects, err := a.Parting()
	if err != nil {
		return err
	}
	return a.c.Kernel.Ensure(context.Background(), objects...)
}

// Port is the UDP port of VXLAN.
func (a *Agent) Port() uint16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.port()
}

// port is the cluster's, once this host has been in one.
func (a *Agent) port() uint16 { return cmp.Or(a.who.Meta.Port, a.c.Port) }

// Local is where this host takes VXLAN.
func (a *Agent) Local() netip.Addr { return a.c.Host.VTEP }

// Bind puts a network on this host: the link is there. It is recorded; what etcd has to hear of it follows.
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
		if isNew { // only before Run: whoever reads it later holds no lock
			n.Bound = b
		}
		n.unsure = true
		a.poke()
		return nil
	}
	if err := a.add(b); err != nil {
		return err
	}
	a.poke()
	a.tellMoved()
	return nil
}

// bind records a network, and by which hardware address the host itself is reached there: that of a bridge can change
// with the host's.
func bind(tx store.Tx, b Bound) error {
	own, err := owns.List(tx, b.ID+"/")
	if err != nil {
		return err
	}
	for _, o := range own {
		if o.Use != cluster.OfHost || o.MAC == b.MAC {
			continue
		}
		o.MAC, o.Synced = b.MAC, false
		if err := owns.Put(tx, o.key(), o); err != nil {
			return err
		}
	}
	return networks.Put(tx, b.ID, b)
}

// add begins to keep a network. The caller holds the lock.
func (a *Agent) add(b Bound) error {
	n := &network{
		keeper: &keeper{a, b.ID},
		Bound:  b, book: cluster.NewBook(a.self, b.Network), stop: func() {}, unsure: true,
		cooldown: a.c.Cooldown, resting: map[netip.Addr]time.Time{}, turned: map[netip.Addr]bool{},
	}
	if err := a.loadRest(n); err != nil {
		return err
	}
	for _, m := range []*cluster.Mirror{a.hosts, a.members} {
		m.Each(func(r cluster.Record) { n.book.Apply([]cluster.Change{{Key: r.Key(), New: r}}) })
	}
	n.addrs = a.c.Client.NewMirror(a.c.Log, "addr/"+b.ID+"/", func(cs []cluster.Change) { a.heard(n, cs) })
	a.networks[b.ID] = n
	a.rolls.open(b.Network)
	a.mu.Unlock() // Load tells heard, which locks
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

// Unbind takes a network from this host. Its addresses are given up; etcd hears of it when it can.
func (a *Agent) Unbind(id string) error {
	a.mu.Lock()
	n := a.networks[id]
	delete(a.networks, id)
	a.mu.Unlock()
	a.rolls.close(id)
	a.tellMoved()
	if n != nil {
		n.stop()
	}
	err := a.forget(id, n)
	if err == nil && n != nil {
		err = a.c.Kernel.Ensure(context.Background(), a.parted(id, n.VNI)...)
	}
	if err == nil {
		err = cluster.Discard(a.c.Store, "addr/"+id+"/")
	}
	if err == nil && n != nil {
		err = a.c.Kernel.Remove(elements(overlay.VTEPs(a.Port(), n.VNI, n.vteps), id)...)
		if n.Encrypted {
			err = errors.Join(err, a.part())
		}
	}
	a.poke()
	if err != nil {
		return fmt.Errorf("take network %s from this host: %w", id, err)
	}
	return nil
}

// forget takes a network from the records; what is left is that etcd has to hear of it.
func (a *Agent) forget(id string, n *network) error {
	return a.c.Store.Update(func(tx store.Tx) error {
		if err := networks.Delete(tx, id); err != nil {
			return err
		}
		for _, key := range owns.Keys(tx, id+"/") {
			if err := owns.Delete(tx, key); err != nil {
				return err
			}
		}
		for _, key := range resting.Keys(tx, id+"/") {
			if err := resting.Delete(tx, key); err != nil {
				return err
			}
		}
		if n != nil {
			if err := parting.Put(tx, id, n.VNI); err != nil {
				return err
			}
		}
		return leaving.Put(tx, id, true)
	})
}

// Keep unbinds all networks but those: a daemon that died may have left others.
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

// leaving are networks that were taken from this host and of which etcd has not heard that yet.
var leaving = store.Bucket[bool]{Name: "overlay_leaving"}

// parting are the numbers of those networks. The other hosts take this one for a member until etcd has heard, so the
// networks stay closed: nothing of a container's leaves for them as a frame of theirs.
var parting = store.Bucket[uint32]{Name: "overlay_parting"}

// parted are the elements that keep such a network closed. They are nobody's but the Agent's, see Parting.
func (a *Agent) parted(id string, vni uint32) []core.Object {
	return elements(overlay.Closed(a.Port(), vni), "parting "+id)
}

// Parting are the elements that are wanted for networks that were taken from this host and that etcd has not heard of.
func (a *Agent) Parting() (objects []core.Object, err error) {
	err = a.c.Store.View(func(tx store.Tx) error {
		return parting.Each(tx, "", func(id string, vni uint32) error {
			objects = append(objects, a.parted(id, vni)...)
			return nil
		})
	})
	return objects, err
}

// opens opens a network that etcd knows this host has left.
func (a *Agent) opens(id string) error {
	var vni uint32
	err := a.c.Store.View(func(tx store.Tx) (err error) { vni, err = parting.Get(tx, id); return err })
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = a.c.Kernel.Remove(a.parted(id, vni)...)
	}
	return err
}

func (a *Agent) poke() {
	select {
	case a.poked <- struct{}{}:
	default:
	}
}
