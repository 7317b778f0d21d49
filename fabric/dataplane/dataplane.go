// Package dataplane keeps in the kernel what networks across hosts need there because of other hosts: the peers of the
// VXLAN device, the VTEPs from which frames are accepted, and the host's own addresses. It works out what that is from
// records, and knows neither etcd nor the database.
package dataplane

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"netyard/cluster/peers"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
)

// Kernel is what a Network does to the kernel.
type Kernel interface {
	Ensure(ctx context.Context, objects ...core.Object) error
	Remove(objects ...core.Object) error
	// ChangePeers adds or changes peers of a VXLAN device, and removes others by their addresses and MAC addresses.
	ChangePeers(
		ctx context.Context, link string, set []overlay.Peer, gone []netip.Addr, unused []net.HardwareAddr,
	) error
}

// Config is what a Network needs.
type Config struct {
	Log    *slog.Logger
	Kernel Kernel
	// Host is this host's ID.
	Host string
	// Port returns the UDP port of VXLAN.
	Port func() uint16
	// Read says whether all records of the network have been read from etcd since this daemon started.
	Read func() bool
	// Tunnel gives the WireGuard device its peers. It is called for an encrypted network before frames are accepted.
	Tunnel func() error
	// HostAddrs returns the host's own addresses on the network.
	HostAddrs func() ([]netip.Prefix, error)
	// Retry is called when Update is to be called again.
	Retry func()
}

// Links are the links of a network: its VXLAN device, the bridge that this is a port of, and the alias of both.
type Links struct{ VXLAN, Bridge, Alias string }

// A Network is one network in the kernel. All methods can be called at any time. Those that change the kernel wait for
// each other; the others never wait for the kernel.
type Network struct {
	c   Config
	net record.Network

	// turn is held while the kernel is changed, so that changes get there in order. It is taken before mu.
	turn sync.Mutex

	// mu is never held while the kernel is changed or a function of Config is called.
	mu    sync.Mutex
	links Links
	book  *peers.Book
	// pending are the changes of peers that the kernel was not given yet, by address.
	pending map[netip.Addr]peers.PeerChange
	// vteps are the VTEPs from which frames are accepted; nil: the kernel was not given any yet. host are the host's
	// own addresses in the kernel. Both change only under turn.
	vteps []netip.Addr
	host  []core.Addr
	// asked counts why the kernel may lack something, so that it must be given everything again; given is what asked
	// was when that was last done.
	asked, given uint64
	// complete says that the kernel was given everything after everything had been read from etcd.
	complete bool
	// forgotten says that this host was removed from the cluster, and shut that all traffic is blocked until it is
	// known which of its former addresses are still its own.
	forgotten, shut bool
	// removed says that the network is not on this host any more.
	removed bool
}

// New makes a Network. The kernel is not changed before Apply or Update; forgotten says that this host was removed from
// the cluster.
func New(c Config, n record.Network, l Links, forgotten bool) *Network {
	return &Network{
		c: c, net: n, links: l, book: peers.NewBook(c.Host, n), pending: map[netip.Addr]peers.PeerChange{}, asked: 1,
		forgotten: forgotten,
	}
}

// Relink says that the network has other links.
func (n *Network) Relink(l Links) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = l
}

// Note applies changes of records. The kernel is given them at the next Update.
func (n *Network) Note(cs []record.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.note(cs)
	n.asked++
}

func (n *Network) note(cs []record.Change) {
	for _, d := range n.book.Apply(cs) {
		addr := d.New.Addr
		if !addr.IsValid() {
			addr = d.Old.Addr
		}
		if before, ok := n.pending[addr]; ok {
			d.Old = before.Old // that is what the kernel has
		}
		n.pending[addr] = d
	}
}

// Apply applies changes of records and gives the kernel the resulting changes.
func (n *Network) Apply(cs []record.Change) {
	n.mu.Lock()
	n.note(cs)
	n.mu.Unlock()

	n.turn.Lock()
	defer n.turn.Unlock()
	n.mu.Lock()
	skip := n.removed || n.forgotten || n.shut
	n.mu.Unlock()
	if skip { // Update does it when traffic is allowed again
		return
	}
	err := n.setVTEPs()
	if err == nil {
		err = n.changePeers()
	}
	if err != nil { // the link may not exist yet
		n.c.Log.Debug("kernel peers not updated", "network", n.net.Name, "network_id", n.net.ID, "err", err)
		n.Unsure()
	}
}

