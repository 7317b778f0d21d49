package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A Peer is an address of a network that is on another host, and how it is reached.
type Peer struct {
	Addr netip.Addr
	MAC  MAC
	VTEP netip.Addr // of the host it is on
}

// A PeerChange is a peer that came, went, or became another; the zero Peer: none.
type PeerChange struct{ Old, New Peer }

// A Book works out who the peers of a network are, for one host, from records as they change. It touches nothing. Only
// one goroutine at a time may use it.
type Book struct {
	self    string
	net     Network
	hosts   map[string]*Host
	members map[string]bool
	addrs   map[netip.Addr]*Address
	// byHost and byMAC find addresses by what a change may be about.
	byHost map[string]map[netip.Addr]bool
	byMAC  map[MAC]map[netip.Addr]bool
	// byKey finds hosts by their keys.
	byKey map[PublicKey]map[string]bool
	peers map[netip.Addr]Peer
	// refused is why an address that somebody has is no peer.
	refused map[netip.Addr]string
}

// NewBook makes the Book of a network on a host.
func NewBook(self string, net Network) *Book {
	return &Book{
		self: self, net: net, hosts: map[string]*Host{}, members: map[string]bool{}, addrs: map[netip.Addr]*Address{},
		byHost: map[string]map[netip.Addr]bool{}, byMAC: map[MAC]map[netip.Addr]bool{}, byKey: map[PublicKey]map[string]bool{}, peers: map[netip.Addr]Peer{}, refused: map[netip.Addr]string{},
	}
}

// Apply takes changes of records, of other networks too, and says what becomes of the peers.
func (b *Book) Apply(changes []Change) (diff []PeerChange) {
	touched := map[netip.Addr]bool{}
	for _, c := range changes {
		b.note(c, touched)
	}
	for a := range touched {
		if rec := b.addrs[a]; rec != nil { // whether a hardware address is one host's depends on all who have it
			maps.Copy(touched, b.byMAC[rec.MAC])
		}
	}
	for a := range touched {
		old := b.peers[a]
		now, why := b.judge(a)
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

// note takes one change in, and adds the addresses that it may be about.
func (b *Book) note(c Change, touched map[netip.Addr]bool) {
	r := c.New
	if r == nil {
		r = c.Old
	}
	switch r := r.(type) {
	case *Host:
		b.noteHost(r, c.New != nil, touched)
		if r.ID == b.self { // nobody else may have its address
			for a := range b.addrs {
				touched[a] = true
			}
		}
	case *Member:
		if r.Network != b.net.ID {
			return
		}
		b.members[r.Host] = c.New != nil
		maps.Copy(touched, b.byHost[r.Host])
	case *Address:
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

// noteHost takes in what a host has become. A key that it had, or has now, may be another's, too.
func (b *Book) noteHost(r *Host, there bool, touched map[netip.Addr]bool) {
	keys := []PublicKey{r.WireGuard}
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

// judge says which peer an address is, or why it is none although somebody has it.
func (b *Book) judge(a netip.Addr) (p Peer, why string) {
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
		return p, fmt.Sprintf("its hardware address %s is one of host %.12s", rec.MAC, owner)
	}
	at, why := b.reach(host)
	if why != "" {
		return p, why
	}
	return Peer{a, rec.MAC, at}, ""
}

// reach is where a host takes frames of the network, or why it does not: only one of several hosts of one key has it,
// the first by id, and none that has this host's.
func (b *Book) reach(h *Host) (at netip.Addr, why string) {
	if !b.net.Encrypted {
		return h.VTEP, ""
	}
	if h.WireGuard == "" {
		return at, fmt.Sprintf("its host %s cannot encrypt", h.Name)
	}
	for other := range b.byKey[h.WireGuard] {
		if other == b.self || other < h.ID {
			return at, fmt.Sprintf("its host %s has the key of host %.12s", h.Name, other)
		}
	}
	return h.Tunnel(), ""
}

// Clear are the names of hosts of an encrypted network that this one does not encrypt for, so that they are none of its
// peers.
func (b *Book) Clear() (names []string) {
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

// Tunnels are the other hosts of an encrypted network that this one encrypts for.
func (b *Book) Tunnels() (all []Host) {
	for host, on := range b.members {
		h := b.hosts[host]
		if !b.net.Encrypted || !on || h == nil || host == b.self {
			continue
		}
		if _, why := b.reach(h); why == "" {
			all = append(all, *h)
		}
	}
	slices.SortFunc(all, func(a, b Host) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func (b *Book) isGateway(a netip.Addr) bool {
	return slices.ContainsFunc(b.net.Subnets, func(s Subnet) bool { return s.Gateway == a })
}

func (b *Book) usable(a netip.Addr) bool {
	_, ok := b.net.Find(a)
	return ok
}

// ownerOf is the one host that a hardware address leads to, if several say that it is theirs: this one, or the first by
// id, so that all hosts think the same.
func (b *Book) ownerOf(mac MAC) (owner string) {
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

// Leads says whether any peer has a hardware address.
func (b *Book) Leads(mac MAC) bool {
	for a := range b.byMAC[mac] {
		if b.peers[a].MAC == mac {
			return true
		}
	}
	return false
}

// Peers are all of them.
func (b *Book) Peers() map[netip.Addr]Peer { return maps.Clone(b.peers) }

// Refused are the addresses that somebody has and that are no peers, and why.
func (b *Book) Refused() map[netip.Addr]string { return maps.Clone(b.refused) }

// VTEPs are where the other hosts take frames of the network: whoever else sends some is nobody. Nor is who says that
// he has this host's.
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
