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

// A Wire sends and takes the frames of a DHCP client on one link that has no address yet: below the host's IP, its
// firewall included (packet(7)).
type Wire struct {
	ns    netns.NsHandle // the link's
	index int
	mac   net.HardwareAddr
	ip    *os.File // takes what is for the client's port
	// NextHop is where Unicast's frames go; nil: to everybody on the link, of whom only one has the address.
	NextHop net.HardwareAddr
	end     func() error
}

// openWire is a Wire on a link of the namespace behind ns, which it keeps.
func openWire(ns netns.NsHandle, index int, mac net.HardwareAddr) (*Wire, error) {
	w := &Wire{ns: ns, index: index, mac: mac}
	var err error
	if w.ip, err = w.listen(unix.ETH_P_IP, toClientPort()); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return w, nil
}

// listen opens a socket for the frames of one protocol that pass a filter.
func (w *Wire) listen(protocol uint16, filter []unix.SockFilter) (file *os.File, err error) {
	err = core.Inside(int(w.ns), func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "packet socket")
		if len(filter) > 0 {
			prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]} //nolint:gosec // a few
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

func swap(v uint16) uint16 { return v<<8 | v>>8 }

// toClientPort passes what is UDP for port 68 and no later fragment (net/core/filter.c; bpf(4) explains the language).
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

// MAC is the hardware address of the link.
func (w *Wire) MAC() net.HardwareAddr { return w.mac }

// Close gives up the Wire, and the link if it was made for it.
func (w *Wire) Close() error {
	err := w.ip.Close()
	if w.end != nil {
		err = errors.Join(err, w.end())
	}
	return errors.Join(err, w.ns.Close())
}

// Broadcast sends a message to every DHCP server on the link.
func (w *Wire) Broadcast(msg []byte) error {
	return w.Send(msg, netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), everybody())
}

// Unicast sends a message to one DHCP server, by way of NextHop.
func (w *Wire) Unicast(msg []byte, from, to netip.Addr) error {
	hop := w.NextHop
	if hop == nil {
		hop = everybody()
	}
	return w.Send(msg, from, to, hop)
}

func everybody() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Send sends a packet.
func (w *Wire) Send(msg []byte, from, to netip.Addr, hop net.HardwareAddr) error {
	if _, err := w.ip.Write(append(w.frame(unix.ETH_P_IP, hop), datagram(msg, from, to)...)); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// frame is the header of an Ethernet frame.
func (w *Wire) frame(protocol uint16, to net.HardwareAddr) []byte {
	f := append(append(make([]byte, 0, maxFrame), to...), w.mac...)
	return binary.BigEndian.AppendUint16(f, protocol)
}

// datagram is an IP packet from a DHCP client to a server (RFC 791, RFC 768).
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

// checksum is the internet's (RFC 1071).
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

// Receive waits for the next message to a DHCP client. Checksums are not looked at: a sender on this machine leaves
// them to its card.
func (w *Wire) Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error) {
	buf := make([]byte, maxFrame)
	for {
		n, err := read(ctx, w.ip, buf)
		if err != nil {
			return nil, nil, err
		}
		if msg, ok := carried(buf[:n]); ok {
			return msg, append(net.HardwareAddr{}, buf[6:12]...), nil
		}
	}
}

// carried is what a frame with a UDP datagram carries.
func carried(f []byte) ([]byte, bool) {
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

// read is Read that ends with ctx.
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
	// probes are sent probePause apart (RFC 5227, 2.1.1, has three, a second or two apart): an engine waits and holds a
	// lock meanwhile.
	probes     = 3
	probePause = 200 * time.Millisecond
)

