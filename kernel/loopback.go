package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the host sends to a published port on loopback must reach a container, and the container's answer the sender.
// The kernel takes no packet for 127.0.0.0/8 off a wire, unless route_localnet opens every loopback service of the host
// to its neighbours (CVE-2020-8558). So such packets change their addresses before connection tracking sees them, to
// ones that mean loopback to netyard only and are routable: 127.x.y.z becomes 247.x.y.z (RFC 1112 reserved it), ::1
// becomes loop6. From there on it is ordinary traffic between local addresses, which the maps of published ports apply
// to; and when it comes back it changes again, behind the routing decision. Both are without state, and all of it is
// the kernel's: no process forwards anything.
const (
	// loop has the ports that are published on loopback, loopRange those of ranges.
	loop      SetName = "loop"
	loopRange SetName = "loop_range"
	// mine4 and mine6 have the flows that programs of the host began from a port that happens to be published: answers
	// to those are theirs. TCP needs no such list, see midstream.
	mine4 SetName = "mine4"
	mine6 SetName = "mine6"

	// mineLife is how long an idle flow of UDP stays known; connection tracking gives one with traffic both ways 2
	// minutes (Documentation/networking/nf_conntrack-sysctl.rst).
	mineLife = 3 * time.Minute

	loopOctet, loopbackOctet = 247, 127
)

// loop6 is a unique local address (RFC 4193) whose words add up to 1, as those of ::1 do, so that no checksum changes
// with it (RFC 6296 calls that checksum-neutral).
func loop6() netip.Addr { return netip.MustParseAddr("fd6e:6574:7961:7264::b157") }

func loop4() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{loopOctet}), 8) }

// offLoopback is the address by which the ruleset knows a loopback address; any other address stays what it is.
func offLoopback(a netip.Addr) netip.Addr {
	switch {
	case !a.IsLoopback():
		return a
	case a.Is6():
		return loop6()
	}
	b := a.As4()
	b[0] = loopOctet
	return netip.AddrFrom4(b)
}

// ontoLoopback undoes offLoopback.
func ontoLoopback(a netip.Addr) netip.Addr {
	switch {
	case a == loop6():
		return netip.IPv6Loopback()
	case !loop4().Contains(a):
		return a
	}
	b := a.As4()
	b[0] = loopbackOctet
	return netip.AddrFrom4(b)
}

func loopElement(proto string, first, count uint16) Element {
	if count == 1 {
		return Element{Set: loop, text: fmt.Sprintf("%s . %d", proto, first), key: portKey(proto, first)}
	}
	return Element{
		Set: loopRange, text: fmt.Sprintf("%s . %d-%d", proto, first, first+count-1), key: portKey(proto, first),
		content: content{end: portKey(proto, first+count-1)},
	}
}

func loopbackSets() []setSpec {
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	flow := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, addr, nftables.TypeInetService, nftables.TypeInetService)
	}
	return []setSpec{
		{name: loop, key: port, concat: true},
		{name: loopRange, key: port, concat: true, interval: true},
		{name: mine4, key: flow(nftables.TypeIPAddr), concat: true, life: mineLife},
		{name: mine6, key: flow(nftables.TypeIP6Addr), concat: true, life: mineLife},
	}
}

// loopbackChains take loopback traffic for published ports off the loopback addresses and back onto them.
func loopbackChains(b setBook) []chainSpec {
	beforeTracking := nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 10)
	afterSourceNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)
	out := []ruleSpec{{"not loopback", rule(notToLoopback(), accept())}}
	for _, f := range []loopFamily{v4Loop(), v6Loop()} {
		for _, set := range []SetName{loop, loopRange} {
			what := map[SetName]string{loopRange: ", in a range"}[set]
			out = append(out, ruleSpec{f.name("a program's own flow" + what), rule(f.from(f.loopback), udp(), b.sport(set), b.note(f.mine, f))})
		}
		out = append(out, ruleSpec{f.name("and the answer to it"), rule(f.from(f.loopback), udp(), b.answered(f.mine, f), accept())})
		for _, set := range []SetName{loop, loopRange} {
			what := map[SetName]string{loopRange: ", in a range"}[set]
			out = append(out, ruleSpec{f.name("off loopback" + what), rule(f.from(f.loopback), f.to(f.loopback), b.dport(set), f.rewrite(f.leave))})
		}
	}
	guard := append([]ruleSpec{{"loopback", rule(in("lo"), accept())}}, onPorts()...)
	var back []ruleSpec
	for _, f := range []loopFamily{v4Loop(), v6Loop()} {
		back = append(back, ruleSpec{f.name("back onto loopback"), rule(f.from(f.away), f.to(f.away), f.rewrite(f.enter))})
		guard = append(guard,
			ruleSpec{f.name("nobody else is loopback"), rule(f.to(f.away), drop())},
			ruleSpec{f.name("nor comes from it"), rule(f.from(f.away), drop())})
	}
	return []chainSpec{
		{name: "loop_out", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: beforeTracking, rules: out},
		{
			name: "ingress", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			priority: beforeDefragmentation(), rules: guard,
		},
		{name: "loop_in", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: afterSourceNAT, rules: back},
	}
}

