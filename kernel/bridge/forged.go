package bridge

import (
	"encoding/binary"
	"net"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// ToVXLANPort matches UDP to a port that is in a set.
func ToVXLANPort(b rule.SetBook, ports rule.SetName) []expr.Any {
	return rule.Join(rule.UDP(), []expr.Any{rule.PortInto(rule.Reg1, false), b.Lookup(ports, false)})
}

// A VXLAN device accepts frames from whoever can send it a UDP packet (RFC 7348, section 7). So a frame with the VNI of
// one of netyard's networks has to come from a host that the network is on. Frames with other VNIs pass: another
// manager, such as a swarm, may use the same port.
//
// The address of a member is no proof: whatever a host masquerades has it too. So each host enforces two things. Frames
// of netyard's networks leave it only if one of its own VXLAN devices made them; and it accepts them only from a link
// that leads to other hosts.
const (
	// VXLANPorts holds the UDP ports that receive VXLAN.
	VXLANPorts rule.SetName = "vxlan_ports"
	// VNIs holds the VNIs of netyard's networks.
	VNIs rule.SetName = "vnis"
	// Members4 and Members6 hold the hosts that any network is on.
	Members4 rule.SetName = "members4"
	Members6 rule.SetName = "members6"
)

// Suspect is the bit of the packet mark for VXLAN datagrams whose VNI is that of no network of netyard's. The last
// chain at input sets it. A frame that has it when it comes out of a VXLAN device of netyard's is dropped.
//
// A program may hand several datagrams to the kernel as one (UDP_SEGMENT, udp(7)). Rules see only the contents of the
// first one. The kernel splits them after all rules, and those after the first may be frames of netyard's networks.
const Suspect uint32 = 1 << 28

// suspected matches a frame that a VXLAN device received with Suspect set. The replies that the device itself makes for
// its peers have no mark.
func suspected() []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: rule.Reg1},
		&expr.Bitwise{
			SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(Suspect), Xor: zero,
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: zero},
	}
}

// MaybeSeveral matches what may be more than one datagram (Suspect). A shorter packet has no room for two frames with
// an IP header in each.
func MaybeSeveral() []expr.Any {
	const frame = 8 + 14 + 20 // VXLAN, Ethernet, IPv4
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyLEN, Register: rule.Reg1},
		&expr.Byteorder{SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: rule.Reg1, Data: binaryutil.BigEndian.PutUint32(20 + 8 + 2*frame)},
	}
}

// ToMember matches packets to a host of any network. table is the suffix of the set's name: empty, or rule.Bridged.
func ToMember(b rule.SetBook, v6 bool, table rule.SetName) []expr.Any {
	at, size := uint32(16), uint32(net.IPv4len)
	if v6 {
		at, size = 24, net.IPv6len
	}
	return []expr.Any{
		&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		b.Lookup(rule.ByFamily(v6, Members4, Members6)+table, false),
	}
}

// forgedRules drop, at a container's port, what other hosts would accept as a frame of a network. They are for
// containers that may use any address: on a bridge that the host's LAN is on, their frames reach the other hosts
// without being routed. Fragments are not reassembled here, so the first fragment has to show the VNI. Those of IPv4
// do, unless they are tiny; those of IPv6 need not.
func forgedRules(b rule.SetBook, v6 bool) []rule.Rule {
	const longest = 60 + 8 + 8 // the longest IPv4 header, the UDP header and the VXLAN header
	frame := ToVXLANPort(b, VXLANPorts+rule.Bridged)
	whole := rule.Join(frame, VNI(rule.Reg1), []expr.Any{b.Lookup(VNIs+rule.Bridged, false)}, rule.Drop())
	if v6 {
		return []rule.Rule{
			rule.New("drop forged overlay frames, IPv6", rule.EtherType(unix.ETH_P_IPV6), whole),
			rule.New("drop what may be several datagrams, to a host of an overlay, IPv6",
				rule.EtherType(unix.ETH_P_IPV6), frame, ToMember(b, true, rule.Bridged), MaybeSeveral(), rule.Drop()),
			rule.New("drop fragments that may hide overlay frames, IPv6",
				rule.EtherType(unix.ETH_P_IPV6), frame, Fragment6(), rule.Drop()),
		}
	}
	tiny := rule.Payload(expr.PayloadBaseNetworkHeader, 2, "\x00"+string(rune(longest)), expr.CmpOpLt)
	return []rule.Rule{
		rule.New("drop forged overlay frames", rule.EtherType(unix.ETH_P_IP), whole),
		rule.New("drop what may be several datagrams, to a host of an overlay",
			rule.EtherType(unix.ETH_P_IP), frame, ToMember(b, false, rule.Bridged), MaybeSeveral(), rule.Drop()),
		rule.New("drop tiny fragments that may hide overlay frames",
			rule.EtherType(unix.ETH_P_IP), frame, Fragment4(), tiny, rule.Drop()),
	}
}

// Fragment4 matches IPv4 fragments, including the first one: more fragments is set, or the offset is not 0 (RFC 791).
func Fragment4() []expr.Any {
	const flagsAndOffset, size, mask, zero = 6, 2, "\x3f\xff", "\x00\x00"
	return []expr.Any{
		&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: flagsAndOffset, Len: size},
		&expr.Bitwise{
			SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: size, Mask: []byte(mask), Xor: []byte(zero),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte(zero)},
	}
}

// Fragment6 matches IPv6 packets with a fragment header (RFC 8200, section 4.5).
func Fragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: rule.Reg1, Op: expr.ExthdrOpIpv6, Type: unix.IPPROTO_FRAGMENT, Len: 1,
			Flags: unix.NFT_EXTHDR_F_PRESENT,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: []byte{1}},
	}
}

const fragmentChain = "fragment6"

// fragmentRules drop IPv6 fragments of packets with extension headers behind the fragment header. A first fragment may
// end between them (RFC 7112). The frame may be longer than the packet in it, and rules then read in the rest of the
// frame what no receiver sees: they look at what the frame has, not at the packet's own length.
func fragmentRules() (rules []rule.Rule) {
	for _, header := range []struct {
		number byte
		name   string
	}{
		{unix.IPPROTO_HOPOPTS, "hop-by-hop options"},
		{unix.IPPROTO_ROUTING, "a routing header"},
		{unix.IPPROTO_FRAGMENT, "another fragment header"},
		{unix.IPPROTO_AH, "an authentication header"},
		{unix.IPPROTO_DSTOPTS, "destination options"},
	} {
		rules = append(rules, rule.New("drop IPv6 fragments with "+header.name+" inside", []expr.Any{
			&expr.Exthdr{DestRegister: rule.Reg1, Op: expr.ExthdrOpIpv6, Type: unix.IPPROTO_FRAGMENT, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: rule.Reg1, Data: []byte{header.number}},
		}, rule.Drop()))
	}
	return rules
}

// VNIField is the VNI: 24 bits, after the UDP header and 4 bytes of the VXLAN header (RFC 7348, section 5).
func VNIField() rule.RawField {
	const before, size = 8 + 4, 3
	return rule.RawField{Base: expr.PayloadBaseTransportHeader, Offset: before, Len: size}
}

// VNI loads the VNI into a register.
func VNI(at uint32) []expr.Any { return []expr.Any{VNIField().Into(at)} }

// VNIKey encodes a VNI as the last field of a key, or as a key of its own.
func VNIKey(vni uint32) string { return string(binary.BigEndian.AppendUint32(nil, vni)[1:]) }
