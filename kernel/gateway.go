package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// How a network is joined to what is outside of it, for each family: translated (the default), routed, or not at all; with which
// address its containers leave, and whether one of them stands between the others and the outside.
const (
	// open4 and open6 have the ports that containers of routed networks publish: by their own addresses. Those of one port each are
	// found by hashing, ranges by their bounds, as in the maps of published ports.
	open4      SetName = "open4"
	open6      SetName = "open6"
	openRange4 SetName = "open_range4"
	openRange6 SetName = "open_range6"

	// routed4 and routed6 have the bridges whose containers are reached by their own addresses.
	routed4 SetName = "routed4"
	routed6 SetName = "routed6"
	// isolated4 and isolated6 have the bridges that the host has no address on.
	isolated4 SetName = "isolated4"
	isolated6 SetName = "isolated6"

	// egress4 and egress6 say which address what leaves a subnet takes.
	egress4 SetName = "egress4"
	egress6 SetName = "egress6"

	// guided has the bridges of networks that a container of theirs is the gateway of, guide4 and guide6 its addresses if it goes out
	// by that bridge itself.
	guided SetName = "guided"
	guide4 SetName = "guide4"
	guide6 SetName = "guide6"

	admitChain = "admit"
)

// An OpenPort is a port of a container, or Count of them in a row, that is reached without translation.
type OpenPort struct {
	Proto       string // tcp, udp, sctp
	Addr        netip.Addr
	Port, Count uint16
}

// Elements are what puts the port into the ruleset.
func (p OpenPort) Elements() []Element {
	set, ranges := open4, openRange4
	if p.Addr.Is6() {
		set, ranges = open6, openRange6
	}
	addr := string(p.Addr.AsSlice())
	if p.Count <= 1 {
		return []Element{{Set: set, text: fmt.Sprintf("%s . %s . %d", p.Addr, p.Proto, p.Port), key: addr + portKey(p.Proto, p.Port)}}
	}
	last := p.Port + p.Count - 1
	return []Element{{
		Set: ranges, text: fmt.Sprintf("%s . %s . %d-%d", p.Addr, p.Proto, p.Port, last), key: addr + portKey(p.Proto, p.Port),
		content: content{end: addr + portKey(p.Proto, last)},
	}}
}

// Opened are the ports of containers' own that the ruleset has, as Published are those of the host.
func (k *Kernel) Opened() (all []OpenPort) {
	k.fw.mu.Lock()
	defer k.fw.mu.Unlock()
	for _, w := range k.fw.want {
		size := net.IPv4len
		switch w.Set {
		case open6, openRange6:
			size = net.IPv6len
		case open4, openRange4:
		default:
			continue
		}
		addr, _ := netip.AddrFromSlice([]byte(w.key[:size]))
		p := OpenPort{Proto: protoName(w.key[size]), Addr: addr, Port: portOf(w.key[size+4:]), Count: 1}
		if w.end != "" {
			p.Count = portOf(w.end[size+4:]) - p.Port + 1
		}
		all = append(all, p)
	}
	return all
}

// Routed lets what opens a port, and echo requests, through to the containers of a bridge by their own addresses.
func Routed(bridge string, v6 bool) Element { return InterfaceIn(either(v6, routed4, routed6), bridge) }

// Isolated keeps what a bridge's containers send from the host itself.
func Isolated(bridge string, v6 bool) Element {
	return InterfaceIn(either(v6, isolated4, isolated6), bridge)
}

// Egress makes what leaves a subnet take an address of the host's.
func Egress(subnet netip.Prefix, as netip.Addr) Element {
	e := SubnetIn(either(as.Is6(), egress4, egress6), subnet)
	e.text += " : " + as.String()
	e.val = string(as.AsSlice())
	return e
}

// Guided lets nothing out of a bridge but what is from one of the addresses: of the container that the others go out by.
func Guided(bridge string, by []netip.Addr) []Element {
	all := []Element{InterfaceIn(guided, bridge)}
	for _, a := range by {
		all = append(all, Element{
			Set: either(a.Is6(), guide4, guide6), text: bridge + " . " + a.String(), key: ifName(bridge) + string(a.AsSlice()),
		})
	}
	return all
}

func either(v6 bool, four, six SetName) SetName {
	if v6 {
		return six
	}
	return four
}

func gatewaySets() (specs []setSpec) {
	iface := nftables.TypeIFName
	for _, v6 := range []bool{false, true} {
		addr := nftables.TypeIPAddr
		if v6 {
			addr = nftables.TypeIP6Addr
		}
		port := nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
		specs = append(specs, []setSpec{
			{name: either(v6, open4, open6), key: port, concat: true},
			{name: either(v6, openRange4, openRange6), key: port, concat: true, interval: true},
			{name: either(v6, routed4, routed6), key: iface},
			{name: either(v6, isolated4, isolated6), key: iface},
			{name: either(v6, egress4, egress6), key: addr, interval: true, data: addr},
			{name: either(v6, guide4, guide6), key: nftables.MustConcatSetType(iface, addr), concat: true},
		}...)
	}
	return append(specs, setSpec{name: guided, key: iface})
}