// midstream leaves TCP alone that does not begin: what a server on loopback sends to a client whose port happens to be
// published begins in the middle, as far as connection tracking can tell.
func midstream() (rules []ruleSpec) {
	const flagsAt, fin, syn, rst, ack = 13, 1, 2, 4, 16 // RFC 9293
	for _, f := range []loopFamily{v4Loop(), v6Loop()} {
		rules = append(rules, ruleSpec{f.name("answers on loopback"), rule(f.to(f.away), l4proto(unix.IPPROTO_TCP), []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
			&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte{syn}},
		}, accept())})
	}
	return rules
}

// A loopFamily is what the two families do not share.
type loopFamily struct {
	suffix         string
	proto          byte
	src, dst, size uint32 // where the addresses are (RFC 791, RFC 8200)
	loopback, away netip.Prefix
	leave, enter   []byte // an address, or its first octet
	mine           SetName
}

func v4Loop() loopFamily {
	return loopFamily{
		proto: unix.NFPROTO_IPV4, src: 12, dst: 16, size: 4, loopback: netip.MustParsePrefix("127.0.0.0/8"), away: loop4(),
		leave: []byte{loopOctet}, enter: []byte{loopbackOctet}, mine: mine4,
	}
}

func v6Loop() loopFamily {
	one := netip.IPv6Loopback()
	return loopFamily{
		suffix: ", IPv6", proto: unix.NFPROTO_IPV6, src: 8, dst: 24, size: 16,
		loopback: netip.PrefixFrom(one, 128), away: netip.PrefixFrom(loop6(), 128), leave: loop6().AsSlice(), enter: one.AsSlice(), mine: mine6,
	}
}

func (f loopFamily) name(text string) string { return text + f.suffix }

func (f loopFamily) from(p netip.Prefix) []expr.Any { return f.match(f.src, p) }
func (f loopFamily) to(p netip.Prefix) []expr.Any   { return f.match(f.dst, p) }

// match compares the octets of an address that a prefix fixes; both prefixes here end between octets.
func (f loopFamily) match(offset uint32, p netip.Prefix) []expr.Any {
	octets := p.Addr().AsSlice()[:p.Bits()/8]
	return append(nfproto(f.proto),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(octets))}, //nolint:gosec // 1 or 16
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: octets})
}

// rewrite puts octets where both addresses begin. The kernel writes two octets at least and keeps the checksums; those
// of IPv6 do not change, see loop6.
func (f loopFamily) rewrite(octets []byte) (es []expr.Any) {
	for _, offset := range []uint32{f.src, f.dst} {
		if f.proto == unix.NFPROTO_IPV6 {
			es = append(es, &expr.Immediate{Register: reg1, Data: octets},
				&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size})
			continue
		}
		const checksumAt, pseudoHeader = 10, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR
		es = append(es,
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
			&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.size, Mask: []byte{0, 0xff, 0xff, 0xff}, Xor: []byte{octets[0], 0, 0, 0}},
			&expr.Payload{
				OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size,
				CsumType: expr.CsumTypeInet, CsumOffset: checksumAt, CsumFlags: pseudoHeader,
			})
	}
	return es
}

// sport and dport look protocol and a port up in a set.
func (b setBook) dport(set SetName) []expr.Any { return append(protoPort(reg1), b.lookup(set, false)) }

func (b setBook) sport(set SetName) []expr.Any {
	es := protoPort(reg1)
	es[1] = portInto(behind4, true)
	return append(es, b.lookup(set, false))
}