// changePeers gives the kernel the pending changes, unless it must be given everything anyway. If hosts have changed
// since setVTEPs, the changes wait for the Apply that brought these. The caller holds turn.
func (n *Network) changePeers() error {
	n.mu.Lock()
	if n.asked != n.given || len(n.pending) == 0 || !n.accepted() {
		n.mu.Unlock()
		return nil
	}
	set, gone, unused := n.split()
	clear(n.pending)
	link := n.links.VXLAN
	n.mu.Unlock()
	return n.c.Kernel.ChangePeers(context.Background(), link, set, gone, unused)
}

// split returns the peers that were added or changed, the addresses that were removed, and the MAC addresses that no
// peer has any more. The caller holds mu.
func (n *Network) split() (set []overlay.Peer, gone []netip.Addr, unused []net.HardwareAddr) {
	lost := map[record.MAC]bool{}
	for _, d := range n.pending {
		switch none := (peers.Peer{}); {
		case d.New != none:
			set = append(set, peer(d.New))
		case d.Old != none:
			gone = append(gone, d.Old.Addr)
		}
		if d.Old != (peers.Peer{}) && n.book.HostOf(d.Old.MAC) == "" {
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

// setVTEPs makes the firewall accept frames of a network from its current members, and from no other host. The caller
// holds turn.
func (n *Network) setVTEPs() error {
	n.mu.Lock()
	now, was := n.members(), n.vteps
	n.mu.Unlock()
	if n.net.Encrypted {
		if err := n.c.Tunnel(); err != nil {
			return err
		}
	}
	if was != nil && slices.Equal(now, was) {
		return nil
	}
	vteps := Elements(overlay.VTEPElements(n.c.Port(), n.net.VNI, now), n.net.ID)
	err := n.c.Kernel.Ensure(context.Background(), vteps...)
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(was), func(v netip.Addr) bool { return slices.Contains(now, v) })
	n.accepts(slices.Concat(now, gone))
	if len(gone) == 0 {
		return nil
	}
	if err := n.c.Kernel.Remove(Elements(overlay.MemberElements(n.net.VNI, gone), n.net.ID)...); err != nil {
		return err
	}
	n.accepts(now)
	return nil
}

// members returns the VTEPs from which the kernel should accept frames now. The caller holds mu.
func (n *Network) members() []netip.Addr {
	if n.forgotten || n.shut {
		return nil
	}
	return n.book.VTEPs()
}

// accepted says whether these are the ones from which the kernel accepts frames. The caller holds mu.
func (n *Network) accepted() bool { return n.vteps != nil && slices.Equal(n.members(), n.vteps) }

// accepts records the VTEPs from which the kernel accepts frames. The caller holds turn.
func (n *Network) accepts(vteps []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.vteps = slices.Grow(vteps, 1) // not nil, although it may be empty
}

// Elements returns elements of sets as objects that belong to an owner.
func Elements(all []nft.Element, owner string) (objects []core.Object) {
	for _, e := range all {
		objects = append(objects, e.For(owner))
	}
	return objects
}

// Unsure says that the kernel may lack something, so that it is given everything again.
func (n *Network) Unsure() {
	n.mu.Lock()
	n.asked++
	n.mu.Unlock()
	n.c.Retry()
}

// Lacking says whether Update has something to do.
func (n *Network) Lacking() bool {
	read := n.c.Read()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked != n.given || !n.complete && read
}

// Update gives the kernel everything.
func (n *Network) Update() error {
	n.turn.Lock()
	defer n.turn.Unlock()
	read := n.c.Read()
	n.mu.Lock()
	asked, removed := n.asked, n.removed
	n.mu.Unlock()
	if removed {
		return nil
	}
	err := n.setPeers(read)
	if err == nil {
		err = n.setHostAddrs()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.asked++
		return err
	}
	n.given, n.complete = asked, read
	return nil
}

// setHostAddrs sets the host's own addresses of a network on its bridge, and removes former ones. The caller holds
// turn.
func (n *Network) setHostAddrs() error {
	prefixes, err := n.c.HostAddrs()
	if err != nil {
		return err
	}
	n.mu.Lock()
	l, was := n.links, n.host
	n.mu.Unlock()
	var now []core.Addr
	for _, p := range prefixes {
		now = append(now, core.Addr{Link: l.Bridge, Alias: l.Alias, Prefix: p})
	}
	for _, old := range was {
		if !slices.Contains(now, old) {
			if err := n.c.Kernel.Remove(old); err != nil {
				return err
			}
		}
	}
	n.mu.Lock()
	n.host = now
	n.mu.Unlock()
	for _, addr := range now {
		if err := n.c.Kernel.Ensure(context.Background(), addr); err != nil {
			return err
		}
	}
	return nil
}

// A hostAddr is an address of the host's own, to be compared with the kernel. The host's addresses change during a
// comparison, and a repair from an older list would bring back one that is another host's by then.
type hostAddr struct {
	core.Addr
	keeper *Network
}

// Ensure sets the addresses that the host has now.
func (a hostAddr) Ensure(*core.Handle) error { return a.keeper.tellHostAddrs() }

// isRemoved reports whether the network was removed from this host.
func (n *Network) isRemoved() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.removed
}

// tellHostAddrs sets the host's own addresses as they are now.
func (n *Network) tellHostAddrs() error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if n.isRemoved() {
		return nil
	}
	return n.setHostAddrs()
}

