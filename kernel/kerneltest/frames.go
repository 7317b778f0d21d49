package kerneltest

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A Frame is an Ethernet frame that a container may send, or may not.
type Frame struct {
	Name string
	// Raw is what is sent, Seen what a packet socket shows of it: a VLAN tag is not part of that.
	Raw, Seen []byte
	// Role: only a router may send it, and no option allows it to a container.
	Role bool
}

// A Station sends or receives frames.
type Station struct {
	MAC net.HardwareAddr
	V4  netip.Addr
	V6  netip.Addr
}

// Local returns its IPv6 link-local address (RFC 4291, appendix A).
func (s Station) Local() netip.Addr {
	m := s.MAC
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}

const (
	icmp6, udp      = 58, 17
	routerAdvert    = 134
	neighbourAsk    = 135
	neighbourAnswer = 136
	redirect6       = 137
	source, target  = 1, 2 // link-layer address options of RFC 4861
)

// Forgeries returns frames by which me pretends to the victim to be other, a router or a DHCP server.
func Forgeries(me, other, victim Station) []Frame {
	to := func(name string, payload []byte) Frame { return ether(name, me.MAC, victim.MAC, payload) }
	data := []byte("forged")
	v4 := func(src netip.Addr) []byte { return ipv4(src, victim.V4, udp, udpData(7, 7, data)) }
	v6 := func(src netip.Addr) []byte { return ipv6(src, victim.V6, udp, udpData(7, 7, data)) }
	na := func(about netip.Addr, options ...[]byte) []byte {
		return ipv6(me.V6, victim.V6, icmp6, nd(me.V6, victim.V6, neighbourAnswer, about, options...))
	}
	hop := ipv6(me.V6, victim.V6, 0, append([]byte{icmp6, 0, 1, 4, 0, 0, 0, 0},
		nd(me.V6, victim.V6, neighbourAnswer, other.V6, lladdr(target, me.MAC))...))
	tagged := to("IPv4 source in a VLAN", v4(other.V4))
	tagged.Raw = append(append(append([]byte{}, tagged.Raw[:12]...), 0x81, 0, 0, 5), tagged.Raw[12:]...)
	nobody, zero6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	advert := ipv6(me.Local(), victim.V6, icmp6,
		icmpBody(me.Local(), victim.V6, routerAdvert, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}))
	redirect := icmpBody(me.Local(), victim.V6, redirect6,
		append(append(make([]byte, 4), me.Local().AsSlice()...), other.V6.AsSlice()...))
	redirect4 := append([]byte{5, 1, 0, 0}, append(other.V4.AsSlice(), make([]byte, 28)...)...)
	ask := nd(me.V6, victim.V6, neighbourAsk, victim.V6, lladdr(source, other.MAC))
	probe := nd(zero6, victim.V6, neighbourAsk, other.V6)
	role := func(f Frame) Frame { f.Role = true; return f }
	return []Frame{
		ether("hardware address", other.MAC, victim.MAC, v4(me.V4)),
		to("IPv4 source", v4(other.V4)),
		to("IPv4 source from elsewhere", v4(netip.MustParseAddr("198.51.100.1"))),
		to("IPv4 source nobody", v4(nobody)),
		tagged,
		to("ARP answer", arp(2, me.MAC, other.V4, victim)),
		to("ARP with another's hardware address", arp(2, other.MAC, me.V4, victim)),
		ether("gratuitous ARP", me.MAC, broadcast(), arp(1, me.MAC, other.V4, Station{MAC: broadcast(), V4: other.V4})),
		to("IPv6 source", v6(other.V6)),
		to("IPv6 source of the link", v6(other.Local())),
		to("IPv6 source nobody", v6(zero6)),
		to("ND answer for another's address", na(other.V6, lladdr(target, me.MAC))),
		to("ND answer for another's address of the link", na(other.Local(), lladdr(target, me.MAC))),
		to("ND answer with another's hardware address", na(me.V6, lladdr(target, other.MAC))),
		to("ND answer with a second option", na(me.V6, lladdr(14, me.MAC), lladdr(target, other.MAC))),
		to("ND answer behind a header", hop),
		to("ND question with another's hardware address", ipv6(me.V6, victim.V6, icmp6, ask)),
		to("ND probe of another's address", ipv6(zero6, victim.V6, icmp6, probe)),
		to("DHCP server", ipv4(me.V4, victim.V4, udp, udpData(67, 68, data))),
		to("DHCPv6 server", ipv6(me.Local(), victim.V6, udp, udpData(547, 546, data))),
		to("another protocol", append([]byte{0x88, 0xb5}, data...)),
		role(to("router advertisement", advert)),
		role(to("IPv6 redirect", ipv6(me.Local(), victim.V6, icmp6, redirect))),
		role(to("IPv4 redirect", ipv4(me.V4, victim.V4, 1, checksummed(redirect4, 2, nil)))),
	}
}

