package rule

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// AfterInputFilters is a priority at the input hook: after the chains of any other firewall, and before connection
// tracking confirms a flow.
const AfterInputFilters = 250

// FromTo loads source address, protocol and destination port, side by side as the key of a set has them.
func (SetBook) FromTo(f Family) []expr.Any {
	next := uint32(RegAfter4)
	if f.Proto == unix.NFPROTO_IPV6 {
		next = RegAfter6
	}
	return Join(NFProto(f.Proto), []expr.Any{
		&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
	}, protoPort(next))
}

// FromLink matches packets that come in by a link.
func FromLink(name string) []expr.Any {
	es := NotInterface(expr.MetaKeyIIFNAME, name)
	es[1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

// PortKey looks up the incoming link (on a bridge, the port) together with some bytes of the packet.
func (b SetBook) PortKey(set SetName, invert bool, base expr.PayloadBase, offset, size uint32) []expr.Any {
	return b.IfKey(expr.MetaKeyIIFNAME, set, invert, base, offset, size)
}

// IfKey looks up a link's name together with some bytes of the packet.
func (b SetBook) IfKey(
	key expr.MetaKey, set SetName, invert bool, base expr.PayloadBase, offset, size uint32,
) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Payload{DestRegister: 2, Base: base, Offset: offset, Len: size},
		b.Lookup(set, invert),
	}
}

// Payload compares bytes of the packet with data.
func Payload(base expr.PayloadBase, offset uint32, data string, op expr.CmpOp) []expr.Any {
	size := uint32(len(data)) //nolint:gosec // a few bytes
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size},
		&expr.Cmp{Op: op, Register: 1, Data: []byte(data)},
	}
}

// Zero matches if size bytes of the network header are zero: an unspecified address.
func Zero(offset, size uint32) []expr.Any {
	return Payload(expr.PayloadBaseNetworkHeader, offset, string(make([]byte, size)), expr.CmpOpEq)
}

// EtherType matches frames of one EtherType.
func EtherType(t uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(t >> 8), byte(t)}},
	}
}

// UDPPort matches a UDP port: the source port at offset 0, the destination port at offset 2.
func UDPPort(offset uint32, port uint16) []expr.Any {
	data := string([]byte{byte(port >> 8), byte(port)})
	return Join(UDP(), Payload(expr.PayloadBaseTransportHeader, offset, data, expr.CmpOpEq))
}

// GoTo continues in another chain, without return (verdict goto).
func GoTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// Return returns to the chain that jumped here (verdict return).
func Return() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// IfName encodes a link's name for a key.
func IfName(n string) string { return n + strings.Repeat("\x00", unix.IFNAMSIZ-len(n)) }

// DPortOf looks up destination address, protocol and destination port in a set.
func (b SetBook) DPortOf(set SetName, f Family) []expr.Any {
	next := uint32(RegAfter4)
	if f.V6() {
		next = RegAfter6
	}
	return slices.Concat(NFProto(f.Proto), []expr.Any{
		&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Dst, Len: f.Size},
	}, protoPort(next), []expr.Any{b.Lookup(set, false)})
}

// FromDPortOf is DPortOf together with the incoming link.
func (b SetBook) FromDPortOf(set SetName, f Family) []expr.Any {
	proto, port := uint32(unix.NFT_REG32_05), uint32(unix.NFT_REG32_06)
	if f.V6() {
		proto, port = unix.NFT_REG32_08, unix.NFT_REG32_09
	}
	return append(NFProto(f.Proto),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: Reg1},
		&expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: f.Dst, Len: f.Size},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		PortInto(port, false),
		b.Lookup(set, false))
}

// IIFSAddr looks up the incoming link together with the source address.
func (b SetBook) IIFSAddr(set SetName, f Family, invert bool) []expr.Any {
	return append(NFProto(f.Proto),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: Reg1},
		&expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
		b.Lookup(set, invert))
}

// Reply matches packets of a connection's reply direction.
func Reply() []expr.Any {
	const ipCtDirReply = 1 // nf_conntrack_tuple_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: Reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg1, Data: []byte{ipCtDirReply}},
	}
}

// DPort looks up protocol and destination port in a set.
func (b SetBook) DPort(set SetName) []expr.Any { return append(protoPort(Reg1), b.Lookup(set, false)) }