// TellPeers gives the kernel the current peers; a repair calls it when the kernel lacks some, see overlay.PeerKeeper.
func (n *Network) TellPeers() error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if n.isRemoved() {
		return nil
	}
	err := n.setPeers(n.c.Read())
	if err != nil {
		n.Unsure()
	}
	return err
}

// setPeers gives the kernel all VTEPs, and then all peers. A host that joins in between brings peers whose VTEP is not
// accepted yet, so that the VTEPs are given again. The caller holds turn.
func (n *Network) setPeers(read bool) error {
	for {
		if err := n.setVTEPs(); err != nil {
			return err
		}
		if all, ok := n.take(read); ok {
			return n.c.Kernel.Ensure(context.Background(), all)
		}
	}
}

// take returns all peers to give to the kernel, and clears the pending changes, unless VTEPs have changed since the
// kernel was given them. The caller holds turn.
func (n *Network) take(read bool) (all overlay.Peers, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.accepted() {
		return all, false
	}
	clear(n.pending)
	return n.peers(read), true
}

// peers returns the peers that the kernel should know. A daemon that was killed may have given the kernel more peers
// than it had saved: until etcd has been read, those must not be removed. The caller holds mu.
func (n *Network) peers(read bool) overlay.Peers {
	if n.forgotten || n.shut {
		return overlay.Peers{Link: n.links.VXLAN}
	}
	all := overlay.Peers{Link: n.links.VXLAN, Partial: !read}
	found := n.book.Peers()
	for _, addr := range slices.SortedFunc(maps.Keys(found), netip.Addr.Compare) {
		all.All = append(all.All, peer(found[addr]))
	}
	return all
}

// Objects returns what the links and the firewall should have now, to be compared with the kernel.
func (n *Network) Objects() []core.Object {
	port, read := n.c.Port(), n.c.Read()
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.peers(read)
	all.Keeper = n
	objects := append(Elements(overlay.VTEPElements(port, n.net.VNI, n.vteps), n.net.ID), all)
	for _, addr := range n.host {
		objects = append(objects, hostAddr{Addr: addr, keeper: n})
	}
	return objects
}

// Block blocks all traffic until Reopen, at the next Update. forgotten says whether this host was removed from the
// cluster; then Reopen alone does not allow it again.
func (n *Network) Block(forgotten bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgotten, n.shut = forgotten, true
	n.asked++
}

// Shut blocks all traffic until Reopen, at once.
func (n *Network) Shut() error {
	n.mu.Lock()
	n.shut = true
	n.asked++
	n.mu.Unlock()
	return n.Update()
}

// Reopen allows traffic again, at the next Update.
func (n *Network) Reopen() {
	n.mu.Lock()
	was := n.shut
	if n.shut = false; was {
		n.asked++
	}
	n.mu.Unlock()
	if was {
		n.c.Retry()
	}
}

// Remove takes the network's elements out of the firewall. Nothing else changes the kernel after it.
func (n *Network) Remove() error {
	n.turn.Lock()
	defer n.turn.Unlock()
	n.mu.Lock()
	n.removed = true
	vteps := n.vteps
	n.mu.Unlock()
	return n.c.Kernel.Remove(Elements(overlay.VTEPElements(n.c.Port(), n.net.VNI, vteps), n.net.ID)...)
}

// Status is the state of a Network.
type Status struct {
	// Peers counts the peers; Refused are claimed addresses that are no peers, and why.
	Peers   int
	Refused map[netip.Addr]string
	// Unsure says that the kernel may lack something, and Shut that all traffic is blocked for a moment.
	Unsure, Shut bool
	// Left are hosts of an encrypted network that cannot encrypt.
	Left []string
}

// Status returns the state of the Network.
func (n *Network) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Status{
		Peers: len(n.book.Peers()), Refused: n.book.Rejected(), Unsure: n.asked != n.given, Shut: n.shut,
		Left: n.book.Unencrypted(),
	}
}

// HostOf returns the name of the other host that has a container with a MAC address on the network; empty: none has.
func (n *Network) HostOf(mac record.MAC) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.HostOf(mac)
}

// Peers returns all peers by address.
func (n *Network) Peers() map[netip.Addr]peers.Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Peers()
}

// Tunnels returns the other hosts of an encrypted network that this host encrypts for.
func (n *Network) Tunnels() []record.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Tunnels()
}
