package kernel

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The guard of ports: what a container sends has to come from the addresses its endpoint was given. It stands in the
// bridge family, before anything else sees the frame, and is closed for a port nothing is known of.
const (
	// MACs has the hardware address of each port.
	MACs SetName = "macs"
	// Addrs4 and Addrs6 have the addresses of each port; IPv6's link-local one is among them.
	Addrs4 SetName = "addrs4"
	Addrs6 SetName = "addrs6"
	// Unguarded has the ports that may use any address (antispoof=false).
	Unguarded SetName = "unguarded"
	// LAN has the ports on bridges of the host's owner: addresses there may come from others than netyard.
	LAN SetName = "lan"
)

func guardSets() []setSpec {
	port := nftables.TypeIFName
	return []setSpec{
		{name: MACs, key: nftables.MustConcatSetType(port, nftables.TypeEtherAddr), concat: true, bridge: true},
		{name: Addrs4, key: nftables.MustConcatSetType(port, nftables.TypeIPAddr), concat: true, bridge: true},
		{name: Addrs6, key: nftables.MustConcatSetType(port, nftables.TypeIP6Addr), concat: true, bridge: true},
		{name: Unguarded, key: port, bridge: true},
		{name: LAN, key: port, bridge: true},
	}
}

// A PortGuard is what a port of a bridge may send.
type PortGuard struct {
	Port  string
	MAC   net.HardwareAddr
	Addrs []netip.Addr
	// Open lets it use any address.
	Open bool
	// LAN binds it to its hardware address only.
	LAN bool
}

// Objects are the elements that make it so. The addresses are there for an open port, too: a policy may bind it.
func (g PortGuard) Objects() []Object {
	objects := []Object{newElement(MACs, ifName(g.Port)+string(g.MAC)+"\x00\x00", "")}
	for _, a := range append(g.Addrs[:len(g.Addrs):len(g.Addrs)], LinkLocal(g.MAC)) {
		set := Addrs4
		if a.Is6() {
			set = Addrs6
		}
		objects = append(objects, newElement(set, ifName(g.Port)+string(a.AsSlice()), ""))
	}
	if g.Open {
		objects = append(objects, InterfaceIn(Unguarded, g.Port))
	}
	if g.LAN {
		objects = append(objects, InterfaceIn(LAN, g.Port))
	}
	return objects
}

// LinkLocal is the IPv6 address that the kernel makes of a hardware address (modified EUI-64, RFC 4291, appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

const (
	icmpRedirect = 5 // RFC 792

	// RFC 4861
	ndRouterSolicit   = 133
	ndRouterAdvert    = 134
	ndNeighbourAsk    = 135
	ndNeighbourAnswer = 136
	ndRedirect        = 137
	mldReport         = 143 // RFC 3810

	dhcpServer, dhcpClient, dhcp6Server = 67, 68, 547 // RFC 2131, RFC 8415
)

// guardChains decide about every frame that enters a bridge by a port of netyard's: one comparison for all others.
// Their priority is that of destination NAT in this family, since br_netfilter (0) and conntrack (-200) shall not see
// what is dropped.
func guardChains(b setBook) []chainSpec {
	free := rule(b.iif(Unguarded, false), b.iif(bound, true))
	lan := rule(b.iif(LAN, false), b.iif(bound, true))
	return []chainSpec{
		{
			name: "guard", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			priority: nftables.ChainPriorityRef(-300), rules: []ruleSpec{
				{"what containers send", rule(ifNamePrefix(expr.MetaKeyIIFNAME, VethPrefix), jump("port"))},
				{"frames of overlays that came behind others", rule(ifNamePrefix(expr.MetaKeyIIFNAME, VXLANPrefix), suspected(), drop())},
			},
		},
		{name: "port", rules: []ruleSpec{
			{"antispoof=false, and no policy", rule(free, goTo("roles"))},
			{"hardware address", rule(b.portKey(MACs, true, expr.PayloadBaseLLHeader, 6, 6), drop())},
			{"IPv4", rule(onWire(unix.ETH_P_IP), goTo("ipv4"))},
			{"IPv6", rule(onWire(unix.ETH_P_IPV6), readable(), goTo("ipv6"))},
			{"ARP", rule(onWire(unix.ETH_P_ARP), goTo("arp"))},
			{"drop what cannot be checked: tags, other protocols, IPv6 headers cut by a fragment", drop()},
		}},
		{name: "roles", rules: roleRules(b)},
		{name: "ipv4", rules: slices.Concat([]ruleSpec{
			{"no redirects", rule(icmpType(unix.IPPROTO_ICMP, icmpRedirect), drop())},
			{"no DHCP servers", rule(udpPort(0, dhcpServer), drop())},
			{"own address", rule(b.portKey(Addrs4, false, expr.PayloadBaseNetworkHeader, 12, 4), back())},
		}, forged(b, false), []ruleSpec{
			{"the LAN gives addresses", rule(lan, back())},
			{"DHCP clients have none yet", rule(zero(12, 4), udpPort(0, dhcpClient), udpPort(2, dhcpServer), back())},
			{"no other source", drop()},
		})},
		{name: "ipv6", rules: slices.Concat([]ruleSpec{
			{"neighbour discovery", rule(l4proto(unix.IPPROTO_ICMPV6), jump("nd"))},
			{"no DHCPv6 servers", rule(udpPort(0, dhcp6Server), drop())},
			{"own address, IPv6", rule(b.portKey(Addrs6, false, expr.PayloadBaseNetworkHeader, 8, 16), back())},
		}, forged(b, true), []ruleSpec{
			{"the LAN gives addresses, IPv6", rule(lan, back())},
		}, unspecified())},
		{name: "nd", rules: ndRules(b)},
		{name: "arp", rules: []ruleSpec{
			{"Ethernet and IPv4", rule(payload(expr.PayloadBaseNetworkHeader, 0, "\x00\x01\x08\x00\x06\x04", expr.CmpOpNeq), drop())},
			{"hardware address of the sender", rule(b.portKey(MACs, true, expr.PayloadBaseNetworkHeader, 8, 6), drop())},
			{"address of the sender", rule(b.portKey(Addrs4, false, expr.PayloadBaseNetworkHeader, 14, 4), back())},
			{"the LAN gives addresses, ARP", rule(b.iif(LAN, false), back())},
			{"probes come from nobody", rule(zero(14, 4), back())}, // RFC 5227
			{"no other sender", drop()},
		}},
	}
}

