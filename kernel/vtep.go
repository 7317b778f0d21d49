package kernel

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A VXLAN device takes frames from whoever can send it a UDP packet (RFC 7348, section 7). So what is for one of
// netyard's networks has to be from a host that the network is on. VNIs that are not netyard's pass: another manager,
// such as a swarm, may be at the same port.
//
// A member's address alone proves nothing: whatever a host masquerades has it too. So each host enforces two things.
// Frames of netyard's networks leave it only when one of its own VXLAN devices made them; and it takes them only from a
// link that leads to other hosts.
const (
	// vxlanPorts has the ports that VXLAN comes in by.
	vxlanPorts SetName = "vxlan_ports"
	// vnis has the numbers of netyard's networks.
	vnis SetName = "vnis"
	// vteps4 and vteps6 have the hosts that each network is on.
	vteps4 SetName = "vteps4"
	vteps6 SetName = "vteps6"
	// members4 and members6 have the hosts that any network is on.
	members4 SetName = "members4"
	members6 SetName = "members6"

	vxlanChain  = "vxlan"
	astrayChain = "vxlan_astray"
	madeChain   = "vxlan_made"
)

// suspect is the bit of the mark that a datagram gets whose number is that of no network of netyard's. The last chain
// at input sets it. A frame that has it is dropped when it comes out of a VXLAN device of netyard's.
//
// A program may give the kernel several datagrams as one (UDP_SEGMENT, udp(7)). Rules see the contents of the first one
// only; the kernel takes them apart behind all rules, and those behind the first may be frames of netyard's.
const suspect uint32 = 1 << 28

// Closed closes a network: its frames leave the host only by its VXLAN device, and none is let in. VTEPs opens it for
// its hosts.
func Closed(port uint16, vni uint32) (all []Element) {
	dport, number := string(binaryutil.BigEndian.PutUint16(port)), string(binaryutil.NativeEndian.PutUint32(vni))
	for _, table := range []SetName{"", bridged} {
		all = append(all, newElement(vxlanPorts+table, dport, ""), newElement(vnis+table, number, ""))
	}
	return all
}

// VTEPs lets frames of a network in that come from its hosts, and those of nobody else. Without hosts nothing of it
// gets in.
func VTEPs(port uint16, vni uint32, hosts []netip.Addr) []Element {
	return append(Closed(port, vni), Members(vni, hosts)...)
}

// Members are the elements of VTEPs that are about the hosts.
func Members(vni uint32, hosts []netip.Addr) (all []Element) {
	number := string(binaryutil.NativeEndian.PutUint32(vni))
	for _, h := range hosts {
		all = append(all, newElement(either(h.Is6(), vteps4, vteps6), string(h.AsSlice())+number, ""))
		for _, table := range []SetName{"", bridged} {
			all = append(all, newElement(either(h.Is6(), members4, members6)+table, string(h.AsSlice()), ""))
		}
	}
	return all
}

func vtepSets() []setSpec {
	number := nftables.TypeMark // the host's order, and shown as 0x00001234
	return []setSpec{
		{name: vxlanPorts, key: nftables.TypeInetService},
		{name: vnis, key: number},
		{name: vxlanPorts + bridged, key: nftables.TypeInetService, bridge: true},
		{name: vnis + bridged, key: number, bridge: true},
		{name: vteps4, key: nftables.MustConcatSetType(nftables.TypeIPAddr, number), concat: true},
		{name: vteps6, key: nftables.MustConcatSetType(nftables.TypeIP6Addr, number), concat: true},
		{name: members4, key: nftables.TypeIPAddr},
		{name: members6, key: nftables.TypeIP6Addr},
		{name: members4 + bridged, key: nftables.TypeIPAddr, bridge: true},
		{name: members6 + bridged, key: nftables.TypeIP6Addr, bridge: true},
	}
}

