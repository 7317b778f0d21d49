// Package bridge is about bridges and their ports: the links, their rate limits, the guard of what a port may send,
// and what bridges know of their ports.
package bridge

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// The guard of ports: what a container sends has to come from the addresses its endpoint was given. It stands in the
// bridge family, before anything else sees the frame, and is closed for a port nothing is known of.
const (
	// MACs has the hardware address of each port.
	MACs rule.SetName = "macs"
	// Addrs4 and Addrs6 have the addresses of each port; IPv6's link-local one is among them.
	Addrs4 rule.SetName = "addrs4"
	Addrs6 rule.SetName = "addrs6"
	// Unguarded has the ports that may use any address (antispoof=false).
	Unguarded rule.SetName = "unguarded"
	// LAN has the ports on bridges of the host's owner: addresses there may come from others than netyard.
	LAN rule.SetName = "lan"
)

func guardSets() []rule.Set {
	port := nftables.TypeIFName
	return []rule.Set{
		{Name: MACs, Type: nftables.MustConcatSetType(port, nftables.TypeEtherAddr), Concat: true, Bridge: true},
		{Name: Addrs4, Type: nftables.MustConcatSetType(port, nftables.TypeIPAddr), Concat: true, Bridge: true},
		{Name: Addrs6, Type: nftables.MustConcatSetType(port, nftables.TypeIP6Addr), Concat: true, Bridge: true},
		{Name: Unguarded, Type: port, Bridge: true},
		{Name: LAN, Type: port, Bridge: true},
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
func (g PortGuard) Objects() []core.Object {
	objects := []core.Object{nft.NewElement(guardSets(), MACs, rule.IfName(g.Port)+string(g.MAC)+"\x00\x00", "")}
	for _, a := range append(g.Addrs[:len(g.Addrs):len(g.Addrs)], core.LinkLocal(g.MAC)) {
		set := Addrs4
		if a.Is6() {
			set = Addrs6
		}
		objects = append(objects, nft.NewElement(guardSets(), set, rule.IfName(g.Port)+string(a.AsSlice()), ""))
	}
	if g.Open {
		objects = append(objects, nft.InterfaceIn(Unguarded, g.Port))
	}
	if g.LAN {
		objects = append(objects, nft.InterfaceIn(LAN, g.Port))
	}
	return objects
}

// NDNeighbourAnswer is a neighbour advertisement (RFC 4861).
const NDNeighbourAnswer = 136

const (
	icmpRedirect = 5 // RFC 792

	// RFC 4861
	ndRouterSolicit = 133
	ndRouterAdvert  = 134
	ndNeighbourAsk  = 135
	ndRedirect      = 137
	mldReport       = 143 // RFC 3810

	dhcpServer, dhcpClient, dhcp6Server = 67, 68, 547 // RFC 2131, RFC 8415
)

// GuardChains decide about every frame that enters a bridge by a port of netyard's: one comparison for all others.
// Their priority is that of destination NAT in this family, since br_netfilter (0) and conntrack (-200) shall not see
// what is dropped.
func GuardChains(b rule.Book) []rule.Chain {
	free := rule.Join(b.IIF(Unguarded, false), b.IIF(Bound, true))
	lan := rule.Join(b.IIF(LAN, false), b.IIF(Bound, true))
	return []rule.Chain{
		{
			Name: "guard", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityRef(-300), Rules: []rule.Rule{
				rule.New("what containers send", rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VethPrefix), rule.Jump("port")),
				rule.New("frames of overlays that came behind others", rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VXLANPrefix), suspected(), rule.Drop()),
			},
		},
		{Name: "port", Rules: []rule.Rule{
			rule.New("antispoof=false, and no policy", free, rule.GoTo("roles")),
			rule.New("hardware address", b.PortKey(MACs, true, expr.PayloadBaseLLHeader, 6, 6), rule.Drop()),
			rule.New("IPv4", onWire(unix.ETH_P_IP), rule.GoTo("ipv4")),
			rule.New("IPv6", onWire(unix.ETH_P_IPV6), readable(), rule.GoTo("ipv6")),
			rule.New("ARP", onWire(unix.ETH_P_ARP), rule.GoTo("arp")),
			rule.New("drop what cannot be checked: tags, other protocols, IPv6 headers cut by a fragment", rule.Drop()),
		}},
		{Name: "roles", Rules: roleRules(b)},
		{Name: "ipv4", Rules: slices.Concat([]rule.Rule{
			rule.New("no redirects", rule.ICMPType(unix.IPPROTO_ICMP, icmpRedirect), rule.Drop()),
			rule.New("no DHCP servers", rule.UDPPort(0, dhcpServer), rule.Drop()),
			rule.New("own address", b.PortKey(Addrs4, false, expr.PayloadBaseNetworkHeader, 12, 4), rule.Back()),
		}, forged(b, false), []rule.Rule{
			rule.New("the LAN gives addresses", lan, rule.Back()),
			rule.New("DHCP clients have none yet", rule.Zero(12, 4), rule.UDPPort(0, dhcpClient), rule.UDPPort(2, dhcpServer), rule.Back()),
			rule.New("no other source", rule.Drop()),
		})},
		{Name: "ipv6", Rules: slices.Concat([]rule.Rule{
			rule.New("neighbour discovery", rule.L4proto(unix.IPPROTO_ICMPV6), rule.Jump("nd")),
			rule.New("no DHCPv6 servers", rule.UDPPort(0, dhcp6Server), rule.Drop()),
			rule.New("own address, IPv6", b.PortKey(Addrs6, false, expr.PayloadBaseNetworkHeader, 8, 16), rule.Back()),
		}, forged(b, true), []rule.Rule{
			rule.New("the LAN gives addresses, IPv6", lan, rule.Back()),
		}, unspecified())},
		{Name: "nd", Rules: ndRules(b)},
		{Name: "arp", Rules: []rule.Rule{
			rule.New("Ethernet and IPv4", rule.Payload(expr.PayloadBaseNetworkHeader, 0, "\x00\x01\x08\x00\x06\x04", expr.CmpOpNeq), rule.Drop()),
			rule.New("hardware address of the sender", b.PortKey(MACs, true, expr.PayloadBaseNetworkHeader, 8, 6), rule.Drop()),
			rule.New("address of the sender", b.PortKey(Addrs4, false, expr.PayloadBaseNetworkHeader, 14, 4), rule.Back()),
			rule.New("the LAN gives addresses, ARP", b.IIF(LAN, false), rule.Back()),
			rule.New("probes come from nobody", rule.Zero(14, 4), rule.Back()), // RFC 5227
			rule.New("no other sender", rule.Drop()),
		}},
	}
}