// InUse asks the link who has an address (RFC 5227); nil when nobody answers, and nobody else is about to take it
// either.
func (w *Wire) InUse(ctx context.Context, a netip.Addr) (net.HardwareAddr, error) {
	f, err := w.listen(unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing is lost
	for range probes {
		if _, err := f.Write(append(w.frame(unix.ETH_P_ARP, everybody()), w.probe(a)...)); err != nil {
			return nil, fmt.Errorf("probe %s: %w", a, err)
		}
		holder, err := w.holder(ctx, f, a)
		if holder != nil || err != nil {
			return holder, err
		}
	}
	return nil, nil
}

// The fields of an ARP packet (RFC 826) of Ethernet and IPv4.
const arpSize, arpSenderMAC, arpSenderIP, arpTargetIP = 28, 8, 14, 24

func (w *Wire) probe(a netip.Addr) []byte {
	p := make([]byte, arpSize)
	copy(p, []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(p[arpSenderMAC:], w.mac)
	copy(p[arpTargetIP:], a.AsSlice())
	return p
}

func (w *Wire) holder(ctx context.Context, f *os.File, a netip.Addr) (net.HardwareAddr, error) {
	pause, cancel := context.WithTimeout(ctx, probePause)
	defer cancel()
	buf := make([]byte, maxFrame)
	for {
		n, err := read(pause, f, buf)
		if pause.Err() != nil { // on a busy host an answer may have come before it was looked for
			if n, err = waiting(f, buf); n == 0 && err == nil {
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
		probed := from.IsUnspecified() && target == a // somebody else probes for it
		if (from == a || probed) && sender.String() != w.mac.String() {
			return sender, nil
		}
	}
}

// waiting reads what is there already; 0: nothing is.
func waiting(f *os.File, buf []byte) (n int, err error) {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("look for an answer: %w", err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("look for an answer: %w", err)
	}
	outer := raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return true
	})
	if errors.Is(err, unix.EAGAIN) && outer == nil {
		return 0, nil
	}
	if err := errors.Join(err, outer); err != nil {
		return 0, fmt.Errorf("look for an answer: %w", err)
	}
	return n, nil
}

// A LANPort says how links get onto a LAN that the host is on.
type LANPort struct {
	Kind   string // bridge: as a port of Parent; macvlan, ipvlan: on top of it
	Parent string
	// MAC is the parent's, by which it is found when it has got another name; empty: by its name only.
	MAC string `json:",omitempty"`
}

// String names the LAN.
func (p LANPort) String() string { return p.Parent }

// Shared says that all links have the parent's hardware address.
func (p LANPort) Shared() bool { return p.Kind == "ipvlan" }

func (p LANPort) parent(k *core.Handle) (netlink.Link, error) {
	link, err := lan.UpParent(k, lan.Parent{Name: p.Parent, MAC: p.MAC})
	if err != nil {
		return nil, fmt.Errorf("get onto the LAN of %s: %w", p, err)
	}
	return link, nil
}

// SharedMAC is the hardware address that all links on a LANPort have that is Shared.
func SharedMAC(k *core.Handle, p LANPort) (net.HardwareAddr, error) {
	link, err := p.parent(k)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// PlugWire puts a link with that hardware address onto a LAN, for as long as the Wire is open. The other end, or the
// link itself, is in a namespace that only this process has: nobody's IP answers on it, and when the process dies the
// kernel takes it all away. Where all links have one hardware address, no link is made: what is sent to it comes in by
// the parent, as long as no link has the IP address that it is for (ipvlan_addr_lookup,
// drivers/net/ipvlan/ipvlan_core.c).
func PlugWire(k *core.Handle, p LANPort, mac net.HardwareAddr) (*Wire, error) {
	if p.Shared() {
		return parentWire(k, p)
	}
	ns, err := freshNamespace(k)
	if err != nil {
		return nil, err
	}
	index, end, err := plug(k, p, mac, ns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a link on the LAN of %s: %w", p, err), ns.Close())
	}
	w, err := openWire(ns, index, mac)
	if err != nil {
		return nil, errors.Join(err, end())
	}
	w.end = end
	return w, nil
}

func parentWire(k *core.Handle, p LANPort) (*Wire, error) {
	link, err := p.parent(k)
	if err != nil {
		return nil, err
	}
	ns, err := unix.FcntlInt(uintptr(k.NS), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	return openWire(netns.NsHandle(ns), link.Attrs().Index, link.Attrs().HardwareAddr)
}

// freshNamespace is one that nothing else is in.
func freshNamespace(k *core.Handle) (ns netns.NsHandle, err error) {
	err = core.Inside(int(k.NS), func() (err error) { // and the thread moves back
		if ns, err = netns.New(); err != nil {
			return err
		}
		// Nor does anybody's IPv6 speak up in it: its link has the hardware address of a container's.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644) // a kernel without IPv6 is as good
		return nil
	})
	if err != nil {
		return ns, fmt.Errorf("make a network namespace: %w", err)
	}
	return ns, nil
}

const (
	// wirePrefix begins the names of the temporary links, of a pair the end on the bridge. It is none of OwnName's:
	// nobody is to take them for strays.
	wirePrefix = "nyw-"
	// wireInside is what the client's end is called.
	wireInside = "lan0"
)

// plug makes the link, with its client's end in ns, and returns what takes it away.
func plug(k *core.Handle, p LANPort, mac net.HardwareAddr, ns netns.NsHandle) (index int, end func() error, err error) {
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
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, nil, err // the link goes with its namespace
	}
	inner, err := nl.LinkByName(wireInside)
	if err != nil {
		nl.Close()
		return 0, nil, err
	}
	end = func() error {
		defer nl.Close()
		return nl.LinkDel(inner)
	}
	err = nl.LinkSetUp(inner)
	if pair, ok := link.(*netlink.Veth); ok && err == nil {
		err = upPort(k, pair.Name)
	}
	if err != nil {
		return 0, nil, errors.Join(err, end())
	}
	return inner.Attrs().Index, end, nil
}

// link is what gets a client onto the LAN.
func (p LANPort) link(parent netlink.Link, mac net.HardwareAddr, ns netns.NsHandle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	switch p.Kind {
	case "bridge":
		attrs.Name = core.Name(wirePrefix, hex.EncodeToString(mac[1:])) // the beginnings of addresses are alike
		attrs.MTU, attrs.MasterIndex = parent.Attrs().MTU, parent.Attrs().Index
		attrs.HardwareAddr = core.PortMAC(mac)
		return &netlink.Veth{LinkAttrs: attrs, PeerName: wireInside, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(ns)}, nil
	case "macvlan":
		attrs.Name, attrs.ParentIndex, attrs.HardwareAddr, attrs.Namespace = wireInside, parent.Attrs().Index, mac, netlink.NsFd(ns)
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}, nil
	}
	return nil, fmt.Errorf("a LAN by %s: %w", p.Kind, unix.EOPNOTSUPP)
}

// upPort sets a port of a bridge up, without IPv6 of its own.
func upPort(k *core.Handle, name string) error {
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
