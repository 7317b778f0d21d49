package dhcp

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/lan"
)

const (
	clientPort, serverPort = 68, 67 // RFC 2131, 4.1

	etherHeader, ipHeader, udpHeader = 14, 20, 8
	maxFrame                         = 64 << 10
)

// A Wire sends and receives the frames of a DHCP client on a link that has no address yet. It works below the host's
// IP, and so also below its firewall (packet(7)).
type Wire struct {
	ns    netns.NsHandle // of the link
	index int
	mac   net.HardwareAddr
	ip    *os.File // receives frames for the client's port
	// NextHop is the hardware address that Unicast sends to. If nil, Unicast sends to the Ethernet broadcast address:
	// only one host on the link has the IP address.
	NextHop net.HardwareAddr
	// unplug removes the link if it was made for the Wire; nil if it was not.
	unplug func() error
}

// openWire opens a Wire on a link of the namespace behind ns, which the Wire owns from then on.
func openWire(ns netns.NsHandle, index int, mac net.HardwareAddr) (*Wire, error) {
	w := &Wire{ns: ns, index: index, mac: mac}
	var err error
	if w.ip, err = w.listen(unix.ETH_P_IP, toClientPort()); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return w, nil
}

// listen opens a packet socket for the frames of one protocol that pass a filter.
func (w *Wire) listen(protocol uint16, filter []unix.SockFilter) (file *os.File, err error) {
	err = core.Inside(int(w.ns), func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "packet socket")
		if len(filter) > 0 {
			prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} //nolint:gosec // a few instructions
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
				return err
			}
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: w.index})
	})
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	return file, nil
}

// swap converts between the byte order of the host and that of the network.
func swap(v uint16) uint16 { return v<<8 | v>>8 }

// toClientPort is a filter that passes UDP datagrams for port 68, but no later fragments (net/core/filter.c; bpf(4)
// explains the language).
func toClientPort() []unix.SockFilter {
	const protocolAt, fragmentAt, portAt = etherHeader + 9, etherHeader + 6, etherHeader + 2
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: protocolAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: 6},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: fragmentAt},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x1fff, Jt: 4},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: etherHeader},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: portAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: clientPort, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: maxFrame},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// MAC returns the hardware address of the link.
func (w *Wire) MAC() net.HardwareAddr { return w.mac }

// Close closes the socket, and removes the link if it was made for the Wire.
func (w *Wire) Close() error {
	err := w.ip.Close()
	if w.unplug != nil {
		err = errors.Join(err, w.unplug())
	}
	return errors.Join(err, w.ns.Close())
}

// Broadcast sends a message to every DHCP server on the link.
func (w *Wire) Broadcast(msg []byte) error {
	return w.Send(msg, netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), broadcastMAC())
}

// Unicast sends a message to one DHCP server, via NextHop.
func (w *Wire) Unicast(msg []byte, from, to netip.Addr) error {
	hop := w.NextHop
	if hop == nil {
		hop = broadcastMAC()
	}
	return w.Send(msg, from, to, hop)
}

func broadcastMAC() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Send sends a message to an IP address, in a frame to a hardware address.
func (w *Wire) Send(msg []byte, from, to netip.Addr, hop net.HardwareAddr) error {
	if _, err := w.ip.Write(append(w.frame(unix.ETH_P_IP, hop), datagram(msg, from, to)...)); err != nil {
		return fmt.Errorf("send DHCP message to %s: %w", to, err)
	}
	return nil
}

// frame returns the header of an Ethernet frame, with room for the rest.
func (w *Wire) frame(protocol uint16, to net.HardwareAddr) []byte {
	f := append(append(make([]byte, 0, maxFrame), to...), w.mac...)
	return binary.BigEndian.AppendUint16(f, protocol)
}

