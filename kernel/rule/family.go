// Package rule describes rulesets of nftables: declarations of sets, chains and rules, the expressions that rules are
// made of, and how keys of elements are encoded and printed.
package rule

import (
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ByFamily returns the one of two sets that is for a family.
func ByFamily(v6 bool, four, six SetName) SetName {
	if v6 {
		return six
	}
	return four
}

// Families returns both families.
func Families() []Family { return []Family{IPv4(), IPv6()} }

// V6 reports whether the family is IPv6.
func (f Family) V6() bool { return f.Proto == unix.NFPROTO_IPV6 }

// EchoRequest matches the echo requests that ping sends (RFC 792, RFC 4443).
func (f Family) EchoRequest() []expr.Any {
	proto, kind := byte(unix.IPPROTO_ICMP), byte(8)
	if f.V6() {
		proto, kind = unix.IPPROTO_ICMPV6, 128
	}
	return append(L4proto(proto),
		&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg1, Data: []byte{kind}})
}

const (
	// HostFlows4 has the flows that programs of the host started from a local port which is also published. Answers to
	// them belong to the program, not to the container. TCP needs no such set, see midstream in kernel/ports.
	HostFlows4 SetName = "mine4"
	// HostFlows6 is Mine4 for IPv6.
	HostFlows6 SetName = "mine6"

	// LoopOctet is the first octet of the IPv4 addresses that replace loopback addresses, see LoopbackAlias4.
	LoopOctet = 247
	// LoopbackOctet is the first octet of loopback addresses.
	LoopbackOctet = 127
)

// LoopbackAlias6 returns the address that replaces ::1. It is a unique local address (RFC 4193) whose 16-bit words add
// up to 1, as those of ::1 do, so no checksum changes (checksum-neutral in RFC 6296).
func LoopbackAlias6() netip.Addr { return netip.MustParseAddr("fd6e:6574:7961:7264::b157") }

// LoopbackAlias4 returns the range of addresses that replace those of 127.0.0.0/8.
func LoopbackAlias4() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{LoopOctet}), 8) }

// A Family has what differs between rules for IPv4 and for IPv6.
type Family struct {
	suffix string // ends the comments of its rules
	Proto  byte
	// Src and Dst are the offsets of the addresses in the header, Size is their length (RFC 791, RFC 8200).
	Src, Dst, Size uint32
	// Loopback has the loopback addresses, Away those that replace them.
	Loopback, Away netip.Prefix
	// Leave is what Rewrite puts into loopback addresses to replace them, Enter what turns them back: a whole address,
	// or its first octet.
	Leave, Enter []byte
	Mine         SetName
}

// IPv4 returns the Family of IPv4.
func IPv4() Family {
	return Family{
		Proto: unix.NFPROTO_IPV4, Src: 12, Dst: 16, Size: 4,
		Loopback: netip.MustParsePrefix("127.0.0.0/8"), Away: LoopbackAlias4(),
		Leave: []byte{LoopOctet}, Enter: []byte{LoopbackOctet}, Mine: HostFlows4,
	}
}

// IPv6 returns the Family of IPv6.
func IPv6() Family {
	one := netip.IPv6Loopback()
	return Family{
		suffix: ", IPv6", Proto: unix.NFPROTO_IPV6, Src: 8, Dst: 24, Size: 16,
		Loopback: netip.PrefixFrom(one, 128), Away: netip.PrefixFrom(LoopbackAlias6(), 128),
		Leave: LoopbackAlias6().AsSlice(), Enter: one.AsSlice(), Mine: HostFlows6,
	}
}

// Name returns the comment of a rule of the family: the text, with ", IPv6" appended for IPv6.
func (f Family) Name(text string) string { return text + f.suffix }

// From matches the source address.
func (f Family) From(p netip.Prefix) []expr.Any { return f.match(f.Src, p) }

// To matches the destination address.
func (f Family) To(p netip.Prefix) []expr.Any { return f.match(f.Dst, p) }

// match compares the whole octets of an address that a prefix fixes. The prefixes used here end at an octet.
func (f Family) match(offset uint32, p netip.Prefix) []expr.Any {
	octets := p.Addr().AsSlice()[:p.Bits()/8]
	return append(NFProto(f.Proto),
		&expr.Payload{
			DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset,
			Len: uint32(len(octets)), //nolint:gosec // 1 or 16
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: Reg1, Data: octets})
}

// Rewrite overwrites the beginning of both addresses of a packet. The kernel writes at least two octets at a time, so
// for IPv4 the whole address is loaded, changed and written back. It also updates the checksums, which need no update
// for IPv6, see LoopbackAlias6.
func (f Family) Rewrite(octets []byte) (es []expr.Any) {
	for _, offset := range []uint32{f.Src, f.Dst} {
		if f.Proto == unix.NFPROTO_IPV6 {
			es = append(es, &expr.Immediate{Register: Reg1, Data: octets},
				&expr.Payload{
					OperationType: expr.PayloadWrite, SourceRegister: Reg1,
					Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.Size,
				})
			continue
		}
		const checksumAt, pseudoHeader = 10, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR
		es = append(es,
			&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.Size},
			&expr.Bitwise{
				SourceRegister: Reg1, DestRegister: Reg1, Len: f.Size,
				Mask: []byte{0, 0xff, 0xff, 0xff}, Xor: []byte{octets[0], 0, 0, 0},
			},
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: Reg1,
				Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.Size,
				CsumType: expr.CsumTypeInet, CsumOffset: checksumAt, CsumFlags: pseudoHeader,
			})
	}
	return es
}

// Flow loads the addresses at two offsets and both ports, side by side as the key of a set has them.
func (f Family) Flow(first, second uint32, sourceFirst bool) []expr.Any {
	r := []uint32{Reg1, RegAfter4, unix.NFT_REG32_02, unix.NFT_REG32_03}
	if f.Proto == unix.NFPROTO_IPV6 {
		r = []uint32{Reg1, RegAfter6, unix.NFT_REG_3, unix.NFT_REG32_09}
	}
	return []expr.Any{
		&expr.Payload{DestRegister: r[0], Base: expr.PayloadBaseNetworkHeader, Offset: first, Len: f.Size},
		&expr.Payload{DestRegister: r[1], Base: expr.PayloadBaseNetworkHeader, Offset: second, Len: f.Size},
		PortInto(r[2], sourceFirst), PortInto(r[3], !sourceFirst),
	}
}
