// Package peers computes from etcd's records which addresses are on which other hosts. It neither calls etcd nor
// changes the kernel.
package peers

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netyard/cluster/record"
)

// A Peer is an address of a network on another host, and how to reach it.
type Peer struct {
	Addr netip.Addr
	MAC  record.MAC
	VTEP netip.Addr // of its host
}

// A PeerChange is a peer that was added, removed or changed; a zero Peer stands for none.
type PeerChange struct{ Old, New Peer }

// A Book computes the peers of a network, as one host sees them, from records as they change. It has no side effects.
// Only one goroutine at a time may use it.
type Book struct {
	self    string
	net     record.Network
	hosts   map[string]*record.Host
	members map[string]bool
	addrs   map[netip.Addr]*record.Address
	// byHost and byMAC find the addresses that a change of a host or of a MAC affects.
	byHost map[string]map[netip.Addr]bool
	byMAC  map[record.MAC]map[netip.Addr]bool
	// byKey finds hosts by their WireGuard keys.
	byKey map[record.PublicKey]map[string]bool
	peers map[netip.Addr]Peer
	// refused says why a claimed address is no peer.
	refused map[netip.Addr]string
}

// NewBook makes the Book of a network for the host self.
func NewBook(self string, net record.Network) *Book {
	return &Book{
		self: self, net: net,
		hosts: map[string]*record.Host{}, members: map[string]bool{}, addrs: map[netip.Addr]*record.Address{},
		byHost: map[string]map[netip.Addr]bool{}, byMAC: map[record.MAC]map[netip.Addr]bool{},
		byKey: map[record.PublicKey]map[string]bool{}, peers: map[netip.Addr]Peer{}, refused: map[netip.Addr]string{},
	}
}

// Apply applies changes of records and returns the resulting changes of peers. Changes of other networks are ignored.
func (b *Book) Apply(changes []record.Change) (diff []PeerChange) {
	touched := map[netip.Addr]bool{}
	for _, c := range changes {
		b.update(c, touched)
	}
	for a := range touched {
		if rec := b.addrs[a]; rec != nil { // which host owns a MAC depends on all addresses that have it
			maps.Copy(touched, b.byMAC[rec.MAC])
		}
	}
	for a := range touched {
		old := b.peers[a]
		now, why := b.resolve(a)
		delete(b.refused, a)
		if why != "" {
			b.refused[a] = why
		}
		if now == old {
			continue
		}
		if b.peers[a] = now; now == (Peer{}) {
			delete(b.peers, a)
		}
		diff = append(diff, PeerChange{old, now})
	}
	return diff
}

// update applies one change and adds the addresses that it affects to touched.
func (b *Book) update(c record.Change, touched map[netip.Addr]bool) {
	r := c.New
	if r == nil {
		r = c.Old
	}
	switch r := r.(type) {
	case *record.Host:
		b.updateHost(r, c.New != nil, touched)
		if r.ID == b.self { // no other host may have its address
			for a := range b.addrs {
				touched[a] = true
			}
		}
	case *record.Member:
		if r.Network != b.net.ID {
			return
		}
		b.members[r.Host] = c.New != nil
		maps.Copy(touched, b.byHost[r.Host])
	case *record.Address:
		if r.Network != b.net.ID {
			return
		}
		if old := b.addrs[r.Addr]; old != nil {
			maps.Copy(touched, b.byMAC[old.MAC])
			unindex(b.byHost, old.Host, r.Addr)
			unindex(b.byMAC, old.MAC, r.Addr)
			delete(b.addrs, r.Addr)
		}
		if c.New != nil {
			b.addrs[r.Addr] = r
			index(b.byHost, r.Host, r.Addr)
			index(b.byMAC, r.MAC, r.Addr)
		}
		touched[r.Addr] = true
	}
}

// updateHost applies the change of a host. Other hosts may have its old or new WireGuard key, so they are affected too.
func (b *Book) updateHost(r *record.Host, there bool, touched map[netip.Addr]bool) {
	keys := []record.PublicKey{r.WireGuard}
	if old := b.hosts[r.ID]; old != nil {
		keys = append(keys, old.WireGuard)
		unindex(b.byKey, old.WireGuard, r.ID)
		delete(b.hosts, r.ID)
	}
	if there {
		b.hosts[r.ID] = r
		index(b.byKey, r.WireGuard, r.ID)
	}
	maps.Copy(touched, b.byHost[r.ID])
	for _, k := range keys {
		for host := range b.byKey[k] {
			maps.Copy(touched, b.byHost[host])
		}
	}
}

func index[K, V comparable](in map[K]map[V]bool, key K, a V) {
	var none K
	if key == none {
		return
	}
	if in[key] == nil {
		in[key] = map[V]bool{}
	}
	in[key][a] = true
}