// datagram returns an IP packet with a UDP datagram from a DHCP client to a server (RFC 791, RFC 768).
func datagram(msg []byte, from, to netip.Addr) []byte {
	const version, ttl = 0x45, 64
	size := ipHeader + udpHeader + len(msg)
	p := make([]byte, ipHeader+udpHeader, size)
	p[0], p[8], p[9] = version, ttl, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(size)) //nolint:gosec // a DHCP message is small
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipHeader]))
	u := p[ipHeader:]
	binary.BigEndian.PutUint16(u[0:], clientPort)
	binary.BigEndian.PutUint16(u[2:], serverPort)
	binary.BigEndian.PutUint16(u[4:], uint16(udpHeader+len(msg))) //nolint:gosec // likewise
	p = append(p, msg...)
	pseudo := append(append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_UDP), p[ipHeader+4:ipHeader+6]...)
	sum := checksum(append(pseudo, p[ipHeader:]...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[ipHeader+6:], sum)
	return p
}

// checksum returns the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum) //nolint:gosec // folded
}

// Receive waits for the next message to a DHCP client. It does not verify checksums: a sender on this machine leaves
// them to its network card.
func (w *Wire) Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error) {
	buf := make([]byte, maxFrame)
	for {
		n, err := read(ctx, w.ip, buf)
		if err != nil {
			return nil, nil, err
		}
		if msg, ok := udpPayload(buf[:n]); ok {
			return msg, append(net.HardwareAddr{}, buf[6:12]...), nil
		}
	}
}

// udpPayload returns the payload of the UDP datagram in a frame.
func udpPayload(f []byte) ([]byte, bool) {
	if len(f) < etherHeader+ipHeader+udpHeader {
		return nil, false
	}
	p := f[etherHeader:]
	size, head := int(binary.BigEndian.Uint16(p[2:])), int(p[0]&0xf)*4
	if head < ipHeader || size > len(p) || size < head+udpHeader {
		return nil, false
	}
	return p[head+udpHeader : size], true
}

// read reads from a file until ctx ends.
func read(ctx context.Context, f *os.File, buf []byte) (int, error) {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("wait for an answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	defer stop()
	n, err := f.Read(buf)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("wait for an answer: %w", ctx.Err())
	}
	if err != nil {
		return 0, fmt.Errorf("wait for an answer: %w", err)
	}
	return n, nil
}

const (
	// probes are sent probePause apart. RFC 5227, 2.1.1 has three, one or two seconds apart, but an engine waits and
	// holds a lock meanwhile.
	probes     = 3
	probePause = 200 * time.Millisecond
)

// OwnerOf probes an address by ARP (RFC 5227) and returns the hardware address of the host that has it, or is about to
// take it; nil if there is none.
func (w *Wire) OwnerOf(ctx context.Context, a netip.Addr) (net.HardwareAddr, error) {
	f, err := w.listen(unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing is pending
	for range probes {
		if _, err := f.Write(append(w.frame(unix.ETH_P_ARP, broadcastMAC()), w.probe(a)...)); err != nil {
			return nil, fmt.Errorf("probe %s: %w", a, err)
		}
		owner, err := w.awaitOwner(ctx, f, a)
		if owner != nil || err != nil {
			return owner, err
		}
	}
	return nil, nil
}

// The size of an ARP packet for Ethernet and IPv4, and where its fields are (RFC 826).
const arpSize, arpSenderMAC, arpSenderIP, arpTargetIP = 28, 8, 14, 24

// probe returns an ARP probe for an address.
func (w *Wire) probe(a netip.Addr) []byte {
	p := make([]byte, arpSize)
	copy(p, []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(p[arpSenderMAC:], w.mac)
	copy(p[arpTargetIP:], a.AsSlice())
	return p
}

// awaitOwner waits for probePause for a host that answers for an address, or probes it too.
func (w *Wire) awaitOwner(ctx context.Context, f *os.File, a netip.Addr) (net.HardwareAddr, error) {
	pause, cancel := context.WithTimeout(ctx, probePause)
	defer cancel()
	buf := make([]byte, maxFrame)
	for {
		n, err := read(pause, f, buf)
		if pause.Err() != nil { // on a busy host an answer may have arrived and not been read yet
			if n, err = readPending(f, buf); n == 0 && err == nil {
				return nil, ctx.Err()
			}
		}
		if err != nil {
			return nil, err
		}
		if n < etherHeader+arpSize {
			continue
		}
		p := buf[etherHeader:n]
		sender := append(net.HardwareAddr{}, p[arpSenderMAC:arpSenderIP]...)
		from, _ := netip.AddrFromSlice(p[arpSenderIP : arpSenderIP+4])
		target, _ := netip.AddrFromSlice(p[arpTargetIP : arpTargetIP+4])
		probed := from.IsUnspecified() && target == a // another host probes the address
		if (from == a || probed) && sender.String() != w.mac.String() {
			return sender, nil
		}
	}
}

// readPending reads a frame that has arrived already; 0 means that there is none.
func readPending(f *os.File, buf []byte) (n int, err error) {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("read pending answers: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read pending answers: %w", err)
	}
	outer := raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return true
	})
	if errors.Is(err, unix.EAGAIN) && outer == nil {
		return 0, nil
	}
	if err := errors.Join(err, outer); err != nil {
		return 0, fmt.Errorf("read pending answers: %w", err)
	}
	return n, nil
}

