package fabric

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
)

// everywhere is told of hosts and of which networks are on them.
func (a *Agent) everywhere(cs []cluster.Change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		a.tell(n, n.book.Apply(cs))
	}
}

// heard is told of addresses of one network.
func (a *Agent) heard(n *network, cs []cluster.Change) {
	a.rolls.heard(n.ID, a.self, cs)
	a.mu.Lock()
	defer a.mu.Unlock()
	n.cool(cs, time.Now())
	a.tell(n, n.book.Apply(cs))
	if slices.ContainsFunc(cs, a.isOwn) {
		a.poke()
	}
}

// isOwn says whether a change is about an address of this host.
func (a *Agent) isOwn(c cluster.Change) bool {
	for _, r := range []cluster.Record{c.Old, c.New} {
		if addr, ok := r.(*cluster.Address); ok && addr.Host == a.self {
			return true
		}
	}
	return false
}

// tell has the kernel know what became of a network's peers. The lock is held, so that what is later stays later.
func (a *Agent) tell(n *network, diff []cluster.PeerChange) {
	if a.fenced || n.shut {
		return
	}
	err := a.admit(n)
	if err == nil && len(diff) > 0 && !n.unsure {
		set, gone, nobodys := n.sort(diff)
		err = overlay.ChangePeers(context.Background(), a.c.Kernel.Handle, n.Link, set, gone, nobodys)
	}
	if err != nil { // its link may be about to come
		a.c.Log.Debug("tell the kernel of peers", "network", n.Name, "err", err)
		n.unsure = true
		a.poke()
	}
}

// sort says which peers came or became others, which addresses went, and which hardware addresses are nobody's now.
func (n *network) sort(diff []cluster.PeerChange) (set []overlay.Peer, gone []netip.Addr, nobodys []net.HardwareAddr) {
	lost := map[cluster.MAC]bool{}
	for _, d := range diff {
		if d.New != (cluster.Peer{}) {
			set = append(set, peer(d.New))
		} else {
			gone = append(gone, d.Old.Addr)
		}
		if d.Old != (cluster.Peer{}) && !n.book.HasMAC(d.Old.MAC) {
			lost[d.Old.MAC] = true
		}
	}
	for m := range lost {
		nobodys = append(nobodys, m.Hardware())
	}
	return set, gone, nobodys
}

func peer(p cluster.Peer) overlay.Peer {
	return overlay.Peer{Addr: p.Addr, MAC: p.MAC.Hardware(), VTEP: p.VTEP}
}

// admit lets in frames of the hosts that the network is on now, and of no others.
func (a *Agent) admit(n *network) error {
	now := n.book.VTEPs()
	if a.fenced || n.shut {
		now = nil
	}
	if n.Encrypted {
		if err := a.meet(false); err != nil {
			return err
		}
	}
	if n.vteps != nil && slices.Equal(now, n.vteps) {
		return nil
	}
	if err := a.c.Kernel.Ensure(context.Background(), elements(overlay.VTEPs(a.port(), n.VNI, now), n.ID)...); err != nil {
		return err
	}
	var gone []netip.Addr
	for _, v := range n.vteps {
		if !slices.Contains(now, v) {
			gone = append(gone, v)
		}
	}
	n.vteps = slices.Grow(now, 1) // not nil: an empty one was told, too
	if len(gone) == 0 {
		return nil
	}
	return a.c.Kernel.Remove(elements(overlay.Members(n.VNI, gone), n.ID)...)
}

func elements(all []nft.Element, owner string) (objects []core.Object) {
	for _, e := range all {
		objects = append(objects, e.For(owner))
	}
	return objects
}

// Objects are what a network's link and the firewall ought to know now, for who compares that with the kernel.
func (a *Agent) Objects(id string) []core.Object {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.networks[id]
	if n == nil {
		return nil
	}
	peers := a.peers(n)
	peers.Keeper = n.keeper
	objects := append(elements(overlay.VTEPs(a.port(), n.VNI, n.vteps), id), peers)
	if n.Encrypted {
		objects = append(objects, a.device(), a.tunnelPeers())
	}
	for _, addr := range n.host {
		objects = append(objects, addr)
	}
	return objects
}

// A keeper tells the kernel of one network's peers when somebody else saw that it does not know them.
type keeper struct {
	a  *Agent
	id string
}

// TellPeers does it.
func (k *keeper) TellPeers() error {
	k.a.mu.Lock()
	defer k.a.mu.Unlock()
	n := k.a.networks[k.id]
	if n == nil {
		return nil
	}
	return k.a.c.Kernel.Ensure(context.Background(), k.a.peers(n))
}

func (a *Agent) peers(n *network) overlay.Peers {
	if a.fenced || n.shut {
		return overlay.Peers{Link: n.Link}
	}
	// A daemon that was killed may have told the kernel more than it has kept. Until etcd has been read that is not to
	// be taken back.
	all := overlay.Peers{Link: n.Link, Partial: !a.read(n)}
	peers := n.book.Peers()
	for _, addr := range slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare) {
		all.All = append(all.All, peer(peers[addr]))
	}
	return all
}

// read says whether all there is to know of a network has been read from etcd since this daemon started.
func (a *Agent) read(n *network) bool {
	return a.hosts.Status().Compares > 0 && a.members.Status().Compares > 0 && n.addrs.Status().Compares > 0
}