func portInto(register uint32, source bool) expr.Any {
	offset := uint32(2)
	if source {
		offset = 0
	}
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// note remembers the flow of a packet; answered matches packets of the other direction of one that was.
func (b setBook) note(set SetName, f loopFamily) []expr.Any {
	return append(f.flow(f.src, f.dst, true), &expr.Dynset{
		SrcRegKey: reg1, SetName: b[set].Name, SetID: b[set].ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: mineLife,
	})
}

func (b setBook) answered(set SetName, f loopFamily) []expr.Any {
	return append(f.flow(f.dst, f.src, false), b.lookup(set, false))
}

func (f loopFamily) flow(first, second uint32, sourceFirst bool) []expr.Any {
	r := []uint32{reg1, behind4, unix.NFT_REG32_02, unix.NFT_REG32_03}
	if f.proto == unix.NFPROTO_IPV6 {
		r = []uint32{reg1, behind6, unix.NFT_REG_3, unix.NFT_REG32_09}
	}
	return []expr.Any{
		&expr.Payload{DestRegister: r[0], Base: expr.PayloadBaseNetworkHeader, Offset: first, Len: f.size},
		&expr.Payload{DestRegister: r[1], Base: expr.PayloadBaseNetworkHeader, Offset: second, Len: f.size},
		portInto(r[2], sourceFirst), portInto(r[3], !sourceFirst),
	}
}

func loopSource4() []expr.Any { f := v4Loop(); return f.from(f.away) }
func loopSource6() []expr.Any { f := v6Loop(); return f.from(f.away) }

func udp() []expr.Any { return l4proto(unix.IPPROTO_UDP) }

func l4proto(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{number}},
	}
}

func notFromLoopback() []expr.Any { return notInterface(expr.MetaKeyIIFNAME, "lo") }
func notToLoopback() []expr.Any   { return notInterface(expr.MetaKeyOIFNAME, "lo") }

func notInterface(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: []byte(ifName(name))},
	}
}

// loopRoutes make the addresses that stand for loopback local to the host.
func loopRoutes() []netip.Prefix { return []netip.Prefix{loop4(), netip.PrefixFrom(loop6(), 128)} }

// ensureLoopRoutes puts them in. A host without IPv6 has no IPv6 loopback to publish on, and one whose lo is down none
// at all: the watcher comes back when it is up.
func (k *Kernel) ensureLoopRoutes() error {
	if up, err := k.loopUp(); err != nil || !up {
		return err
	}
	for _, p := range loopRoutes() {
		r, err := k.loopRoute(p)
		if err != nil {
			return err
		}
		err = k.nl.RouteReplace(r)
		if p.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("add local route %s: %w", p, err)
		}
	}
	return nil
}

func (k *Kernel) loopUp() (bool, error) {
	lo, err := k.nl.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find link lo: %w", err)
	}
	return lo.Attrs().Flags&net.FlagUp != 0, nil
}

func (k *Kernel) removeLoopRoutes() error {
	for _, p := range loopRoutes() {
		r, err := k.loopRoute(p)
		if err != nil {
			return err
		}
		if err := k.nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove local route %s: %w", p, err)
		}
	}
	return nil
}

// loopFaults are the local routes that are missing.
func (k *Kernel) loopFaults() (faults []string, err error) {
	if up, err := k.loopUp(); err != nil || !up {
		return nil, err
	}
	for _, p := range loopRoutes() {
		if v6, err := k.readSysctl("/proc/sys/net/ipv6/conf/lo/disable_ipv6"); p.Addr().Is6() && (err != nil || v6 != "0") {
			continue
		}
		have, err := retry(func() ([]netlink.Route, error) {
			return k.nl.RouteListFiltered(family(p.Addr()), &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: RouteProtocol},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		if !slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Dst != nil && prefixOf(r.Dst) == p }) {
			faults = append(faults, fmt.Sprintf("local route %s is missing: published ports do not answer on loopback", p))
		}
	}
	return faults, nil
}

func (k *Kernel) loopRoute(p netip.Prefix) (*netlink.Route, error) {
	lo, err := k.nl.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find link lo: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Protocol: RouteProtocol,
		Scope: netlink.SCOPE_HOST,
	}, nil
}