// A LANPort says how links are connected to a LAN that the host is on.
type LANPort struct {
	// Kind is bridge for a port of the bridge Parent, macvlan or ipvlan for a link on top of Parent.
	Kind   string
	Parent string
	// MAC is the hardware address of the parent, by which it is found after it was renamed. If MAC is empty, the parent
	// is found by its name only.
	MAC string `json:",omitempty"`
}

// String returns the name of the parent.
func (p LANPort) String() string { return p.Parent }

// Shared reports whether all links have the parent's hardware address.
func (p LANPort) Shared() bool { return p.Kind == "ipvlan" }

func (p LANPort) parent(k *core.Handle) (netlink.Link, error) {
	link, err := lan.FindUpParent(k, lan.Parent{Name: p.Parent, MAC: p.MAC})
	if err != nil {
		return nil, fmt.Errorf("connect to the LAN of %s: %w", p, err)
	}
	return link, nil
}

// MTU returns the MTU of the link that the port is on, which those of its links do not exceed.
func (p LANPort) MTU(k *core.Handle) (int, error) {
	link, err := lan.FindParent(k, lan.Parent{Name: p.Parent, MAC: p.MAC})
	if err != nil {
		return 0, fmt.Errorf("read the MTU of %s: %w", p, err)
	}
	return link.Attrs().MTU, nil
}