// onPorts drop what comes up on a port itself, not on its bridge: frames to reserved group addresses (br_handle_frame,
// net/bridge/br_input.c). No chain of the bridge family sees all of them. ARP is off on ports of containers.
func onPorts() []ruleSpec {
	return []ruleSpec{
		{"drop what bypasses the bridge of a container", rule(ifNamePrefix(expr.MetaKeyIIFNAME, VethPrefix), drop())},
		{"drop what bypasses the bridge of an overlay", rule(ifNamePrefix(expr.MetaKeyIIFNAME, VXLANPrefix), drop())},
	}
}

// beforeDefragmentation is NF_IP_PRI_RAW_BEFORE_DEFRAG (linux/netfilter_ipv4.h): what is dropped takes no part in
// anybody's fragments.
func beforeDefragmentation() *nftables.ChainPriority { return nftables.ChainPriorityRef(-450) }

// roleRules drop what a router says, and what could have that inside unseen. Of several tags the kernel takes off the
// first only before it looks, and a receiver all of VLAN 0 (__netif_receive_skb_core, net/core/dev.c).
func roleRules(b setBook) []ruleSpec {
	snap := func(organization byte) []expr.Any { // RFC 1042, and IEEE 802.1H
		header := string([]byte{0xaa, 0xaa, 3, 0, 0, organization})
		return rule(etherType(unix.ETH_P_802_2), payload(expr.PayloadBaseNetworkHeader, 0, header, expr.CmpOpEq))
	}
	const bridgeTunnel = 0xf8
	v6 := etherType(unix.ETH_P_IPV6)
	return slices.Concat(forged(b, false), forged(b, true), []ruleSpec{
		{"drop redirects", rule(icmpType(unix.IPPROTO_ICMP, icmpRedirect), drop())},
		{"accept other IPv4", rule(etherType(unix.ETH_P_IP), accept())},
		{"drop router advertisements", rule(icmpType(unix.IPPROTO_ICMPV6, ndRouterAdvert), drop())},
		{"drop IPv6 redirects", rule(icmpType(unix.IPPROTO_ICMPV6, ndRedirect), drop())},
		{"accept other IPv6 whose headers can be read", rule(v6, readable(), accept())},
		{"drop IPv6 headers cut by a fragment", rule(v6, drop())},
		{"drop several tags", rule(etherType(unix.ETH_P_8021Q), drop())},
		{"drop several tags, 802.1ad", rule(etherType(unix.ETH_P_8021AD), drop())},
		{"drop IP in LLC", rule(snap(0), drop())},
		{"drop IP in LLC, 802.1H", rule(snap(bridgeTunnel), drop())},
	})
}

// unspecified lets a host that has no address yet say what it may say without: router and neighbour solicitation
// (RFC 4861, 4.1, 4.3) and the groups it listens to (RFC 3590).
func unspecified() (rules []ruleSpec) {
	for _, c := range []struct {
		kind byte
		text string
	}{{ndRouterSolicit, "asks for a router"}, {ndNeighbourAsk, "probes an address"}, {mldReport, "joins groups"}} {
		rules = append(rules, ruleSpec{"who has no address yet " + c.text, rule(zero(8, 16), icmpType(unix.IPPROTO_ICMPV6, c.kind), back())})
	}
	return append(rules, ruleSpec{"no other source, IPv6", drop()})
}