// SPort looks up protocol and source port in a set.
func (b SetBook) SPort(set SetName) []expr.Any {
	es := protoPort(Reg1)
	es[1] = PortInto(RegAfter4, true)
	return append(es, b.Lookup(set, false))
}

// PortInto loads the source or the destination port into a register.
func PortInto(register uint32, source bool) expr.Any {
	offset := uint32(2)
	if source {
		offset = 0
	}
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// UDP matches UDP.
func UDP() []expr.Any { return L4proto(unix.IPPROTO_UDP) }

// L4proto matches a transport protocol by its number.
func L4proto(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg1, Data: []byte{number}},
	}
}

// NotFromLoopback matches packets that did not come in by lo.
func NotFromLoopback() []expr.Any { return NotInterface(expr.MetaKeyIIFNAME, "lo") }

// NotToLoopback matches packets that do not leave by lo.
func NotToLoopback() []expr.Any { return NotInterface(expr.MetaKeyOIFNAME, "lo") }

// NotInterface matches every link but the named one.
func NotInterface(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: Reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg1, Data: []byte(IfName(name))},
	}
}

// PortOf decodes a port from a key.
func PortOf(register string) uint16 { return binary.BigEndian.Uint16([]byte(register)) }

// LastOf returns the last address of a's family.
func LastOf(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	for i := range b {
		b[i] = 0xff
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// LastIn returns the last address of a subnet.
func LastIn(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// ProtoNumber returns the number of a protocol that has ports, 0 for any other.
func ProtoNumber(name string) byte {
	return map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[name]
}

// ProtoName returns the name of a protocol that has ports, or the number of any other.
func ProtoName(number byte) string {
	for _, name := range []string{"tcp", "udp", "sctp"} {
		if ProtoNumber(name) == number {
			return name
		}
	}
	return strconv.Itoa(int(number))
}

// PortKey encodes protocol and port as a key: each takes a 32-bit register.
func PortKey(proto string, port uint16) string {
	return string([]byte{ProtoNumber(proto), 0, 0, 0}) + PaddedPort(port)
}

// PaddedPort encodes a port, padded to a 32-bit register.
func PaddedPort(port uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, port)) + "\x00\x00"
}

// The registers that the fields of a concatenation are loaded into: the first, and the one behind an address of each
// family.
const (
	Reg1      = unix.NFT_REG_1
	RegAfter4 = unix.NFT_REG32_01
	RegAfter6 = unix.NFT_REG_2
)

// DAddrPort looks up destination address, protocol and destination port in a map, and puts the value into the first
// register.
func (b SetBook) DAddrPort(set SetName) []expr.Any {
	family, offset, size, next := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4), uint32(RegAfter4)
	if b[set].KeyType.Bytes > 4*3 {
		family, offset, size, next = unix.NFPROTO_IPV6, 24, 16, RegAfter6
	}
	return Join(NFProto(family),
		[]expr.Any{&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}},
		protoPort(next), b.Translate(set))
}

// Port is DAddrPort without the address: it looks up protocol and destination port of packets of a family.
func (b SetBook) Port(set SetName, family byte) []expr.Any {
	return Join(NFProto(family), protoPort(Reg1), b.Translate(set))
}

// protoPort loads protocol and destination port into the register at, and the 32-bit register that follows.
func protoPort(at uint32) []expr.Any {
	const dport = 2 // the same offset in TCP, UDP and SCTP
	next := at + 1
	switch at {
	case Reg1:
		next = RegAfter4
	case RegAfter6:
		next = unix.NFT_REG32_05
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: dport, Len: 2},
	}
}

// Translate looks up the key in the first register in a map, and puts the value into the first register.
func (b SetBook) Translate(set SetName) []expr.Any {
	return []expr.Any{&expr.Lookup{
		SourceRegister: Reg1, DestRegister: Reg1, IsDestRegSet: true, SetName: b[set].Name, SetID: b[set].ID,
	}}
}

// DNAT translates a packet's destination to the address in the first register, and if port is set, to the port in the
// register behind it.
func DNAT(family byte, port bool) []expr.Any {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: Reg1}
	if port {
		n.RegProtoMin, n.Specified = RegAfter4, true
		if family == unix.NFPROTO_IPV6 {
			n.RegProtoMin = RegAfter6
		}
	}
	return []expr.Any{n}
}

