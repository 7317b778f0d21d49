// Package bridge makes bridges and their ports: the links, their rate limits, the guard that checks what a port may
// send, and the view of what bridges know of their ports.
package bridge

import (
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// The port guard drops what a container sends from addresses other than those of its endpoint. It works in the bridge
// family, before anything else sees the frame, and fails closed: a port without elements can send nothing.
const (
	// MACs holds (port, hardware address): what each port may send from.
	MACs rule.SetName = "macs"
	// Addrs4 and Addrs6 hold (port, address): what each port may send from. IPv6 includes the link-local address.
	Addrs4 rule.SetName = "addrs4"
	Addrs6 rule.SetName = "addrs6"
	// ndMACs and ndTargets hold the same for neighbour discovery: what each port may name in an option, and what it may
	// be about. nft has no name for the fields that they are looked up with, or not in every version.
	ndMACs    rule.SetName = "nd_macs"
	ndTargets rule.SetName = "nd_targets"
	// Unguarded holds the ports that may use any address (antispoof=false).
	Unguarded rule.SetName = "unguarded"
	// LAN holds the ports that are bound to their hardware address only: on a host bridge, others than netyard assign
	// addresses, and a container that is a gateway forwards packets of others.
	LAN rule.SetName = "lan"
)

// guardSets returns the sets of the guard. Nobody changes them: each element is written with their help.
var guardSets = sync.OnceValue(func() []rule.Set {
	port := nftables.TypeIFName
	return []rule.Set{
		{Name: MACs, Type: nftables.MustConcatSetType(port, nftables.TypeEtherAddr), Concat: true, Bridge: true},
		{Name: Addrs4, Type: nftables.MustConcatSetType(port, nftables.TypeIPAddr), Concat: true, Bridge: true},
		{Name: Addrs6, Type: nftables.MustConcatSetType(port, nftables.TypeIP6Addr), Concat: true, Bridge: true},
		{
			Name: ndMACs, Type: nftables.MustConcatSetType(port, nftables.TypeEtherAddr), Concat: true, Bridge: true,
			Raw: ndField(ndRSLength+2, 6),
		},
		{
			Name: ndTargets, Type: nftables.MustConcatSetType(port, nftables.TypeIP6Addr), Concat: true, Bridge: true,
			Raw: ndField(8, 16),
		},
		{Name: Unguarded, Type: port, Bridge: true},
		{Name: LAN, Type: port, Bridge: true},
	}
})

// A PortGuard is what a bridge port may send.
type PortGuard struct {
	Port  string
	MAC   net.HardwareAddr
	Addrs []netip.Addr
	// Open ports may use any address.
	Open bool
	// LAN ports are bound to their hardware address only.
	LAN bool
}

// Objects returns the set elements of the guard. They include the addresses of an open port, too, since a policy may
// bind the port to them.
func (g PortGuard) Objects() []core.Object {
	mac := rule.IfName(g.Port) + string(g.MAC) + "\x00\x00"
	objects := []core.Object{
		nft.NewElement(guardSets(), MACs, mac, ""), nft.NewElement(guardSets(), ndMACs, mac, ""),
	}
	for _, a := range append(g.Addrs[:len(g.Addrs):len(g.Addrs)], core.LinkLocal(g.MAC)) {
		for _, e := range MaySend(g.Port, a) {
			objects = append(objects, e)
		}
	}
	if g.Open {
		objects = append(objects, nft.InterfaceIn(Unguarded, g.Port))
	}
	if g.LAN {
		objects = append(objects, nft.InterfaceIn(LAN, g.Port))
	}
	return objects
}

// MaySend returns the elements that let a port send from an address.
func MaySend(port string, from netip.Addr) []nft.Element {
	key := rule.IfName(port) + string(from.AsSlice())
	if from.Is4() {
		return []nft.Element{nft.NewElement(guardSets(), Addrs4, key, "")}
	}
	return []nft.Element{
		nft.NewElement(guardSets(), Addrs6, key, ""), nft.NewElement(guardSets(), ndTargets, key, ""),
	}
}

// NDNeighbourAdvert is the ICMPv6 type of a neighbour advertisement (RFC 4861).
const NDNeighbourAdvert = 136

const (
	icmpRedirect = 5 // RFC 792

	// RFC 4861
	ndRouterSolicit    = 133
	ndRouterAdvert     = 134
	ndNeighbourSolicit = 135
	ndRedirect         = 137
	mldReport          = 143 // RFC 3810

	dhcpServer, dhcpClient, dhcp6Server = 67, 68, 547 // RFC 2131, RFC 8415
)

// GuardChains returns the chains that check every frame which enters a bridge by a port of netyard's. A frame from any
// other port costs only the comparison of the port's name. Their priority is that of destination NAT in this family, so
// that br_netfilter (0) and conntrack (-200) never see what is dropped.
func GuardChains(b rule.SetBook) []rule.Chain {
	unchecked := rule.Join(b.IIF(Unguarded, false), b.IIF(Bound, true))
	return []rule.Chain{
		{
			Name: "guard", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityRef(-300), Rules: []rule.Rule{
				rule.New("check frames from containers", fromPort(core.VethPrefix), rule.Jump("port")),
				rule.New("drop overlay frames hidden behind another datagram",
					fromPort(core.VXLANPrefix), suspected(), rule.Drop()),
			},
		},
		{Name: "port", Rules: []rule.Rule{
			rule.New("antispoof=false and no egress policy: skip the address checks", unchecked, rule.GoTo("roles")),
			rule.New("drop spoofed source MAC address",
				b.PortKey(MACs, true, expr.PayloadBaseLLHeader, 6, 6), rule.Drop()),
			rule.New("check IPv4", outerEtherType(unix.ETH_P_IP), rule.GoTo("ipv4")),
			rule.New("check IPv6", outerEtherType(unix.ETH_P_IPV6), readable(), rule.GoTo("ipv6")),
			rule.New("check ARP", outerEtherType(unix.ETH_P_ARP), rule.GoTo("check_arp")),
			rule.New("drop what cannot be checked: VLAN tags, other protocols, IPv6 header chains cut by a fragment",
				rule.Drop()),
		}},
		{Name: "roles", Rules: roleRules(b)},
		{Name: "ipv4", Rules: ipv4Rules(b)},
		{Name: "ipv6", Rules: ipv6Rules(b)},
		{Name: fragmentChain, Rules: fragmentRules()},
		{Name: "nd", Rules: ndRules(b)},
		{Name: "check_arp", Rules: arpRules(b)},
	}
}

// fromPort matches frames from a port whose name begins with prefix.
func fromPort(prefix string) []expr.Any { return rule.IfNamePrefix(expr.MetaKeyIIFNAME, prefix) }

// PortBypassRules returns the rules that drop what ends at a port itself and not at its bridge: frames to reserved
// group addresses (br_handle_frame, net/bridge/br_input.c). No chain of the bridge family sees all of them. ARP needs
// no rule, since it is off on the ports of containers.
func PortBypassRules() []rule.Rule {
	return []rule.Rule{
		rule.New("drop what bypasses the bridge of a container", fromPort(core.VethPrefix), rule.Drop()),
		rule.New("drop what bypasses the bridge of an overlay", fromPort(core.VXLANPrefix), rule.Drop()),
	}
}

// BeforeDefragmentation is NF_IP_PRI_RAW_BEFORE_DEFRAG (linux/netfilter_ipv4.h). A packet that is dropped there never
// becomes part of a reassembled one.
func BeforeDefragmentation() *nftables.ChainPriority { return nftables.ChainPriorityRef(-450) }

// roleRules drop what only a router sends, and frames in which that could be hidden. Of several VLAN tags the kernel
// removes only the first one before these rules, while a receiver removes all tags of VLAN 0 (__netif_receive_skb_core,
// net/core/dev.c).
func roleRules(b rule.SetBook) []rule.Rule {
	snap := func(organization byte) []expr.Any { // RFC 1042, and IEEE 802.1H
		header := string([]byte{0xaa, 0xaa, 3, 0, 0, organization})
		return rule.Join(rule.EtherType(unix.ETH_P_802_2),
			rule.Payload(expr.PayloadBaseNetworkHeader, 0, header, expr.CmpOpEq))
	}
	const bridgeTunnel = 0xf8
	v6 := rule.EtherType(unix.ETH_P_IPV6)
	return slices.Concat(forgedRules(b, false), forgedRules(b, true), []rule.Rule{
		rule.New("drop ICMP redirects", rule.ICMPType(unix.IPPROTO_ICMP, icmpRedirect), rule.Drop()),
		rule.New("accept other IPv4", rule.EtherType(unix.ETH_P_IP), rule.Accept()),
		rule.New("drop router advertisements", rule.ICMPType(unix.IPPROTO_ICMPV6, ndRouterAdvert), rule.Drop()),
		rule.New("drop ICMPv6 redirects", rule.ICMPType(unix.IPPROTO_ICMPV6, ndRedirect), rule.Drop()),
		rule.New("check IPv6 fragments", v6, Fragment6(), rule.Jump(fragmentChain)),
		rule.New("accept other IPv6 with a complete header chain", v6, readable(), rule.Accept()),
		rule.New("drop IPv6 header chains cut by a fragment", v6, rule.Drop()),
		rule.New("drop frames with several VLAN tags", rule.EtherType(unix.ETH_P_8021Q), rule.Drop()),
		rule.New("drop frames with several VLAN tags, 802.1ad", rule.EtherType(unix.ETH_P_8021AD), rule.Drop()),
		rule.New("drop IP inside LLC and SNAP", snap(0), rule.Drop()),
		rule.New("drop IP inside LLC and SNAP, 802.1H", snap(bridgeTunnel), rule.Drop()),
	})
}

// lanAddress matches ports whose IP source address is not checked, since the LAN assigns it.
func lanAddress(b rule.SetBook) []expr.Any { return rule.Join(b.IIF(LAN, false), b.IIF(Bound, true)) }

// ipv4Rules check the source address of IPv4, and drop what only a router or a DHCP server sends.
func ipv4Rules(b rule.SetBook) []rule.Rule {
	const base, source, destination, size = expr.PayloadBaseNetworkHeader, 12, 16, 4 // RFC 791
	return slices.Concat([]rule.Rule{
		rule.New("drop ICMP redirects", rule.ICMPType(unix.IPPROTO_ICMP, icmpRedirect), rule.Drop()),
		rule.New("drop DHCP server messages", rule.UDPPort(0, dhcpServer), rule.Drop()),
		rule.New("accept own source address",
			rule.EtherType(unix.ETH_P_IP), b.PortKey(Addrs4, false, base, source, size), rule.Return()),
	}, forgedRules(b, false), []rule.Rule{
		rule.New("accept any source: the LAN assigns addresses", lanAddress(b), rule.Return()),
		rule.New("no egress policy: accept DHCP broadcasts without a source address",
			b.IIF(Bound, true), rule.Zero(source, size),
			rule.Payload(base, destination, "\xff\xff\xff\xff", expr.CmpOpEq),
			rule.UDPPort(0, dhcpClient), rule.UDPPort(2, dhcpServer), rule.Return()),
		rule.New("drop spoofed source address", rule.Drop()),
	})
}

// ipv6Rules do the same for IPv6, and have neighbour discovery checked.
func ipv6Rules(b rule.SetBook) []rule.Rule {
	const base, source, size = expr.PayloadBaseNetworkHeader, 8, 16 // RFC 8200
	return slices.Concat([]rule.Rule{
		rule.New("check IPv6 fragments", Fragment6(), rule.Jump(fragmentChain)),
		rule.New("check neighbour discovery", rule.L4proto(unix.IPPROTO_ICMPV6), rule.Jump("nd")),
		rule.New("drop DHCPv6 server messages", rule.UDPPort(0, dhcp6Server), rule.Drop()),
		rule.New("accept own source address, IPv6",
			rule.EtherType(unix.ETH_P_IPV6), b.PortKey(Addrs6, false, base, source, size), rule.Return()),
	}, forgedRules(b, true), []rule.Rule{
		rule.New("accept any source: the LAN assigns addresses, IPv6", lanAddress(b), rule.Return()),
	}, unspecifiedRules())
}

// arpRules check the sender's addresses in the body of ARP.
func arpRules(b rule.SetBook) []rule.Rule {
	const (
		base               = expr.PayloadBaseNetworkHeader
		hardware, protocol = 8, 14 // offsets of the sender's addresses (RFC 826)
		ethernetIPv4       = "\x00\x01\x08\x00\x06\x04"
	)
	return []rule.Rule{
		rule.New("drop ARP other than for IPv4 over Ethernet",
			rule.Payload(base, 0, ethernetIPv4, expr.CmpOpNeq), rule.Drop()),
		rule.New("drop ARP with spoofed sender MAC address",
			rule.EtherType(unix.ETH_P_ARP), b.PortKey(MACs, true, base, hardware, 6), rule.Drop()),
		rule.New("accept ARP with own sender address",
			rule.EtherType(unix.ETH_P_ARP), b.PortKey(Addrs4, false, base, protocol, 4), rule.Return()),
		rule.New("accept ARP with any sender address: the LAN assigns addresses", b.IIF(LAN, false), rule.Return()),
		rule.New("accept ARP probes", rule.Zero(protocol, 4), rule.Return()), // RFC 5227
		rule.New("drop ARP with spoofed sender address", rule.Drop()),
	}
}

// unspecifiedRules accept what a host without an address may send: router and neighbour solicitation (RFC 4861, 4.1,
// 4.3) and reports of the groups it listens to (RFC 3590). They drop every other source.
func unspecifiedRules() (rules []rule.Rule) {
	for _, c := range []struct {
		kind byte
		text string
	}{
		{ndRouterSolicit, "router solicitations"},
		{ndNeighbourSolicit, "address probes"},
		{mldReport, "multicast reports"},
	} {
		rules = append(rules, rule.New("accept "+c.text+" without a source address",
			rule.Zero(8, 16), rule.ICMPType(unix.IPPROTO_ICMPV6, c.kind), rule.Return()))
	}
	return append(rules, rule.New("drop spoofed source address, IPv6", rule.Drop()))
}

// ndRules check the body of neighbour discovery: the address that it is about, and the hardware address in its option.
// The option has to be the only one, and no extension header may precede the message (RFC 6980 for fragments), since
// the rules read fixed offsets.
func ndRules(b rule.SetBook) []rule.Rule {
	const (
		base                 = expr.PayloadBaseTransportHeader
		source, target, size = "\x01\x01", "\x02\x01", 8 // options: kind, and length in units of 8 bytes
		rs, ns               = ndRSLength, 24            // lengths without options
	)
	kind := func(k byte) []expr.Any { return rule.ICMPType(unix.IPPROTO_ICMPV6, k) }
	long := func(n byte) []expr.Any {
		return rule.Payload(expr.PayloadBaseNetworkHeader, 4, string([]byte{0, n}), expr.CmpOpEq)
	}
	// own matches a message whose option at that offset is of that kind and has the port's own hardware address.
	own := func(offset uint32, option string) []expr.Any {
		return rule.Join(long(byte(offset+size)), rule.Payload(base, offset, option, expr.CmpOpEq),
			b.PortField(ndMACs, false, ndField(offset+2, 6)))
	}
	others := rule.Join(b.PortField(ndTargets, true, ndField(8, 16)), b.IIF(LAN, true), rule.Drop())
	return []rule.Rule{
		rule.New("drop router advertisements", kind(ndRouterAdvert), rule.Drop()),
		rule.New("drop ICMPv6 redirects", kind(ndRedirect), rule.Drop()),
		rule.New("continue with other ICMPv6",
			[]expr.Any{
				&expr.Payload{DestRegister: 1, Base: base, Offset: 0, Len: 1},
				&expr.Range{
					Op: expr.CmpOpNeq, Register: 1,
					FromData: []byte{ndRouterSolicit}, ToData: []byte{NDNeighbourAdvert},
				},
			}, rule.Return()),
		rule.New("continue with later fragments of other ICMPv6", laterFragment(), rule.Return()),
		rule.New("drop neighbour discovery behind extension headers",
			rule.Payload(expr.PayloadBaseNetworkHeader, 6, "\x3a", expr.CmpOpNeq), rule.Drop()),
		rule.New("continue with router solicitations", kind(ndRouterSolicit), long(rs), rule.Return()),
		rule.New("continue with router solicitations with own MAC address",
			kind(ndRouterSolicit), own(rs, source), rule.Return()),
		rule.New("drop address probes for others' addresses", kind(ndNeighbourSolicit), rule.Zero(8, 16), others),
		rule.New("drop neighbour advertisements of others' addresses", kind(NDNeighbourAdvert), others),
		rule.New("continue with address probes with a nonce", // RFC 7527
			kind(ndNeighbourSolicit), rule.Zero(8, 16), long(ns+size), rule.Return()),
		rule.New("continue with neighbour solicitations", kind(ndNeighbourSolicit), long(ns), rule.Return()),
		rule.New("continue with neighbour solicitations with own MAC address",
			kind(ndNeighbourSolicit), own(ns, source), rule.Return()),
		rule.New("continue with neighbour advertisements", kind(NDNeighbourAdvert), long(ns), rule.Return()),
		rule.New("continue with neighbour advertisements with own MAC address",
			kind(NDNeighbourAdvert), own(ns, target), rule.Return()),
		rule.New("drop other neighbour discovery", rule.Drop()),
	}
}

// ndRSLength is the length of a router solicitation without options (RFC 4861).
const ndRSLength = 8

// ndField is a field of a message of neighbour discovery that no extension header precedes. nft has names for some of
// these fields, but not in every version: not if they are found by the network header.
func ndField(offset, size uint32) rule.RawField {
	const header = 40 // RFC 8200
	return rule.RawField{Base: expr.PayloadBaseNetworkHeader, Offset: header + offset, Len: size}
}

// readable matches IPv6 packets whose header chain can be followed to the upper-layer protocol. In a first fragment the
// chain may end before that, and then no rule has seen what the receiver reassembles (RFC 7112).
func readable() []expr.Any {
	const reserved = 255 // RFC 5237: no protocol
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{reserved}},
	}
}

// laterFragment matches IPv6 fragments other than the first one (RFC 8200, section 4.5). No receiver reassembles a
// packet that lacks its first fragment, and a first fragment with neighbour discovery is dropped.
func laterFragment() []expr.Any {
	const next, header, offset = 6, 44, 40 + 2
	return append(rule.Payload(expr.PayloadBaseNetworkHeader, next, string([]byte{header}), expr.CmpOpEq),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}})
}

// outerEtherType matches the EtherType in the frame itself: that of the tag, where there is one. meta protocol is the
// type behind the first tag.
func outerEtherType(t uint16) []expr.Any {
	const at = 12
	return rule.Payload(expr.PayloadBaseLLHeader, at, string([]byte{byte(t >> 8), byte(t)}), expr.CmpOpEq)
}
