package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Published ports are elements of maps: of one port each, found by hashing; of a range, found by its bounds. Those of one of the
// host's addresses and those of all of them are in maps of their own, so that no map has two answers to one packet. A range keeps
// its ports: nftables cannot count from one port to another, so a range that is shifted is one element for each port.
const (
	toOne4   SetName = "to_one4"
	toOne6   SetName = "to_one6"
	toAny4   SetName = "to_any4"
	toAny6   SetName = "to_any6"
	toRange4 SetName = "to_range4"
	toRange6 SetName = "to_range6"

	// own4 and own6 have ports of containers' own addresses that lead to others of their ports, where such packets come by the host's rules
	// on their way and not by those of the sandbox: of ipvlan's mode l3s, which takes them at the end of input (drivers/net/ipvlan/ipvlan_l3s.c).
	// And ports of overlays' gateways, see AnswerAt.
	own4 SetName = "own4"
	own6 SetName = "own6"

	// self4 and self6 have the pairs (a, a) of containers with published ports: what such a container sends there itself must not
	// come back to it from its own address. Not even the interface it came by is known of it, where br_netfilter is on.
	self4 SetName = "self4"
	self6 SetName = "self6"

	// limited has the bridges of networks whose published ports are not for everybody.
	limited SetName = "limited"
	// from4, from6 and fromIf say for whom they are: subnets, and interfaces that packets come in by.
	from4  SetName = "from4"
	from6  SetName = "from6"
	fromIf SetName = "from_if"

	publishChain = "publish"
)

// A Publication hands what comes for ports of the host to a container.
type Publication struct {
	Proto string // tcp, udp, sctp
	// Host is the host's address; the unspecified one is any of its family.
	Host netip.Addr
	// Port is the first of Count ports on the host, ToPort the first of them on To.
	Port, Count uint16
	To          netip.Addr
	ToPort      uint16
}

// Elements are what puts the publication into the ruleset.
func (p Publication) Elements() (all []Element) {
	set := map[bool]SetName{true: toAny4, false: toOne4}[p.Host.IsUnspecified()]
	ranges := toRange4
	if p.To.Is6() {
		set, ranges = map[bool]SetName{true: toAny6, false: toOne6}[p.Host.IsUnspecified()], toRange6
	}
	host := offLoopback(p.Host)
	if p.Count > 1 && p.Port == p.ToPort {
		first, last := host, host
		if p.Host.IsUnspecified() {
			last = lastOf(host)
		}
		all = append(all, Element{
			Set: ranges, text: fmt.Sprintf("%s . %s . %d-%d : %s", showHost(host), p.Proto, p.Port, p.Port+p.Count-1, p.To),
			key:     string(first.AsSlice()) + portKey(p.Proto, p.Port),
			content: content{end: string(last.AsSlice()) + portKey(p.Proto, p.Port+p.Count-1), val: string(p.To.AsSlice())},
		})
	} else {
		for i := range max(p.Count, 1) {
			key, text := portKey(p.Proto, p.Port+i), fmt.Sprintf("%s . %d : %s . %d", p.Proto, p.Port+i, p.To, p.ToPort+i)
			if !p.Host.IsUnspecified() {
				key, text = string(host.AsSlice())+key, showHost(host)+" . "+text
			}
			all = append(all, Element{Set: set, text: text, key: key, content: content{val: string(p.To.AsSlice()) + wide(p.ToPort+i)}})
		}
	}
	self := self4
	if p.To.Is6() {
		self = self6
	}
	all = append(all, Element{Set: self, text: p.To.String() + " . " + p.To.String(), key: strings.Repeat(string(p.To.AsSlice()), 2)})
	if p.Host.IsUnspecified() || p.Host.IsLoopback() {
		all = append(all, loopElement(p.Proto, p.Port, max(p.Count, 1)))
	}
	return all
}

// Published are the publications that the ruleset has: where records were lost, that is where they can be read.
func (k *Kernel) Published() (all []Publication) {
	k.fw.mu.Lock()
	defer k.fw.mu.Unlock()
	for _, w := range k.fw.want {
		if p, ok := publicationOf(w.Element); ok {
			all = append(all, p)
		}
	}
	return all
}

