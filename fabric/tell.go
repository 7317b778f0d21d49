package fabric

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"netyard/cluster/peers"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
)

// applyHostChanges applies changes of hosts and memberships to all networks.
func (a *Agent) applyHostChanges(cs []record.Change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.networks {
		a.applyPeerChanges(n, n.book.Apply(cs))
	}
}

// applyAddressChanges applies changes of addresses of one network.
func (a *Agent) applyAddressChanges(n *network, cs []record.Change) {
	a.names.apply(n.ID, a.self, cs)
	a.mu.Lock()
	defer a.mu.Unlock()
	n.noteCooldown(cs, time.Now())
	a.applyPeerChanges(n, n.book.Apply(cs))
	if slices.ContainsFunc(cs, a.isOwn) {
		a.wakeUp()
	}
}

// isOwn says whether a change is about an address of this host.
func (a *Agent) isOwn(c record.Change) bool {
	for _, r := range []record.Record{c.Old, c.New} {
		if addr, ok := r.(*record.Address); ok && addr.Host == a.self {
			return true
		}
	}
	return false
}

// applyPeerChanges applies changes of a network's peers to the kernel. The caller holds the lock, which keeps them in
// order.
func (a *Agent) applyPeerChanges(n *network, diff []peers.PeerChange) {
	if a.fenced || n.shut {
		return
	}
	err := a.setVTEPs(n)
	if err == nil && len(diff) > 0 && !n.unsure {
		set, gone, unused := n.splitChanges(diff)
		err = overlay.ChangePeers(context.Background(), a.c.Kernel.Handle, n.Link, set, gone, unused)
	}
	if err != nil { // the link may not exist yet
		a.c.Log.Debug("update of peers in the kernel failed", "network", n.Name, "id", n.ID, "err", err)
		n.unsure = true
		a.wakeUp()
	}
}

// splitChanges returns the peers that were added or changed, the addresses that were removed, and the MAC addresses
// that no peer has any more.
func (n *network) splitChanges(diff []peers.PeerChange) (
	set []overlay.Peer, gone []netip.Addr, unused []net.HardwareAddr,
) {
	lost := map[record.MAC]bool{}
	for _, d := range diff {
		if d.New != (peers.Peer{}) {
			set = append(set, peer(d.New))
		} else {
			gone = append(gone, d.Old.Addr)
		}
		if d.Old != (peers.Peer{}) && !n.book.HasMAC(d.Old.MAC) {
			lost[d.Old.MAC] = true
		}
	}
	for m := range lost {
		unused = append(unused, m.Hardware())
	}
	return set, gone, unused
}

func peer(p peers.Peer) overlay.Peer {
	return overlay.Peer{Addr: p.Addr, MAC: p.MAC.Hardware(), VTEP: p.VTEP}
}

// setVTEPs makes the firewall accept frames of a network from its current members, and from no other host.
func (a *Agent) setVTEPs(n *network) error {
	now := n.book.VTEPs()
	if a.fenced || n.shut {
		now = nil
	}
	if n.Encrypted {
		if err := a.updateTunnelPeers(false); err != nil {
			return err
		}
	}
	if n.vteps != nil && slices.Equal(now, n.vteps) {
		return nil
	}
	if err := a.c.Kernel.Ensure(context.Background(), elements(overlay.VTEPs(a.port(), n.VNI, now),
		n.ID)...); err != nil {
		return err
	}
	var gone []netip.Addr
	for _, v := range n.vteps {
		if !slices.Contains(now, v) {
			gone = append(gone, v)
		}
	}
	n.vteps = slices.Grow(now, 1) // not nil, although it may be empty
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

// Objects returns what a network's link and the firewall should have now, to be compared with the kernel.
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

// A keeper gives the kernel the current peers of one network; a repair calls it when the kernel lacks some.
type keeper struct {
	a  *Agent
	id string
}

// TellPeers gives the kernel the current peers.
func (k *keeper) TellPeers() error {
	k.a.mu.Lock()
	defer k.a.mu.Unlock()
	n := k.a.networks[k.id]
	if n == nil {
		return nil
	}
	return k.a.c.Kernel.Ensure(context.Background(), k.a.peers(n))
}

// peers returns the peers that the kernel should know of a network.
func (a *Agent) peers(n *network) overlay.Peers {
	if a.fenced || n.shut {
		return overlay.Peers{Link: n.Link}
	}
	// A daemon that was killed may have given the kernel more peers than it had saved. Until etcd has been read, those
	// must not be removed.
	all := overlay.Peers{Link: n.Link, Partial: !a.read(n)}
	peers := n.book.Peers()
	for _, addr := range slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare) {
		all.All = append(all.All, peer(peers[addr]))
	}
	return all
}

// read says whether all records of a network have been read from etcd since this daemon started.
func (a *Agent) read(n *network) bool {
	return a.hosts.Status().Compares > 0 && a.members.Status().Compares > 0 && n.addrs.Status().Compares > 0
}