// SharedMAC returns the hardware address that all links on a shared LANPort have.
func SharedMAC(k *core.Handle, p LANPort) (net.HardwareAddr, error) {
	link, err := p.parent(k)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// PlugWire makes a link with a hardware address on a LAN, which exists as long as the Wire is open. The client's end is
// in a namespace that only this process holds: no IP stack answers on it, and when the process dies, the kernel removes
// both. Where all links share the parent's hardware address, no link is made: frames for it arrive at the parent, as
// long as no link has the IP address that they are for (ipvlan_addr_lookup, drivers/net/ipvlan/ipvlan_core.c).
func PlugWire(k *core.Handle, p LANPort, mac net.HardwareAddr) (*Wire, error) {
	if p.Shared() {
		return parentWire(k, p)
	}
	ns, err := newNamespace(k)
	if err != nil {
		return nil, err
	}
	index, unplug, err := plug(k, p, mac, ns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a link on the LAN of %s: %w", p, err), ns.Close())
	}
	w, err := openWire(ns, index, mac)
	if err != nil {
		return nil, errors.Join(err, unplug())
	}
	w.unplug = unplug
	return w, nil
}

// parentWire opens a Wire on the parent of a shared LANPort.
func parentWire(k *core.Handle, p LANPort) (*Wire, error) {
	link, err := p.parent(k)
	if err != nil {
		return nil, err
	}
	ns, err := unix.FcntlInt(uintptr(k.NS), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of a network namespace: %w", err)
	}
	return openWire(netns.NsHandle(ns), link.Attrs().Index, link.Attrs().HardwareAddr)
}

// newNamespace makes an empty network namespace.
func newNamespace(k *core.Handle) (ns netns.NsHandle, err error) {
	err = core.Inside(int(k.NS), func() (err error) { // Inside moves the thread back afterwards
		if ns, err = netns.New(); err != nil {
			return err
		}
		// IPv6 must not answer in it, since its link has the hardware address of a container's link. The file is
		// missing where the kernel has no IPv6.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
		return nil
	})
	if err != nil {
		return ns, fmt.Errorf("make a network namespace: %w", err)
	}
	return ns, nil
}

const (
	// wirePrefix is the prefix of the names of temporary links; of a veth pair, of the end on the bridge. OwnName does
	// not know it, so that such links are not taken for strays.
	wirePrefix = "nyw-"
	// wireInside is the name of the client's end.
	wireInside = "lan0"
)

// plug makes the link, with the client's end in ns, and returns a function that removes it.
func plug(
	k *core.Handle, p LANPort, mac net.HardwareAddr, ns netns.NsHandle,
) (index int, unplug func() error, err error) {
	parent, err := p.parent(k)
	if err != nil {
		return 0, nil, err
	}
	link, err := p.link(parent, mac, ns)
	if err != nil {
		return 0, nil, err
	}
	if err := k.NL.LinkAdd(link); err != nil {
		return 0, nil, err
	}
	nl, err := core.OpenNetlink(ns)
	if err != nil {
		return 0, nil, err // the kernel removes the link with its namespace
	}
	inner, err := nl.LinkByName(wireInside)
	if err != nil {
		nl.Close()
		return 0, nil, err
	}
	unplug = func() error {
		defer nl.Close()
		return nl.LinkDel(inner)
	}
	err = nl.LinkSetUp(inner)
	if pair, ok := link.(*netlink.Veth); ok && err == nil {
		err = setPortUp(k, pair.Name)
	}
	if err != nil {
		return 0, nil, errors.Join(err, unplug())
	}
	return inner.Attrs().Index, unplug, nil
}

// link describes the link that connects a client to the LAN.
func (p LANPort) link(parent netlink.Link, mac net.HardwareAddr, ns netns.NsHandle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	switch p.Kind {
	case "bridge":
		attrs.Name = core.Name(wirePrefix, hex.EncodeToString(mac[1:])) // the first octets of addresses are alike
		attrs.MTU, attrs.MasterIndex = parent.Attrs().MTU, parent.Attrs().Index
		attrs.HardwareAddr = core.PortMAC(mac)
		return &netlink.Veth{
			LinkAttrs: attrs, PeerName: wireInside, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns),
		}, nil
	case "macvlan":
		attrs.Name, attrs.HardwareAddr = wireInside, mac
		attrs.ParentIndex, attrs.Namespace = parent.Attrs().Index, netlink.NsFd(ns)
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}, nil
	}
	return nil, fmt.Errorf("link of kind %s: %w", p.Kind, unix.EOPNOTSUPP)
}

// setPortUp sets a port of a bridge up, without IPv6 of its own.
func setPortUp(k *core.Handle, name string) error {
	quiet := core.Sysctl{Path: []string{"net", "ipv6", "conf", name, "disable_ipv6"}, Value: "1", Optional: true}
	if err := quiet.Ensure(k); err != nil {
		return err
	}
	link, err := k.NL.LinkByName(name)
	if err != nil {
		return err
	}
	return k.NL.LinkSetUp(link)
}