// Honest returns frames of me that every network must let through.
func Honest(me, victim Station) []Frame {
	to := func(name string, payload []byte) Frame { return ether(name, me.MAC, victim.MAC, payload) }
	data, zero4, zero6 := []byte("honest"), netip.IPv4Unspecified(), netip.IPv6Unspecified()
	all4 := netip.MustParseAddr("255.255.255.255")
	ask := nd(me.V6, victim.V6, neighbourAsk, victim.V6, lladdr(source, me.MAC))
	answer := nd(me.V6, victim.V6, neighbourAnswer, me.V6, lladdr(target, me.MAC))
	short := nd(me.V6, victim.V6, neighbourAnswer, me.V6)
	probe := nd(zero6, victim.V6, neighbourAsk, me.V6, lladdr(14, me.MAC))
	noMAC := Station{MAC: make(net.HardwareAddr, 6), V4: me.V4}
	return []Frame{
		to("IPv4", ipv4(me.V4, victim.V4, udp, udpData(7, 7, data))),
		to("IPv6", ipv6(me.V6, victim.V6, udp, udpData(7, 7, data))),
		to("IPv6 of the link", ipv6(me.Local(), victim.Local(), udp, udpData(7, 7, data))),
		to("ARP answer", arp(2, me.MAC, me.V4, victim)),
		ether("ARP probe", me.MAC, broadcast(), arp(1, me.MAC, zero4, noMAC)),
		to("ND question", ipv6(me.V6, victim.V6, icmp6, ask)),
		to("ND answer", ipv6(me.V6, victim.V6, icmp6, answer)),
		to("ND answer, short", ipv6(me.V6, victim.V6, icmp6, short)),
		to("ND probe with a nonce", ipv6(zero6, victim.V6, icmp6, probe)),
		ether("DHCP client", me.MAC, broadcast(), ipv4(zero4, all4, udp, udpData(68, 67, data))),
	}
}

func broadcast() net.HardwareAddr { return bytes.Repeat([]byte{0xff}, 6) }

// ether puts a payload that begins with its EtherType into a frame.
func ether(name string, from, to net.HardwareAddr, payload []byte) Frame {
	raw := append(append(append([]byte{}, to...), from...), payload...)
	return Frame{Name: name, Raw: raw, Seen: raw}
}

func ipv4(from, to netip.Addr, proto byte, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(payload))) //nolint:gosec // short
	h = append(h, 0, 1, 0, 0, 64, proto, 0, 0)
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	return append([]byte{0x08, 0x00}, append(checksummed(h, 10, nil), payload...)...)
}

func ipv6(from, to netip.Addr, next byte, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16([]byte{0x86, 0xdd, 0x60, 0, 0, 0}, uint16(len(payload))) //nolint:gosec // short
	h = append(h, next, 255)
	return append(append(append(h, from.AsSlice()...), to.AsSlice()...), payload...)
}

// udpData returns a UDP segment without a checksum: IPv4 allows that, and a bridge does not check it.
func udpData(from, to uint16, data []byte) []byte {
	h := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(data))) //nolint:gosec // short
	return append(append(h, 0, 0), data...)
}

func arp(op byte, mac net.HardwareAddr, addr netip.Addr, to Station) []byte {
	b := append([]byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, op}, mac...)
	return append(append(append(b, addr.AsSlice()...), to.MAC...), to.V4.AsSlice()...)
}

func lladdr(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

func nd(from, to netip.Addr, kind byte, about netip.Addr, options ...[]byte) []byte {
	return icmpBody(from, to, kind, append(append(make([]byte, 4), about.AsSlice()...), bytes.Join(options, nil)...))
}

func icmpBody(from, to netip.Addr, kind byte, body []byte) []byte {
	b := append([]byte{kind, 0, 0, 0}, body...)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, byte(len(b)>>8), byte(len(b)), 0, 0, 0, icmp6)
	return checksummed(b, 2, pseudo)
}

// checksummed writes the Internet checksum (RFC 1071) of pseudo and b into b, at an offset.
func checksummed(b []byte, at int, pseudo []byte) []byte {
	var sum uint32
	all := append(append([]byte{}, pseudo...), b...)
	for i := 0; i+1 < len(all); i += 2 {
		sum += uint32(all[i])<<8 | uint32(all[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[at:], ^uint16(sum)) //nolint:gosec // folded
	return b
}

// SendFrames sends frames by a link of the thread's namespace.
func SendFrames(link string, frames []Frame) error {
	fd, err := packetSocket(link)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // every write was checked
	for _, f := range frames {
		if _, err := unix.Write(fd, f.Raw); err != nil {
			return err
		}
	}
	return nil
}

// A Capture records the frames of a link.
type Capture struct {
	fd  int
	got [][]byte
}

// NewCapture starts a capture on a link of the thread's namespace.
func NewCapture(link string) (*Capture, error) {
	fd, err := packetSocket(link)
	return &Capture{fd: fd}, err
}

// Got waits, and returns the names of those frames that were seen.
func (c *Capture) Got(frames []Frame, wait time.Duration) (names []string) {
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(c.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		c.got = append(c.got, bytes.Clone(buf[:n]))
	}
	for _, f := range frames {
		for _, g := range c.got {
			if bytes.HasPrefix(g, f.Seen) {
				names = append(names, f.Name)
				break
			}
		}
	}
	return names
}

// Close ends the capture.
func (c *Capture) Close() error { return unix.Close(c.fd) }

func packetSocket(link string) (int, error) {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return -1, err
	}
	const all = uint16(unix.ETH_P_ALL)<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
		return -1, err
	}
	return fd, nil
}

// Count returns how often a frame has been seen, as of the last Got.
func (c *Capture) Count(f Frame) (n int) {
	for _, g := range c.got {
		if bytes.HasPrefix(g, f.Seen) {
			n++
		}
	}
	return n
}