// vtepChains look before conntrack does: what is dropped shall take no place there. Fragments have been put together by
// then (nf_defrag_ipv4, priority -400). A packet whose destination is translated later to a VXLAN port of the host is
// dropped at input.
func vtepChains(b setBook) []chainSpec {
	members := []ruleSpec{
		inClear(b),
		{"other networks", rule(vni(reg1), []expr.Any{b.lookup(vnis, true)}, back())},
		{"frames by a link that does not lead back", rule(noWayBack(), jump(astrayChain))},
	}
	for _, f := range families() {
		next := uint32(behind4)
		if f.v6() {
			next = behind6
		}
		members = append(members, ruleSpec{f.name("from hosts of the network"), rule(nfproto(f.proto), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		}, vni(next), []expr.Any{b.lookup(either(f.v6(), vteps4, vteps6), false)}, back())})
	}
	return []chainSpec{
		{
			name: "vxlan_in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRaw, rules: []ruleSpec{
				{"what comes by the tunnel", rule(in(TunnelName), jump(tunnelChain))},
				{"VXLAN for this host", rule(byVXLANPort(b), forHost(), goTo(vxlanChain))},
				{"frames for everybody", rule(byVXLANPort(b), vni(reg1), []expr.Any{b.lookup(vnis, false)}, notUnicast(), drop())},
			},
		},
		{name: vxlanChain, rules: append(members, ruleSpec{"frames of who is no member", drop()})},
		{name: astrayChain, rules: []ruleSpec{
			{"frames from the host itself", rule(in("lo"), drop())},
			{"frames by the host's link to its containers on the LAN", rule(
				ifNamePrefix(expr.MetaKeyIIFNAME, ShimPrefix), drop())},
			{"frames from a container or a virtual machine", rule(virtual(), drop())},
		}},
		{
			name: "vxlan_turned", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
			priority: nftables.ChainPriorityRef(behindInput - 10), rules: []ruleSpec{
				{"frames by a translated port", rule(
					dnatted(), byVXLANPort(b), vni(reg1), []expr.Any{b.lookup(vnis, false)}, drop())},
				{"frames of netyard's networks", rule(
					byVXLANPort(b), vni(reg1), []expr.Any{b.lookup(vnis, false)}, setSuspect(false), accept())},
				{"others, which may have such frames behind them", rule(byVXLANPort(b), setSuspect(true))},
			},
		},
	}
}

// notUnicast matches what is for a broadcast or multicast address, or for IPv6's subnet-router anycast address: a VXLAN
// device takes it, and none of netyard's sends it.
func notUnicast() []expr.Any {
	es := forHost()
	es[1] = &expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)}
	return es
}

// setSuspect sets the bit of the mark, or takes it off.
func setSuspect(on bool) []expr.Any {
	bit := uint32(0)
	if on {
		bit = suspect
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^suspect), Xor: binaryutil.NativeEndian.PutUint32(bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true},
	}
}

// suspected matches what a VXLAN device got behind something else. The answers that it gives itself in the name of its
// peers have no mark.
func suspected() []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(suspect), Xor: zero,
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: zero},
	}
}

// noWayBack matches a packet that did not come by the link by which its sender is reached.
func noWayBack() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: make([]byte, 4)},
	}
}

// virtual matches what came by a link that is made of software and not by one of those that stand for a card or join
// cards to a network. A card itself has no kind, and then a rule that asks for it does not match (nft_meta_store_kind,
// net/netfilter/nft_meta.c). So a host with several links on its LANs takes frames by any of them, whichever its routes
// prefer; what leads to containers and virtual machines has another kind.
func virtual() (all []expr.Any) {
	for _, kind := range uplinks() {
		all = append(all, &expr.Meta{Key: metaIIFKIND, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte(ifName(kind))})
	}
	return all
}

// uplinks are the kinds of such links. A host with a macvlan of its own is asked for its address by both links, and
// answers by both.
func uplinks() []string { return []string{"bond", "team", "vlan", "macvlan", "ipvlan", "ipoib", "dsa"} }

// metaIIFKIND is NFT_META_IIFKIND (linux/netfilter/nf_tables.h).
const metaIIFKIND expr.MetaKey = 26

// madeRules decide which frames leave for other hosts. A packet that a VXLAN device of the host made is at postrouting
// as if it came in by that device (ip_output, net/ipv4/ip_output.c): no process, container or routed packet can pretend
// that.
func madeRules(b setBook) []ruleSpec {
	return []ruleSpec{
		{"frames of an encrypted network leave by the tunnel only", rule(
			vni(reg1), []expr.Any{b.lookup(encrypted, false)}, notInterface(expr.MetaKeyOIFNAME, TunnelName), drop())},
		{"made by a VXLAN device", rule(ifNamePrefix(expr.MetaKeyIIFNAME, VXLANPrefix), back())},
		{"of a host behind a bridge", rule(byBridge(), back())},
		{"fragments, whose network is not known", rule(nfproto(unix.NFPROTO_IPV4), fragment4(), drop())},
		{"fragments, whose network is not known, IPv6", rule(nfproto(unix.NFPROTO_IPV6), fragment6(), drop())},
		{"frames that no VXLAN device made", rule(vni(reg1), []expr.Any{b.lookup(vnis, false)}, drop())},
		{"made by a VXLAN device of somebody else's", rule(madeBy("vxlan"), back())},
		{"for this host, and may be several datagrams", rule(out("lo"), several(), drop())},
		{"for a host of a network, and may be several datagrams", rule(
			nfproto(unix.NFPROTO_IPV4), toMember(b, false, ""), several(), drop())},
		{"for a host of a network, and may be several datagrams, IPv6", rule(
			nfproto(unix.NFPROTO_IPV6), toMember(b, true, ""), several(), drop())},
	}
}

// byBridge matches frames that stay on a bridge, which br_netfilter takes to postrouting: they have no incoming
// interface there, and, unlike what the host sends, a link-layer header.
func byBridge() []expr.Any {
	return rule([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: make([]byte, 4)},
	}, payload(expr.PayloadBaseLLHeader, 12, "\x00\x00", expr.CmpOpNeq))
}

