package ports

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

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
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
	loop      rule.SetName = "loop"
	loopRange rule.SetName = "loop_range"

	// mineLife is how long an idle flow of UDP stays known; connection tracking gives one with traffic both ways 2
	// minutes (Documentation/networking/nf_conntrack-sysctl.rst).
	mineLife = 3 * time.Minute
)

// offLoopback is the address by which the ruleset knows a loopback address; any other address stays what it is.
func offLoopback(a netip.Addr) netip.Addr {
	switch {
	case !a.IsLoopback():
		return a
	case a.Is6():
		return rule.Loop6()
	}
	b := a.As4()
	b[0] = rule.LoopOctet
	return netip.AddrFrom4(b)
}

// ontoLoopback undoes offLoopback.
func ontoLoopback(a netip.Addr) netip.Addr {
	switch {
	case a == rule.Loop6():
		return netip.IPv6Loopback()
	case !rule.Loop4().Contains(a):
		return a
	}
	b := a.As4()
	b[0] = rule.LoopbackOctet
	return netip.AddrFrom4(b)
}

func loopElement(proto string, first, count uint16) nft.Element {
	if count == 1 {
		return nft.Element{Set: loop, Text: fmt.Sprintf("%s . %d", proto, first), Key: rule.PortKey(proto, first)}
	}
	return nft.Element{
		Set: loopRange, Text: fmt.Sprintf("%s . %d-%d", proto, first, first+count-1), Key: rule.PortKey(proto, first),
		Content: nft.Content{End: rule.PortKey(proto, first+count-1)},
	}
}

func loopbackSets() []rule.Set {
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	flow := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, addr, nftables.TypeInetService, nftables.TypeInetService)
	}
	return []rule.Set{
		{Name: loop, Type: port, Concat: true},
		{Name: loopRange, Type: port, Concat: true, Interval: true},
		{Name: rule.Mine4, Type: flow(nftables.TypeIPAddr), Concat: true, Life: mineLife},
		{Name: rule.Mine6, Type: flow(nftables.TypeIP6Addr), Concat: true, Life: mineLife},
	}
}

// LoopbackChains take loopback traffic for published ports off the loopback addresses and back onto them.
func LoopbackChains(b rule.Book) []rule.Chain {
	beforeTracking := nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 10)
	afterSourceNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)
	out := []rule.Rule{rule.New("not loopback", rule.NotToLoopback(), rule.Accept())}
	for _, f := range []rule.Family{rule.IPv4(), rule.IPv6()} {
		for _, set := range []rule.SetName{loop, loopRange} {
			what := map[rule.SetName]string{loopRange: ", in a range"}[set]
			out = append(out, rule.New(f.Name("a program's own flow"+what), f.From(f.Loopback), rule.UDP(), b.SPort(set), note(b, f.Mine, f)))
		}
		out = append(out, rule.New(f.Name("and the answer to it"), f.From(f.Loopback), rule.UDP(), answered(b, f.Mine, f), rule.Accept()))
		for _, set := range []rule.SetName{loop, loopRange} {
			what := map[rule.SetName]string{loopRange: ", in a range"}[set]
			out = append(out, rule.New(f.Name("off loopback"+what), f.From(f.Loopback), f.To(f.Loopback), b.DPort(set), f.Rewrite(f.Leave)))
		}
	}
	guard := append([]rule.Rule{rule.New("loopback", rule.FromLink("lo"), rule.Accept())}, bridge.OnPorts()...)
	var back []rule.Rule
	for _, f := range []rule.Family{rule.IPv4(), rule.IPv6()} {
		back = append(back, rule.New(f.Name("back onto loopback"), f.From(f.Away), f.To(f.Away), f.Rewrite(f.Enter)))
		guard = append(guard,
			rule.New(f.Name("nobody else is loopback"), f.To(f.Away), rule.Drop()),
			rule.New(f.Name("nor comes from it"), f.From(f.Away), rule.Drop()))
	}
	return []rule.Chain{
		{Name: "loop_out", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookOutput, Priority: beforeTracking, Rules: out},
		{
			Name: "ingress", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting,
			Priority: bridge.BeforeDefragmentation(), Rules: guard,
		},
		{Name: "loop_in", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: afterSourceNAT, Rules: back},
	}
}