// publicationOf reads an element of one of the maps back.
func publicationOf(e Element) (p Publication, ok bool) {
	size := net.IPv4len
	switch e.Set {
	case toOne6, toAny6, toRange6:
		size = net.IPv6len
	case toOne4, toAny4, toRange4:
	default:
		return p, false
	}
	p.Count, p.Host = 1, netip.IPv4Unspecified()
	if size == net.IPv6len {
		p.Host = netip.IPv6Unspecified()
	}
	port := e.key
	if e.Set != toAny4 && e.Set != toAny6 {
		host, _ := netip.AddrFromSlice([]byte(e.key[:size]))
		p.Host, port = ontoLoopback(host), e.key[size:]
	}
	p.Proto, p.Port = protoName(port[0]), portOf(port[4:])
	p.To, _ = netip.AddrFromSlice([]byte(e.val[:size]))
	p.ToPort = p.Port
	if e.Set == toRange4 || e.Set == toRange6 {
		p.Count = portOf(e.end[size+4:]) - p.Port + 1
	} else {
		p.ToPort = portOf(e.val[size:])
	}
	return p, true
}

func portOf(register string) uint16 { return binary.BigEndian.Uint16([]byte(register)) }

func showHost(a netip.Addr) string {
	if a.IsUnspecified() {
		return a.String() + "-" + lastOf(a).String()
	}
	return a.String()
}

// lastOf is the last address of the family of a.
func lastOf(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	for i := range b {
		b[i] = 0xff
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// ClosedBut are the elements that keep the published ports of a bridge from everybody but whom from names, by subnet or by the
// interface they come in by.
func ClosedBut(bridge string, subnets []netip.Prefix, interfaces []string) []Element {
	all := []Element{InterfaceIn(limited, bridge)}
	for _, p := range subnets {
		set := from4
		if p.Addr().Is6() {
			set = from6
		}
		first, last := p.Masked().Addr(), lastIn(p)
		all = append(all, Element{
			Set: set, text: bridge + " . " + p.Masked().String(), key: ifName(bridge) + string(first.AsSlice()),
			content: content{end: ifName(bridge) + string(last.AsSlice())},
		})
	}
	for _, name := range interfaces {
		all = append(all, InterfaceIn(fromIf, name, bridge))
	}
	return all
}

// lastIn is the last address of a subnet.
func lastIn(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func protoNumber(name string) byte {
	return map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[name]
}

func protoName(number byte) string {
	for _, name := range []string{"tcp", "udp", "sctp"} {
		if protoNumber(name) == number {
			return name
		}
	}
	return strconv.Itoa(int(number))
}

// portKey is protocol and port, each in a register of its own.
func portKey(proto string, port uint16) string {
	return string([]byte{protoNumber(proto), 0, 0, 0}) + wide(port)
}

// wide is a port in a register of its own.
func wide(port uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, port)) + "\x00\x00"
}

func publishSets() []setSpec {
	port := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	with := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(append([]nftables.SetDatatype{addr}, port...)...)
	}
	to := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, nftables.TypeInetService)
	}
	any4, any6, iface := nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeIFName
	return []setSpec{
		{name: toOne4, key: with(any4), concat: true, data: to(any4)},
		{name: toOne6, key: with(any6), concat: true, data: to(any6)},
		{name: toAny4, key: nftables.MustConcatSetType(port...), concat: true, data: to(any4)},
		{name: toAny6, key: nftables.MustConcatSetType(port...), concat: true, data: to(any6)},
		{name: toRange4, key: with(any4), concat: true, interval: true, data: any4},
		{name: toRange6, key: with(any6), concat: true, interval: true, data: any6},
		{name: own4, key: with(any4), concat: true, data: to(any4)},
		{name: own6, key: with(any6), concat: true, data: to(any6)},
		{name: self4, key: nftables.MustConcatSetType(any4, any4), concat: true},
		{name: self6, key: nftables.MustConcatSetType(any6, any6), concat: true},
		{name: limited, key: iface},
		{name: from4, key: nftables.MustConcatSetType(iface, any4), concat: true, interval: true},
		{name: from6, key: nftables.MustConcatSetType(iface, any6), concat: true, interval: true},
		{name: fromIf, key: nftables.MustConcatSetType(iface, iface), concat: true},
	}
}