// OnPorts drop what comes up on a port itself, not on its bridge: frames to reserved group addresses (br_handle_frame,
// net/bridge/br_input.c). No chain of the bridge family sees all of them. ARP is off on ports of containers.
func OnPorts() []rule.Rule {
	return []rule.Rule{
		rule.New("drop what bypasses the bridge of a container", rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VethPrefix), rule.Drop()),
		rule.New("drop what bypasses the bridge of an overlay", rule.IfNamePrefix(expr.MetaKeyIIFNAME, core.VXLANPrefix), rule.Drop()),
	}
}

// BeforeDefragmentation is NF_IP_PRI_RAW_BEFORE_DEFRAG (linux/netfilter_ipv4.h): what is dropped takes no part in
// anybody's fragments.
func BeforeDefragmentation() *nftables.ChainPriority { return nftables.ChainPriorityRef(-450) }

// roleRules drop what a router says, and what could have that inside unseen. Of several tags the kernel takes off the
// first only before it looks, and a receiver all of VLAN 0 (__netif_receive_skb_core, net/core/dev.c).
func roleRules(b rule.Book) []rule.Rule {
	snap := func(organization byte) []expr.Any { // RFC 1042, and IEEE 802.1H
		header := string([]byte{0xaa, 0xaa, 3, 0, 0, organization})
		return rule.Join(rule.EtherType(unix.ETH_P_802_2), rule.Payload(expr.PayloadBaseNetworkHeader, 0, header, expr.CmpOpEq))
	}
	const bridgeTunnel = 0xf8
	v6 := rule.EtherType(unix.ETH_P_IPV6)
	return slices.Concat(forged(b, false), forged(b, true), []rule.Rule{
		rule.New("drop redirects", rule.ICMPType(unix.IPPROTO_ICMP, icmpRedirect), rule.Drop()),
		rule.New("accept other IPv4", rule.EtherType(unix.ETH_P_IP), rule.Accept()),
		rule.New("drop router advertisements", rule.ICMPType(unix.IPPROTO_ICMPV6, ndRouterAdvert), rule.Drop()),
		rule.New("drop IPv6 redirects", rule.ICMPType(unix.IPPROTO_ICMPV6, ndRedirect), rule.Drop()),
		rule.New("accept other IPv6 whose headers can be read", v6, readable(), rule.Accept()),
		rule.New("drop IPv6 headers cut by a fragment", v6, rule.Drop()),
		rule.New("drop several tags", rule.EtherType(unix.ETH_P_8021Q), rule.Drop()),
		rule.New("drop several tags, 802.1ad", rule.EtherType(unix.ETH_P_8021AD), rule.Drop()),
		rule.New("drop IP in LLC", snap(0), rule.Drop()),
		rule.New("drop IP in LLC, 802.1H", snap(bridgeTunnel), rule.Drop()),
	})
}

