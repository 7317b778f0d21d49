package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Peer is an address on another host of a network.
type Peer struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
	VTEP netip.Addr // of the host that has the address
}

// ChangePeers changes the entries of a VXLAN device: it sets those of new and changed peers, and removes those of
// addresses and hardware addresses that no peer has any more. It needs few system calls; one call for each entry takes
// six to thirteen times as long.
func ChangePeers(
	ctx context.Context, k *core.Handle, link string, set []Peer, goneAddrs []netip.Addr, goneMACs []net.HardwareAddr,
) error {
	l, err := k.NL.LinkByName(link)
	if err != nil {
		return fmt.Errorf("change peers of %s: %w", link, err)
	}
	index := l.Attrs().Index
	var b batch
	forwards := map[core.MAC]netip.Addr{}
	for _, p := range set {
		if have, ok := forwards[core.MACOf(p.MAC)]; !ok || have != p.VTEP {
			b.add(unix.RTM_NEWNEIGH, forwarding(index, p.MAC, p.VTEP), p.MAC.String())
			forwards[core.MACOf(p.MAC)] = p.VTEP
		}
		b.add(unix.RTM_NEWNEIGH, neighbour(index, p.Addr, p.MAC), p.Addr.String())
	}
	for _, a := range goneAddrs {
		b.add(unix.RTM_DELNEIGH, neighbour(index, a, nil), a.String())
	}
	for _, m := range goneMACs {
		b.add(unix.RTM_DELNEIGH, forwarding(index, m, netip.Addr{}), m.String())
	}
	if err := b.send(ctx, k); err != nil {
		return fmt.Errorf("change peers of %s: %w", link, err)
	}
	return nil
}

// forwarding returns the forwarding entry that sends frames for a hardware address to a host.
func forwarding(link int, m net.HardwareAddr, vtep netip.Addr) *netlink.Neigh {
	n := &netlink.Neigh{
		LinkIndex: link, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, HardwareAddr: m,
	}
	if vtep.IsValid() {
		n.IP = vtep.AsSlice()
	}
	return n
}

// neighbour returns the neighbour entry by which the device answers for an address.
func neighbour(link int, a netip.Addr, m net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link, Family: core.Family(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: m,
	}
}

// Peers are all peers of a VXLAN device: it has entries for them and for nobody else.
type Peers struct {
	Link string
	All  []Peer
	// Partial: there may be more peers; their entries are left alone.
	Partial bool
	// Keeper, if set, gives the device its peers as they are at that moment, instead of All. Peers change during a
	// comparison, and a repair from an older list would undo later changes.
	Keeper PeerKeeper
}

// A PeerKeeper knows the current peers of a device.
type PeerKeeper interface {
	// TellPeers gives the device all of them.
	TellPeers() error
}

// String names the device.
func (p Peers) String() string { return "peers of " + p.Link }

func (p Peers) Ensure(k *core.Handle) error {
	if p.Keeper != nil {
		return p.Keeper.TellPeers()
	}
	link, err := k.NL.LinkByName(p.Link)
	if err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	d, err := p.compare(k, link.Attrs().Index)
	if err != nil {
		return err
	}
	return ChangePeers(context.Background(), k, p.Link, d.set, d.goneAddrs, d.goneMACs)
}

func (Peers) Remove(*core.Handle) error { return nil } // they are removed with the device

func (p Peers) Check(s *core.View) []string {
	link := s.Link(p.Link)
	if link == nil {
		return nil // the link reports that it is missing
	}
	d, err := p.compare(s.Handle, link.Attrs().Index)
	if err != nil {
		return []string{err.Error()}
	}
	var faults []string
	if n := len(d.set); n > 0 {
		faults = append(faults, fmt.Sprintf("%s: %d missing or different, including %s", p, n, d.set[0].Addr))
	}
	if n := len(d.goneAddrs) + len(d.goneMACs); n > 0 {
		faults = append(faults, fmt.Sprintf("%s: %d entries of no peer", p, n))
	}
	return faults
}

// A peerDiff is how the entries of a device have to change.
type peerDiff struct {
	set       []Peer
	goneAddrs []netip.Addr
	goneMACs  []net.HardwareAddr
}