// midstream leaves TCP alone that does not begin: what a server on loopback sends to a client whose port happens to be
// published begins in the middle, as far as connection tracking can tell.
func midstream() (rules []rule.Rule) {
	const flagsAt, fin, syn, rst, ack = 13, 1, 2, 4, 16 // RFC 9293
	for _, f := range []rule.Family{rule.IPv4(), rule.IPv6()} {
		rules = append(rules, rule.New(f.Name("answers on loopback"), f.To(f.Away), rule.L4proto(unix.IPPROTO_TCP), []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
			&expr.Bitwise{SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte{syn}},
		}, rule.Accept()))
	}
	return rules
}

// note remembers the flow of a packet; answered matches packets of the other direction of one that was.
func note(b rule.Book, set rule.SetName, f rule.Family) []expr.Any {
	return append(f.Flow(f.Src, f.Dst, true), &expr.Dynset{
		SrcRegKey: rule.Reg1, SetName: b[set].Name, SetID: b[set].ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: mineLife,
	})
}

func answered(b rule.Book, set rule.SetName, f rule.Family) []expr.Any {
	return append(f.Flow(f.Dst, f.Src, false), b.Lookup(set, false))
}

// LoopSource4 matches what is from an address that stands for loopback.
func LoopSource4() []expr.Any { f := rule.IPv4(); return f.From(f.Away) }

// LoopSource6 is LoopSource4 for IPv6.
func LoopSource6() []expr.Any { f := rule.IPv6(); return f.From(f.Away) }

// loopRoutes make the addresses that stand for loopback local to the host.
func loopRoutes() []netip.Prefix {
	return []netip.Prefix{rule.Loop4(), netip.PrefixFrom(rule.Loop6(), 128)}
}

// EnsureLoopRoutes puts them in. A host without IPv6 has no IPv6 loopback to publish on, and one whose lo is down none
// at all: the watcher comes back when it is up.
func EnsureLoopRoutes(k *core.Handle) error {
	if up, err := loopUp(k); err != nil || !up {
		return err
	}
	for _, p := range loopRoutes() {
		r, err := loopRoute(k, p)
		if err != nil {
			return err
		}
		err = k.NL.RouteReplace(r)
		if p.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("add local route %s: %w", p, err)
		}
	}
	return nil
}

func loopUp(k *core.Handle) (bool, error) {
	lo, err := k.NL.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find link lo: %w", err)
	}
	return lo.Attrs().Flags&net.FlagUp != 0, nil
}

// RemoveLoopRoutes takes away what EnsureLoopRoutes put in.
func RemoveLoopRoutes(k *core.Handle) error {
	for _, p := range loopRoutes() {
		r, err := loopRoute(k, p)
		if err != nil {
			return err
		}
		if err := k.NL.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove local route %s: %w", p, err)
		}
	}
	return nil
}

// LoopFaults are the local routes that are missing.
func LoopFaults(k *core.Handle) (faults []string, err error) {
	if up, err := loopUp(k); err != nil || !up {
		return nil, err
	}
	for _, p := range loopRoutes() {
		if v6, err := k.ReadSysctl("/proc/sys/net/ipv6/conf/lo/disable_ipv6"); p.Addr().Is6() && (err != nil || v6 != "0") {
			continue
		}
		have, err := core.Retry(func() ([]netlink.Route, error) {
			return k.NL.RouteListFiltered(core.Family(p.Addr()), &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: core.RouteProtocol},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		if !slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Dst != nil && core.PrefixOf(r.Dst) == p }) {
			faults = append(faults, fmt.Sprintf("local route %s is missing: published ports do not answer on loopback", p))
		}
	}
	return faults, nil
}

func loopRoute(k *core.Handle, p netip.Prefix) (*netlink.Route, error) {
	lo, err := k.NL.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find link lo: %w", err)
	}
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: core.IPNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Protocol: core.RouteProtocol,
		Scope: netlink.SCOPE_HOST,
	}, nil
}