// unspecified lets a host that has no address yet say what it may say without: router and neighbour solicitation
// (RFC 4861, 4.1, 4.3) and the groups it listens to (RFC 3590).
func unspecified() (rules []rule.Rule) {
	for _, c := range []struct {
		kind byte
		text string
	}{{ndRouterSolicit, "asks for a router"}, {ndNeighbourAsk, "probes an address"}, {mldReport, "joins groups"}} {
		rules = append(rules, rule.New("who has no address yet "+c.text, rule.Zero(8, 16), rule.ICMPType(unix.IPPROTO_ICMPV6, c.kind), rule.Back()))
	}
	return append(rules, rule.New("no other source, IPv6", rule.Drop()))
}

// ndRules check what neighbour discovery says in its body: the address it is about and the hardware address in its
// option. That option has to be the only one, and no extension header may stand before (RFC 6980 for fragments): the
// offsets are fixed.
func ndRules(b rule.Book) []rule.Rule {
	const (
		base                 = expr.PayloadBaseTransportHeader
		source, target, size = "\x01\x01", "\x02\x01", 8 // options: kind, and length in units of 8 bytes
		rs, ns               = 8, 24                     // lengths without options
	)
	kind := func(k byte) []expr.Any { return rule.ICMPType(unix.IPPROTO_ICMPV6, k) }
	long := func(n byte) []expr.Any {
		return rule.Payload(expr.PayloadBaseNetworkHeader, 4, string([]byte{0, n}), expr.CmpOpEq)
	}
	// own: the option at that offset is of that kind and has the port's own hardware address.
	own := func(offset uint32, option string) []expr.Any {
		return rule.Join(long(byte(offset+size)), rule.Payload(base, offset, option, expr.CmpOpEq), b.PortKey(MACs, false, base, offset+2, 6))
	}
	others := rule.Join(b.PortKey(Addrs6, true, base, 8, 16), b.IIF(LAN, true), rule.Drop())
	return []rule.Rule{
		rule.New("no router advertisements", kind(ndRouterAdvert), rule.Drop()),
		rule.New("no IPv6 redirects", kind(ndRedirect), rule.Drop()),
		rule.New("what is no neighbour discovery",
			[]expr.Any{
				&expr.Payload{DestRegister: 1, Base: base, Offset: 0, Len: 1},
				&expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: []byte{ndRouterSolicit}, ToData: []byte{NDNeighbourAnswer}},
			}, rule.Back()),
		rule.New("later fragments, of what is no neighbour discovery", laterFragment(), rule.Back()),
		rule.New("nothing in between", rule.Payload(expr.PayloadBaseNetworkHeader, 6, "\x3a", expr.CmpOpNeq), rule.Drop()),
		rule.New("a router is asked for", kind(ndRouterSolicit), long(rs), rule.Back()),
		rule.New("a router is asked for, by hardware address", kind(ndRouterSolicit), own(rs, source), rule.Back()),
		rule.New("only own addresses are probed", kind(ndNeighbourAsk), rule.Zero(8, 16), others),
		rule.New("only own addresses are answered for", kind(NDNeighbourAnswer), others),
		rule.New("a probe with a nonce", kind(ndNeighbourAsk), rule.Zero(8, 16), long(ns+size), rule.Back()), // RFC 7527
		rule.New("a neighbour is asked for", kind(ndNeighbourAsk), long(ns), rule.Back()),
		rule.New("a neighbour is asked for, by hardware address", kind(ndNeighbourAsk), own(ns, source), rule.Back()),
		rule.New("a neighbour is answered", kind(NDNeighbourAnswer), long(ns), rule.Back()),
		rule.New("a neighbour is answered, with hardware address", kind(NDNeighbourAnswer), own(ns, target), rule.Back()),
		rule.New("no other neighbour discovery", rule.Drop()),
	}
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
	return append(rule.Payload(expr.PayloadBaseNetworkHeader, next, string([]byte{header}), expr.CmpOpEq),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}})
}

// onWire matches the type that stands in the frame: that of a tag, where there is one. Meta's protocol is what is
// behind the first tag.
func onWire(t uint16) []expr.Any {
	const at = 12
	return rule.Payload(expr.PayloadBaseLLHeader, at, string([]byte{byte(t >> 8), byte(t)}), expr.CmpOpEq)
}