// gatewayChains are admit, which says who reaches what a container has published, and what keeps isolated networks from the host:
// it answers for each of its addresses on each of its links, also where it has none.
func gatewayChains(b setBook) []chainSpec {
	var isolation []ruleSpec
	for _, f := range families() {
		set := either(f.v6(), isolated4, isolated6)
		isolation = append(isolation, ruleSpec{f.name("isolated networks do not reach the host"), rule(nfproto(f.proto), b.iif(set, false), drop())})
	}
	return []chainSpec{
		{name: admitChain, rules: []ruleSpec{
			{"to whom the network says", rule(b.ifPair(fromIf, false), accept())},
			{"and IPv4 addresses it says", rule(b.oifSaddr4(from4), accept())},
			{"and IPv6 addresses it says", rule(b.oifSaddr6(from6), accept())},
			{"of such networks, to nobody else", rule(b.oif(limited, false), drop())},
			{"to everybody", rule(b.oif(Bridges, false), accept())},
			{"to everybody, on the LAN", rule(b.oif(Shims, false), accept())},
		}},
		{
			name: "isolation", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
			priority: nftables.ChainPriorityFilter, rules: isolation,
		},
	}
}

// killSwitch stands before the rule that accepts answers: a flow that went out by the gateway must not go on without it.
func killSwitch(b setBook) []ruleSpec {
	rules := []ruleSpec{{"answers of published ports", rule(b.iif(guided, false), dnatted(), reply(), accept())}}
	for _, f := range families() {
		set := either(f.v6(), guide4, guide6)
		rules = append(rules, ruleSpec{
			f.name("nothing goes past a container that is the gateway"),
			rule(b.iif(guided, false), b.iifSaddr(set, f, true), drop()),
		})
	}
	return rules
}

// published are the ways to a container that it asked for: translated ports of the host, and ports of its own where it is routed.
func published(b setBook) []ruleSpec {
	rules := []ruleSpec{{"published ports", rule(dnatted(), jump(admitChain))}}
	for _, f := range families() {
		for _, set := range []SetName{either(f.v6(), open4, open6), either(f.v6(), openRange4, openRange6)} {
			text := "ports of routed networks"
			if set == openRange4 || set == openRange6 {
				text += ", in a range"
			}
			rules = append(rules, ruleSpec{f.name(text), rule(b.dportOf(set, f), jump(admitChain))})
		}
	}
	for _, f := range families() {
		rules = append(rules, ruleSpec{
			f.name("routed networks answer a ping"),
			rule(b.oif(either(f.v6(), routed4, routed6), false), nfproto(f.proto), f.echoRequest(), jump(admitChain)),
		})
	}
	return rules
}

// leaving says which address what leaves takes, where a network has one of its own.
func leaving(b setBook) (rules []ruleSpec) {
	for _, f := range families() {
		set := either(f.v6(), egress4, egress6)
		rules = append(rules, ruleSpec{f.name("leave with the address the network says"), rule(b.oif(Bridges, true), nfproto(f.proto), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		}, b.translate(set), []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: reg1}})})
	}
	return rules
}

func families() []loopFamily { return []loopFamily{v4Loop(), v6Loop()} }

func (f loopFamily) v6() bool { return f.proto == unix.NFPROTO_IPV6 }

// echoRequest matches what ping sends (RFC 792, RFC 4443).
func (f loopFamily) echoRequest() []expr.Any {
	proto, kind := byte(unix.IPPROTO_ICMP), byte(8)
	if f.v6() {
		proto, kind = unix.IPPROTO_ICMPV6, 128
	}
	return append(l4proto(proto),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{kind}})
}

// dportOf looks destination address, protocol and port up in a set.
func (b setBook) dportOf(set SetName, f loopFamily) []expr.Any {
	next := uint32(behind4)
	if f.v6() {
		next = behind6
	}
	return slices.Concat(nfproto(f.proto), []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size},
	}, protoPort(next), []expr.Any{b.lookup(set, false)})
}

// iifSaddr looks up the interface a packet comes in by and the address it is from.
func (b setBook) iifSaddr(set SetName, f loopFamily, invert bool) []expr.Any {
	return append(nfproto(f.proto),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		b.lookup(set, invert))
}

// reply matches packets of the direction in which a connection was not begun.
func reply() []expr.Any {
	const ipCtDirReply = 1 // nf_conntrack_tuple_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{ipCtDirReply}},
	}
}