// ndRules check what neighbour discovery says in its body: the address it is about and the hardware address in its
// option. That option has to be the only one, and no extension header may stand before (RFC 6980 for fragments): the
// offsets are fixed.
func ndRules(b setBook) []ruleSpec {
	const (
		base                 = expr.PayloadBaseTransportHeader
		source, target, size = "\x01\x01", "\x02\x01", 8 // options: kind, and length in units of 8 bytes
		rs, ns               = 8, 24                     // lengths without options
	)
	kind := func(k byte) []expr.Any { return icmpType(unix.IPPROTO_ICMPV6, k) }
	long := func(n byte) []expr.Any {
		return payload(expr.PayloadBaseNetworkHeader, 4, string([]byte{0, n}), expr.CmpOpEq)
	}
	// own: the option at that offset is of that kind and has the port's own hardware address.
	own := func(offset uint32, option string) []expr.Any {
		return rule(long(byte(offset+size)), payload(base, offset, option, expr.CmpOpEq), b.portKey(MACs, false, base, offset+2, 6))
	}
	others := rule(b.portKey(Addrs6, true, base, 8, 16), b.iif(LAN, true), drop())
	return []ruleSpec{
		{"no router advertisements", rule(kind(ndRouterAdvert), drop())},
		{"no IPv6 redirects", rule(kind(ndRedirect), drop())},
		{"what is no neighbour discovery", rule(
			[]expr.Any{
				&expr.Payload{DestRegister: 1, Base: base, Offset: 0, Len: 1},
				&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: []byte{ndRouterSolicit}, ToData: []byte{ndNeighbourAnswer}},
			}, back())},
		{"later fragments, of what is no neighbour discovery", rule(laterFragment(), back())},
		{"nothing in between", rule(payload(expr.PayloadBaseNetworkHeader, 6, "\x3a", expr.CmpOpNeq), drop())},
		{"a router is asked for", rule(kind(ndRouterSolicit), long(rs), back())},
		{"a router is asked for, by hardware address", rule(kind(ndRouterSolicit), own(rs, source), back())},
		{"only own addresses are probed", rule(kind(ndNeighbourAsk), zero(8, 16), others)},
		{"only own addresses are answered for", rule(kind(ndNeighbourAnswer), others)},
		{"a probe with a nonce", rule(kind(ndNeighbourAsk), zero(8, 16), long(ns+size), back())}, // RFC 7527
		{"a neighbour is asked for", rule(kind(ndNeighbourAsk), long(ns), back())},
		{"a neighbour is asked for, by hardware address", rule(kind(ndNeighbourAsk), own(ns, source), back())},
		{"a neighbour is answered", rule(kind(ndNeighbourAnswer), long(ns), back())},
		{"a neighbour is answered, with hardware address", rule(kind(ndNeighbourAnswer), own(ns, target), back())},
		{"no other neighbour discovery", drop()},
	}
}

// portKey looks up the incoming port together with a piece of the packet.
func (b setBook) portKey(set SetName, invert bool, base expr.PayloadBase, offset, size uint32) []expr.Any {
	return b.ifKey(expr.MetaKeyIIFNAME, set, invert, base, offset, size)
}

func (b setBook) ifKey(key expr.MetaKey, set SetName, invert bool, base expr.PayloadBase, offset, size uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Payload{DestRegister: 2, Base: base, Offset: offset, Len: size},
		b.lookup(set, invert),
	}
}

func payload(base expr.PayloadBase, offset uint32, data string, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))}, //nolint:gosec // a few bytes
		&expr.Cmp{Op: op, Register: 1, Data: []byte(data)},
	}
}

// zero matches when that much of the network header is zeros: the unspecified address.
func zero(offset, size uint32) []expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, offset, string(make([]byte, size)), expr.CmpOpEq)
}

// readable matches IPv6 of which the chain of headers can be followed to the protocol. In a first fragment it may end
// before that, and then what the receiver puts together was seen by nobody (RFC 7112).
func readable() []expr.Any {
	const reserved = 255 // RFC 5237: no protocol
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{reserved}},
	}
}

// laterFragment matches fragments of IPv6 but the first (RFC 8200, section 4.5). No receiver puts together what lacks
// its first.
func laterFragment() []expr.Any {
	const next, header, offset = 6, 44, 40 + 2
	return append(payload(expr.PayloadBaseNetworkHeader, next, string([]byte{header}), expr.CmpOpEq),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}})
}

// onWire matches the type that stands in the frame: that of a tag, where there is one. Meta's protocol is what is
// behind the first tag.
func onWire(t uint16) []expr.Any {
	const at = 12
	return payload(expr.PayloadBaseLLHeader, at, string([]byte{byte(t >> 8), byte(t)}), expr.CmpOpEq)
}

func etherType(t uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(t >> 8), byte(t)}},
	}
}

// udpPort matches a port of UDP: the source's at offset 0, the destination's at 2.
func udpPort(offset uint32, port uint16) []expr.Any {
	return rule(udp(), payload(expr.PayloadBaseTransportHeader, offset, string([]byte{byte(port >> 8), byte(port)}), expr.CmpOpEq))
}

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

func back() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }
