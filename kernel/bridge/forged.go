package bridge

import (
	"net"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// ToVXLANPort is byVXLANPort with the ports of a set.
func ToVXLANPort(b rule.Book, ports rule.SetName) []expr.Any {
	return rule.Join(rule.UDP(), []expr.Any{rule.PortInto(rule.Reg1, false), b.Lookup(ports, false)})
}

// A VXLAN device takes frames from whoever can send it a UDP packet (RFC 7348, section 7). So what is for one of
// netyard's networks has to be from a host that the network is on. VNIs that are not netyard's pass: another manager,
// such as a swarm, may be at the same port.
//
// A member's address alone proves nothing: whatever a host masquerades has it too. So each host enforces two things.
// Frames of netyard's networks leave it only when one of its own VXLAN devices made them; and it takes them only from a
// link that leads to other hosts.
const (
	// VXLANPorts has the ports that VXLAN comes in by.
	VXLANPorts rule.SetName = "vxlan_ports"
	// VNIs has the numbers of netyard's networks.
	VNIs rule.SetName = "vnis"
	// Members4 and Members6 have the hosts that any network is on.
	Members4 rule.SetName = "members4"
	Members6 rule.SetName = "members6"
)

// Suspect is the bit of the mark that a datagram gets whose number is that of no network of netyard's. The last chain
// at input sets it. A frame that has it is dropped when it comes out of a VXLAN device of netyard's.
//
// A program may give the kernel several datagrams as one (UDP_SEGMENT, udp(7)). Rules see the contents of the first one
// only; the kernel takes them apart behind all rules, and those behind the first may be frames of netyard's.
const Suspect uint32 = 1 << 28

// suspected matches what a VXLAN device got behind something else. The answers that it gives itself in the name of its
// peers have no mark.
func suspected() []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: rule.Reg1},
		&expr.Bitwise{
			SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(Suspect), Xor: zero,
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: zero},
	}
}

// Several matches what may be more than one datagram (suspect). What is shorter has no room for two frames with an IP
// header in each.
func Several() []expr.Any {
	const frame = 8 + 14 + 20 // VXLAN, Ethernet, IPv4
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyLEN, Register: rule.Reg1},
		&expr.Byteorder{SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: rule.Reg1, Data: binaryutil.BigEndian.PutUint32(20 + 8 + 2*frame)},
	}
}

// ToMember matches what is for a host of any network, by the set of a table.
func ToMember(b rule.Book, v6 bool, table rule.SetName) []expr.Any {
	at, size := uint32(16), uint32(net.IPv4len)
	if v6 {
		at, size = 24, net.IPv6len
	}
	return []expr.Any{
		&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		b.Lookup(rule.Either(v6, Members4, Members6)+table, false),
	}
}

// forged drops at a container's port what other hosts would take for a frame of a network. It is for containers that
// may use any address: on a bridge that the host's LAN is on their frames reach the other hosts without being routed.
// Fragments are not put together here, so the first one has to say which network it is for: those of IPv4 do unless
// they are tiny, those of IPv6 need not.
func forged(b rule.Book, v6 bool) []rule.Rule {
	const longest = 60 + 8 + 8 // the longest header of IPv4, UDP's, and half of what VXLAN says
	frame := ToVXLANPort(b, VXLANPorts+rule.Bridged)
	whole := rule.Join(frame, VNI(rule.Reg1), []expr.Any{b.Lookup(VNIs+rule.Bridged, false)}, rule.Drop())
	if v6 {
		return []rule.Rule{
			rule.New("no frames of overlays, IPv6", rule.EtherType(unix.ETH_P_IPV6), whole),
			rule.New("nothing to hosts of overlays that may be several datagrams, IPv6",
				rule.EtherType(unix.ETH_P_IPV6), frame, ToMember(b, true, rule.Bridged), Several(), rule.Drop()),
			rule.New("no fragments that may be some, IPv6", rule.EtherType(unix.ETH_P_IPV6), frame, Fragment6(), rule.Drop()),
		}
	}
	tiny := rule.Payload(expr.PayloadBaseNetworkHeader, 2, "\x00"+string(rune(longest)), expr.CmpOpLt)
	return []rule.Rule{
		rule.New("no frames of overlays", rule.EtherType(unix.ETH_P_IP), whole),
		rule.New("nothing to hosts of overlays that may be several datagrams",
			rule.EtherType(unix.ETH_P_IP), frame, ToMember(b, false, rule.Bridged), Several(), rule.Drop()),
		rule.New("no fragments that may be some", rule.EtherType(unix.ETH_P_IP), frame, Fragment4(), tiny, rule.Drop()),
	}
}

// Fragment4 matches fragments of IPv4, the first one among them (RFC 791: more fragments, and the offset).
func Fragment4() []expr.Any {
	const flagsAndOffset, size, mask, zero = 6, 2, "\x3f\xff", "\x00\x00"
	return []expr.Any{
		&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: flagsAndOffset, Len: size},
		&expr.Bitwise{SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: size, Mask: []byte(mask), Xor: []byte(zero)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte(zero)},
	}
}

// Fragment6 matches packets of IPv6 with a fragment header (RFC 8200, section 4.5).
func Fragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: rule.Reg1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: []byte{1}},
	}
}

// VNI loads the number of the network, 24 bits behind the UDP header and 4 bytes of VXLAN's (RFC 7348, section 5).
func VNI(at uint32) []expr.Any {
	const before = 8 + 3 // and one byte of those 4, to be masked
	return []expr.Any{
		&expr.Payload{DestRegister: at, Base: expr.PayloadBaseTransportHeader, Offset: before, Len: 4},
		&expr.Bitwise{SourceRegister: at, DestRegister: at, Len: 4, Mask: []byte{0, 0xff, 0xff, 0xff}, Xor: make([]byte, 4)},
		&expr.Byteorder{SourceRegister: at, DestRegister: at, Op: expr.ByteorderNtoh, Len: 4, Size: 4},
	}
}