func unindex[K, V comparable](in map[K]map[V]bool, key K, a V) {
	if delete(in[key], a); len(in[key]) == 0 {
		delete(in, key)
	}
}

// resolve returns the peer at an address, or why there is none although the address is claimed.
func (b *Book) resolve(a netip.Addr) (p Peer, why string) {
	rec := b.addrs[a]
	if rec == nil || rec.Host == b.self || rec.MAC == "" {
		return p, ""
	}
	host := b.hosts[rec.Host]
	switch {
	case host == nil || !b.members[rec.Host]:
		return p, fmt.Sprintf("its host %.12s is not on the network", rec.Host)
	case b.isGateway(a):
		return p, "it is the gateway of every host"
	case !b.usable(a):
		return p, "it is in no subnet of the network"
	}
	if self := b.hosts[b.self]; self != nil && self.VTEP == host.VTEP {
		return p, fmt.Sprintf("its host %s has this host's address %s", host.Name, host.VTEP)
	}
	if owner := b.ownerOf(rec.MAC); owner != rec.Host {
		return p, fmt.Sprintf("its MAC address %s belongs to host %.12s", rec.MAC, owner)
	}
	at, why := b.reach(host)
	if why != "" {
		return p, why
	}
	return Peer{a, rec.MAC, at}, ""
}

// reach returns the address at which a host receives frames of the network, or why it receives none. If several hosts
// have the same WireGuard key, only the first by ID receives frames. A host with this host's key receives none.
func (b *Book) reach(h *record.Host) (at netip.Addr, why string) {
	if !b.net.Encrypted {
		return h.VTEP, ""
	}
	if h.WireGuard == "" {
		return at, fmt.Sprintf("its host %s cannot encrypt", h.Name)
	}
	for other := range b.byKey[h.WireGuard] {
		if other == b.self || other < h.ID {
			return at, fmt.Sprintf("its host %s has the same WireGuard key as host %.12s", h.Name, other)
		}
	}
	return h.Tunnel(), ""
}

// Unencrypted returns the names of those hosts of an encrypted network that this host cannot encrypt for and that are
// therefore no peers.
func (b *Book) Unencrypted() (names []string) {
	for host, on := range b.members {
		h := b.hosts[host]
		if !on || h == nil || host == b.self {
			continue
		}
		if _, why := b.reach(h); why != "" {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Tunnels returns the other hosts of an encrypted network that this host encrypts for.
func (b *Book) Tunnels() (all []record.Host) {
	for host, on := range b.members {
		h := b.hosts[host]
		if !b.net.Encrypted || !on || h == nil || host == b.self {
			continue
		}
		if _, why := b.reach(h); why == "" {
			all = append(all, *h)
		}
	}
	slices.SortFunc(all, func(a, b record.Host) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func (b *Book) isGateway(a netip.Addr) bool {
	return slices.ContainsFunc(b.net.Subnets, func(s record.Subnet) bool { return s.Gateway == a })
}

func (b *Book) usable(a netip.Addr) bool {
	_, ok := b.net.Find(a)
	return ok
}

// ownerOf returns the host that owns a MAC address. If several hosts claim it, that is this host, or else the first
// member by ID, so that all other hosts agree.
func (b *Book) ownerOf(mac record.MAC) (owner string) {
	for a := range b.byMAC[mac] {
		host := b.addrs[a].Host
		if host == b.self {
			return host
		}
		if b.members[host] && (owner == "" || host < owner) {
			owner = host
		}
	}
	return owner
}

// HostOf returns the name of the host that has a peer with a MAC address; empty: none has.
func (b *Book) HostOf(mac record.MAC) (name string) {
	for a := range b.byMAC[mac] {
		if b.peers[a].MAC == mac {
			return b.hosts[b.addrs[a].Host].Name
		}
	}
	return ""
}

// Peers returns all peers of the network by address.
func (b *Book) Peers() map[netip.Addr]Peer { return maps.Clone(b.peers) }

// Rejected returns the claimed addresses that are no peers, and why.
func (b *Book) Rejected() map[netip.Addr]string { return maps.Clone(b.refused) }

// VTEPs returns the addresses at which the other hosts receive frames of the network. Frames from any other source are
// dropped. A host that claims this host's address is left out.
func (b *Book) VTEPs() (all []netip.Addr) {
	self := b.hosts[b.self]
	for host, on := range b.members {
		h := b.hosts[host]
		if !on || h == nil || host == b.self || self != nil && h.VTEP == self.VTEP {
			continue
		}
		if at, why := b.reach(h); why == "" {
			all = append(all, at)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}