// madeBy matches what came from a link of a kind.
func madeBy(kind string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: metaIIFKIND, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte(ifName(kind))},
	}
}

// several matches what may be more than one datagram (suspect). What is shorter has no room for two frames with an IP
// header in each.
func several() []expr.Any {
	const frame = 8 + 14 + 20 // VXLAN, Ethernet, IPv4
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyLEN, Register: reg1},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg1, Data: binaryutil.BigEndian.PutUint32(20 + 8 + 2*frame)},
	}
}

// toMember matches what is for a host of any network, by the set of a table.
func toMember(b setBook, v6 bool, table SetName) []expr.Any {
	at, size := uint32(16), uint32(net.IPv4len)
	if v6 {
		at, size = 24, net.IPv6len
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size},
		b.lookup(either(v6, members4, members6)+table, false),
	}
}

// TellsDevices says why this kernel may not know which packets its VXLAN devices made; nothing of an overlay network
// leaves then.
func (*Kernel) TellsDevices() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("read the kernel's version: %w", err)
	}
	return tellsDevices(unix.ByteSliceToString(name.Release[:]))
}

// tellsDevices is about the first version that has a device for such packets at postrouting.
func tellsDevices(release string) error {
	const major, minor = 5, 7
	var have struct{ major, minor int }
	if _, err := fmt.Sscanf(release, "%d.%d", &have.major, &have.minor); err != nil {
		return nil //nolint:nilerr // no version that anybody knows
	}
	if have.major > major || have.major == major && have.minor >= minor {
		return nil
	}
	return fmt.Errorf("kernel %s is older than %d.%d, and may not tell frames of overlays from forged ones: then none leaves",
		release, major, minor)
}

// forged drops at a container's port what other hosts would take for a frame of a network. It is for containers that
// may use any address: on a bridge that the host's LAN is on their frames reach the other hosts without being routed.
// Fragments are not put together here, so the first one has to say which network it is for: those of IPv4 do unless
// they are tiny, those of IPv6 need not.
func forged(b setBook, v6 bool) []ruleSpec {
	const longest = 60 + 8 + 8 // the longest header of IPv4, UDP's, and half of what VXLAN says
	frame := toVXLANPort(b, vxlanPorts+bridged)
	whole := rule(frame, vni(reg1), []expr.Any{b.lookup(vnis+bridged, false)}, drop())
	if v6 {
		return []ruleSpec{
			{"no frames of overlays, IPv6", rule(etherType(unix.ETH_P_IPV6), whole)},
			{"nothing to hosts of overlays that may be several datagrams, IPv6", rule(
				etherType(unix.ETH_P_IPV6), frame, toMember(b, true, bridged), several(), drop())},
			{"no fragments that may be some, IPv6", rule(etherType(unix.ETH_P_IPV6), frame, fragment6(), drop())},
		}
	}
	tiny := payload(expr.PayloadBaseNetworkHeader, 2, "\x00"+string(rune(longest)), expr.CmpOpLt)
	return []ruleSpec{
		{"no frames of overlays", rule(etherType(unix.ETH_P_IP), whole)},
		{"nothing to hosts of overlays that may be several datagrams", rule(
			etherType(unix.ETH_P_IP), frame, toMember(b, false, bridged), several(), drop())},
		{"no fragments that may be some", rule(etherType(unix.ETH_P_IP), frame, fragment4(), tiny, drop())},
	}
}

// fragment4 matches fragments of IPv4, the first one among them (RFC 791: more fragments, and the offset).
func fragment4() []expr.Any {
	const flagsAndOffset, size, mask, zero = 6, 2, "\x3f\xff", "\x00\x00"
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: flagsAndOffset, Len: size},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: size, Mask: []byte(mask), Xor: []byte(zero)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte(zero)},
	}
}

// fragment6 matches packets of IPv6 with a fragment header (RFC 8200, section 4.5).
func fragment6() []expr.Any {
	return []expr.Any{
		&expr.Exthdr{
			DestRegister: reg1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6,
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{1}},
	}
}

// vni loads the number of the network, 24 bits behind the UDP header and 4 bytes of VXLAN's (RFC 7348, section 5).
func vni(at uint32) []expr.Any {
	const before = 8 + 3 // and one byte of those 4, to be masked
	return []expr.Any{
		&expr.Payload{DestRegister: at, Base: expr.PayloadBaseTransportHeader, Offset: before, Len: 4},
		&expr.Bitwise{SourceRegister: at, DestRegister: at, Len: 4, Mask: []byte{0, 0xff, 0xff, 0xff}, Xor: make([]byte, 4)},
		&expr.Byteorder{SourceRegister: at, DestRegister: at, Op: expr.ByteorderNtoh, Len: 4, Size: 4},
	}
}

func showNumber(v string) string {
	return fmt.Sprintf("0x%08x", binaryutil.NativeEndian.Uint32([]byte(v)))
}