// compare returns how the entries of a device differ from its peers.
func (p Peers) compare(k *core.Handle, link int) (d peerDiff, err error) {
	forwards, err := forwards(k, link)
	if err != nil {
		return d, err
	}
	neighbours := map[netip.Addr]core.MAC{}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := core.Retry(func() ([]netlink.Neigh, error) { return k.NL.NeighList(link, f) })
		if err != nil {
			return d, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 {
				neighbours[a.Unmap()] = core.MACOf(n.HardwareAddr)
			}
		}
	}
	for _, peer := range p.All {
		m := core.MACOf(peer.MAC)
		if forwards[m] != peer.VTEP || neighbours[peer.Addr] != m {
			d.set = append(d.set, peer)
		}
	}
	for _, peer := range p.All {
		delete(forwards, core.MACOf(peer.MAC))
		delete(neighbours, peer.Addr)
	}
	if p.Partial {
		return d, nil
	}
	for m := range forwards {
		d.goneMACs = append(d.goneMACs, net.HardwareAddr(m[:]))
	}
	for a := range neighbours {
		d.goneAddrs = append(d.goneAddrs, a)
	}
	slices.SortFunc(d.goneAddrs, netip.Addr.Compare)
	slices.SortFunc(d.goneMACs, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
	return d, nil
}

// forwards returns a VXLAN device's own forwarding entries: the VTEP of each hardware address.
func forwards(k *core.Handle, link int) (map[core.MAC]netip.Addr, error) {
	list, err := core.Retry(func() ([]netlink.Neigh, error) { return k.NL.NeighList(link, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	all := map[core.MAC]netip.Addr{}
	for _, n := range list {
		if n.Flags&netlink.NTF_SELF != 0 && len(n.HardwareAddr) == len(core.MAC{}) {
			a, _ := netip.AddrFromSlice(n.IP)
			all[core.MACOf(n.HardwareAddr)] = a.Unmap()
		}
	}
	return all, nil
}

// A batch is a list of changes of entries that go to the kernel many at a time.
type batch struct {
	msgs  [][]byte
	names []string
}

func (b *batch) add(verb uint16, n *netlink.Neigh, name string) {
	flags := 0
	if verb == unix.RTM_NEWNEIGH {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	req := nl.NewNetlinkRequest(int(verb), flags)
	req.AddData(&netlink.Ndmsg{
		Family: uint8(n.Family), Index: uint32(n.LinkIndex), //nolint:gosec // as wide as the kernel's
		State: uint16(n.State), Flags: uint8(n.Flags), //nolint:gosec // the same
	})
	if n.IP != nil {
		req.AddData(nl.NewRtAttr(netlink.NDA_DST, n.IP))
	}
	if n.HardwareAddr != nil {
		req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, n.HardwareAddr))
	}
	raw := req.Serialize()
	b.msgs, b.names = append(b.msgs, raw), append(b.names, name)
}

const (
	// perSend is how many messages go in one system call; each has less than a hundred bytes.
	perSend = 256
	// answerBuffer is a receive buffer with room for an error about each of them, in bytes.
	answerBuffer = 4 << 20
)

// send sends all messages. It goes on after an error and returns the first one. To remove what does not exist is no
// error.
func (b *batch) send(ctx context.Context, k *core.Handle) error {
	if len(b.msgs) == 0 {
		return nil
	}
	fd := -1
	err := k.Inside(func() (err error) { // a socket belongs to the namespace it was made in
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is buffered
	limit := unix.NsecToTimeval(core.NetlinkTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return fmt.Errorf("set netlink timeouts: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, answerBuffer); err != nil {
		return fmt.Errorf("enlarge netlink's receive buffer: %w", err)
	}
	var first error
	for from := 0; from < len(b.msgs) && ctx.Err() == nil; from += perSend {
		if err := b.sendRange(fd, from, min(from+perSend, len(b.msgs))); err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	return ctx.Err()
}

// sendRange sends the messages from index from up to index to, which is not included. Only the last one asks for an
// acknowledgement: by then the kernel has processed all of them.
func (b *batch) sendRange(fd, from, to int) error {
	const flagsAt, seqAt = 6, 8 // struct nlmsghdr
	var all []byte
	for i := from; i < to; i++ {
		msg := b.msgs[i]
		binary.NativeEndian.PutUint32(msg[seqAt:], uint32(i)) //nolint:gosec // a number of messages
		if i == to-1 {
			flags := binary.NativeEndian.Uint16(msg[flagsAt:]) | unix.NLM_F_ACK
			binary.NativeEndian.PutUint16(msg[flagsAt:], flags)
		}
		all = append(all, msg...)
		for len(all)%unix.NLMSG_ALIGNTO != 0 {
			all = append(all, 0)
		}
	}
	if err := unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	return b.readAnswers(fd, to-1)
}

// readAnswers reads the kernel's answers up to that of the last message, and returns the first error.
func (b *batch) readAnswers(fd, last int) (first error) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from the kernel: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("parse the kernel's answer: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
				continue
			}
			number := int(m.Header.Seq)
			code := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data))) //nolint:gosec // a negative errno
			if code != 0 && code != unix.ENOENT && first == nil && number < len(b.names) {
				first = fmt.Errorf("%s: %w", b.names[number], code)
			}
			if number == last {
				return first
			}
		}
	}
}