// publishChains send what is for the host itself to where it is published. What only passes through is never touched, whatever its
// port (CVE-2025-67499).
func publishChains(b setBook, obeys bool) []chainSpec {
	local := rule(forHost(), jump(publishChain))
	return []chainSpec{
		{name: publishChain, rules: []ruleSpec{
			{"to one address", rule(b.daddrPort(toOne4), dnat(unix.NFPROTO_IPV4, true))},
			{"to any address", rule(b.port(toAny4, unix.NFPROTO_IPV4), dnat(unix.NFPROTO_IPV4, true))},
			{"in a range", rule(b.daddrPort(toRange4), dnat(unix.NFPROTO_IPV4, false))},
			{"to one IPv6 address", rule(b.daddrPort(toOne6), dnat(unix.NFPROTO_IPV6, true))},
			{"to any IPv6 address", rule(b.port(toAny6, unix.NFPROTO_IPV6), dnat(unix.NFPROTO_IPV6, true))},
			{"in a range, IPv6", rule(b.daddrPort(toRange6), dnat(unix.NFPROTO_IPV6, false))},
		}},
		{
			name: "prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting,
			priority: nftables.ChainPriorityNATDest, rules: append(b.toOwn(), b.toPublished(obeys)...),
		},
		{
			name: "output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput,
			priority: nftables.ChainPriorityNATDest, rules: append(midstream(), ruleSpec{"published ports, from the host", local}),
		},
	}
}

// toOwn are the ports of containers' own addresses. They are none of the host's, whose own firewall sees them at input all the same.
func (b setBook) toOwn() []ruleSpec {
	return []ruleSpec{
		{"ports of containers' own addresses", rule(b.daddrPort(own4), dnat(unix.NFPROTO_IPV4, true))},
		{"ports of containers' own addresses, IPv6", rule(b.daddrPort(own6), dnat(unix.NFPROTO_IPV6, true))},
	}
}

// The 32-bit registers behind the first of each address family: what a concatenation's fields are loaded into.
const (
	reg1    = unix.NFT_REG_1
	behind4 = unix.NFT_REG32_01
	behind6 = unix.NFT_REG_2
)

// daddrPort looks up destination address, protocol and port in a map, and leaves in the first register what it maps to.
func (b setBook) daddrPort(set SetName) []expr.Any {
	family, offset, size, next := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4), uint32(behind4)
	if b[set].KeyType.Bytes > 4*3 {
		family, offset, size, next = unix.NFPROTO_IPV6, 24, 16, behind6
	}
	return rule(nfproto(family),
		[]expr.Any{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}},
		protoPort(next), b.translate(set))
}

// port is daddrPort for any address of a family.
func (b setBook) port(set SetName, family byte) []expr.Any {
	return rule(nfproto(family), protoPort(reg1), b.translate(set))
}

// protoPort loads protocol and destination port into two registers; the first may be a wide one.
func protoPort(at uint32) []expr.Any {
	const dport = 2 // TCP, UDP and SCTP have it in one place
	next := at + 1
	switch at {
	case reg1:
		next = behind4
	case behind6:
		next = unix.NFT_REG32_05
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: at},
		&expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: dport, Len: 2},
	}
}

func (b setBook) translate(set SetName) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: b[set].Name, SetID: b[set].ID}}
}

// dnat sends a packet to the address in the first register, and if port is set to the port behind it.
func dnat(family byte, port bool) []expr.Any {
	n := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: reg1}
	if port {
		n.RegProtoMin, n.Specified = behind4, true
		if family == unix.NFPROTO_IPV6 {
			n.RegProtoMin = behind6
		}
	}
	return []expr.Any{n}
}

// forHost matches what is for an address of the host.
func forHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// addrPair looks up source and destination address together.
func (b setBook) addrPair(set SetName, f loopFamily) []expr.Any {
	second := uint32(behind4)
	if f.proto == unix.NFPROTO_IPV6 {
		second = behind6
	}
	return append(nfproto(f.proto),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size},
		b.lookup(set, false))
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// dnatted matches packets whose destination was translated.
func dnatted() []expr.Any {
	const statusDNAT = 1 << 5 // IPS_DST_NAT (nf_conntrack_common.h)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: binaryutil.NativeEndian.PutUint32(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// oifSaddr4 looks up the interface a packet leaves by and the address it is from.
func (b setBook) oifSaddr4(set SetName) []expr.Any {
	const offset, size = 12, 4 // RFC 791
	return b.oifSaddr(set, unix.NFPROTO_IPV4, offset, size)
}

func (b setBook) oifSaddr6(set SetName) []expr.Any {
	const offset, size = 8, 16 // RFC 8200
	return b.oifSaddr(set, unix.NFPROTO_IPV6, offset, size)
}

func (b setBook) oifSaddr(set SetName, family byte, offset, size uint32) []expr.Any {
	return rule(nfproto(family), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1},
		&expr.Payload{DestRegister: unix.NFT_REG_2, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		b.lookup(set, false),
	})
}