// ForHost matches packets to an address of the host (fib daddr type local).
func ForHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: Reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// AddrPair looks up source and destination address together.
func (b SetBook) AddrPair(set SetName, f Family) []expr.Any {
	second := uint32(RegAfter4)
	if f.Proto == unix.NFPROTO_IPV6 {
		second = RegAfter6
	}
	return append(NFProto(f.Proto),
		&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseNetworkHeader, Offset: f.Dst, Len: f.Size},
		b.Lookup(set, false))
}

// Jump continues in another chain, and returns at its end (verdict jump).
func Jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Translated matches packets whose destination was translated.
func Translated() []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT (nf_conntrack_common.h)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: Reg1},
		&expr.Bitwise{
			SourceRegister: Reg1, DestRegister: Reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: binaryutil.NativeEndian.PutUint32(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// OIFSAddr4 looks up the outgoing link together with the source address.
func (b SetBook) OIFSAddr4(set SetName) []expr.Any {
	const offset, size = 12, 4 // RFC 791
	return b.oifSaddr(set, unix.NFPROTO_IPV4, offset, size)
}

// OIFSAddr6 is OIFSAddr4 for IPv6.
func (b SetBook) OIFSAddr6(set SetName) []expr.Any {
	const offset, size = 8, 16 // RFC 8200
	return b.oifSaddr(set, unix.NFPROTO_IPV6, offset, size)
}

func (b SetBook) oifSaddr(set SetName, family byte, offset, size uint32) []expr.Any {
	return Join(NFProto(family), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: Reg1},
		&expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		b.Lookup(set, false),
	})
}

// Untranslated matches packets whose destination was not translated.
func Untranslated() []expr.Any {
	es := Translated()
	es[len(es)-1].(*expr.Cmp).Op = expr.CmpOpEq
	return es
}

// Join concatenates expressions.
func Join(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// Lookup looks up the key in the first register in a set.
func (b SetBook) Lookup(set SetName, invert bool) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: b[set].Name, SetID: b[set].ID, Invert: invert}
}

// IIF looks up the incoming link.
func (b SetBook) IIF(set SetName, invert bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, b.Lookup(set, invert)}
}

// OIF looks up the outgoing link.
func (b SetBook) OIF(set SetName, invert bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, b.Lookup(set, invert)}
}

// IfPair looks up the incoming and the outgoing link together: a 16-byte register each, side by side.
func (b SetBook) IfPair(set SetName, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
		b.Lookup(set, invert),
	}
}

// SAddr4 looks up the source address.
func (b SetBook) SAddr4(set SetName) []expr.Any {
	const offset = 12 // RFC 791
	return append(NFProto(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv4len},
		b.Lookup(set, false))
}

// SAddr6 is SAddr4 for IPv6.
func (b SetBook) SAddr6(set SetName) []expr.Any {
	const offset = 8 // RFC 8200
	return append(NFProto(unix.NFPROTO_IPV6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv6len},
		b.Lookup(set, false))
}

// NFProto matches packets of a family (NFPROTO_IPV4, NFPROTO_IPV6).
func NFProto(family byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

// ICMPType matches a type of ICMP or ICMPv6.
func ICMPType(proto, kind byte) []expr.Any {
	etherType := []byte{0x08, 0x00}
	if proto == unix.IPPROTO_ICMPV6 {
		etherType = []byte{0x86, 0xdd}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: etherType},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
}

// IfNamePrefix matches link names that begin with prefix: it compares no more than the prefix, as nft and iptables
// encode a wildcard.
func IfNamePrefix(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)},
	}
}

// Established matches packets of connections that conntrack knows, or related to them.
func Established() []expr.Any {
	const zero = "\x00\x00\x00\x00"
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: []byte(zero),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(zero)},
	}
}

// Accept accepts a packet.
func Accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// Drop drops a packet.
func Drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Masquerade replaces a packet's source by the address of the outgoing link.
func Masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// MetaIIFKind is NFT_META_IIFKIND (linux/netfilter/nf_tables.h).
const MetaIIFKind expr.MetaKey = 26
