package kerneltest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Packet is the payload of an Ethernet frame, and its EtherType. Its methods wrap it in encapsulations that a
// receiver may remove on its own.
type Packet struct {
	Type uint16
	Data []byte
}

// Extension headers of IPv6 (RFC 8200, section 4).
const (
	HopByHop    = 0
	Routing     = 43
	DestOptions = 60
)

const fragment6 = 44

// UDP returns a UDP datagram in an IPv4 or IPv6 packet, with its checksum.
func UDP(from, to netip.AddrPort, data []byte) Packet {
	src, dst := from.Addr(), to.Addr()
	segment := udpData(from.Port(), to.Port(), data)
	length := len(segment)
	if src.Is4() {
		pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, udp, byte(length>>8), byte(length))
		return typed(ipv4(src, dst, udp, summed(segment, pseudo)))
	}
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, byte(length>>8), byte(length), 0, 0, 0, udp)
	return typed(ipv6(src, dst, udp, summed(segment, pseudo)))
}

// summed writes UDP's checksum into a segment. A computed 0 becomes 0xffff, since 0 means no checksum (RFC 768).
func summed(segment, pseudo []byte) []byte {
	const at = 6
	even := append(append([]byte{}, segment...), make([]byte, len(segment)%2)...)
	sum := checksummed(even, at, pseudo)[at : at+2]
	if sum[0] == 0 && sum[1] == 0 {
		sum = []byte{0xff, 0xff}
	}
	copy(segment[at:], sum)
	return segment
}

// WhoHas returns an ARP request or a neighbour solicitation from a station. The receiver adds from to its neighbour
// table.
func WhoHas(mac net.HardwareAddr, from netip.Addr, to netip.Addr) Packet {
	if from.Is4() {
		return typed(arp(1, mac, from, Station{MAC: make(net.HardwareAddr, 6), V4: to}))
	}
	return typed(ipv6(from, to, icmp6, nd(from, to, neighbourAsk, to, lladdr(source, mac))))
}

// Advertise returns a router advertisement with a router lifetime of 1800 s.
func Advertise(from, to netip.Addr) Packet {
	return typed(ipv6(from, to, icmp6, icmpBody(from, to, routerAdvert, []byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0})))
}

// Ping6 returns an ICMPv6 echo request with size bytes after the ICMPv6 header's first four.
func Ping6(from, to netip.Addr, size int) Packet {
	const echoRequest = 128
	return typed(ipv6(from, to, icmp6, icmpBody(from, to, echoRequest, make([]byte, size))))
}

// typed splits off the EtherType, which precedes the payload.
func typed(b []byte) Packet { return Packet{Type: binary.BigEndian.Uint16(b), Data: b[2:]} }

// Frame returns the packet in an Ethernet frame.
func (p Packet) Frame(from, to net.HardwareAddr) []byte {
	return append(binary.BigEndian.AppendUint16(append(append([]byte{}, to...), from...), p.Type), p.Data...)
}

// Tagged adds a VLAN tag. kind is the EtherType of 802.1Q or 802.1ad, or another one that some receivers treat the
// same.
func (p Packet) Tagged(kind, tci uint16) Packet {
	head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tci), p.Type)
	return Packet{Type: kind, Data: append(head, p.Data...)}
}

// SNAP adds LLC and SNAP headers (RFC 1042). organization is 0, or 0xf8 for the bridge-tunnel encapsulation of IEEE
// 802.1H.
func (p Packet) SNAP(organization byte) Packet {
	head := binary.BigEndian.AppendUint16([]byte{0xaa, 0xaa, 3, 0, 0, organization}, p.Type)
	head = append(head, p.Data...)
	return Packet{Type: uint16(len(head)), Data: head} //nolint:gosec // short
}

// Behind adds bytes in front and sets another EtherType.
func (p Packet) Behind(kind uint16, head ...byte) Packet {
	return Packet{Type: kind, Data: append(append([]byte{}, head...), p.Data...)}
}

// Inside puts it into an IP packet of a protocol, behind head.
func (p Packet) Inside(from, to netip.Addr, proto byte, head ...byte) Packet {
	data := append(append([]byte{}, head...), p.Data...)
	if from.Is4() {
		return typed(ipv4(from, to, proto, data))
	}
	return typed(ipv6(from, to, proto, data))
}

// Extended adds extension headers of 8 octets to an IPv6 packet. Receivers skip them: they hold only padding, or no
// segments left.
func (p Packet) Extended(kinds ...byte) Packet {
	data := append([]byte{}, p.Data...)
	for i := len(kinds) - 1; i >= 0; i-- {
		const padN, padding = 1, 4 // RFC 8200, section 4.2
		header := []byte{data[6], 0, padN, padding, 0, 0, 0, 0}
		if kinds[i] == Routing {
			header = []byte{data[6], 0, 253, 0, 0, 0, 0, 0} // experimental routing type, no segments left
		}
		data = append(append(append([]byte{}, data[:40]...), header...), data[40:]...)
		data[6] = kinds[i]
		binary.BigEndian.PutUint16(data[4:], uint16(len(data)-40)) //nolint:gosec // short
	}
	return Packet{Type: p.Type, Data: data}
}

// Fragments splits an IP packet into fragments of size octets, a multiple of 8. Each packet of a sender needs another
// id.
func (p Packet) Fragments(size int, id uint16) (all []Packet) {
	if p.Type == unix.ETH_P_IPV6 {
		return p.fragments6(size, id)
	}
	head, body := p.Data[:20], p.Data[20:]
	for at := 0; at < len(body); at += size {
		piece := body[at:min(at+size, len(body))]
		h := append([]byte{}, head...)
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(piece))) //nolint:gosec // short
		binary.BigEndian.PutUint16(h[4:], id)
		offset := uint16(at / 8) //nolint:gosec // short
		if at+size < len(body) {
			offset |= 0x2000
		}
		binary.BigEndian.PutUint16(h[6:], offset)
		h[10], h[11] = 0, 0
		all = append(all, Packet{Type: p.Type, Data: append(checksummed(h, 10, nil), piece...)})
	}
	return all
}

func (p Packet) fragments6(size int, id uint16) (all []Packet) {
	head, body := p.Data[:40], p.Data[40:]
	for at := 0; at < len(body); at += size {
		piece := body[at:min(at+size, len(body))]
		offset := uint16(at) //nolint:gosec // short
		if at+size < len(body) {
			offset |= 1
		}
		h := append([]byte{}, head...)
		h[6] = fragment6
		binary.BigEndian.PutUint16(h[4:], uint16(8+len(piece))) //nolint:gosec // short
		f := binary.BigEndian.AppendUint16([]byte{head[6], 0}, offset)
		f = binary.BigEndian.AppendUint32(f, uint32(id))
		all = append(all, Packet{Type: p.Type, Data: append(append(h, f...), piece...)})
	}
	return all
}
