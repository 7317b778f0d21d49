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

// What the host sends to a published port on loopback has to reach a container, and the container's reply the sender.
// The kernel accepts no packet for 127.0.0.0/8 from a link, unless route_localnet opens every loopback service of the
// host to its neighbours (CVE-2020-8558). So the addresses of such packets are rewritten before connection tracking
// sees them, to substitutes that only netyard uses and that are routable: 127.x.y.z becomes 247.x.y.z (reserved by RFC
// 1112), ::1 becomes rule.LoopbackAlias6. From there on they are ordinary traffic between local addresses, to which the
// maps of published ports apply. When the traffic comes back, the addresses are rewritten again, after the routing
// decision. Both rewrites are stateless and happen in the kernel: no process forwards anything.
const (
	// loop4 and loop6 hold the single ports that are published on loopback addresses of a family, loopRange4 and
	// loopRange6 the ranges. The same port of the other family may be another program's.
	loop4      rule.SetName = "loop4"
	loop6      rule.SetName = "loop6"
	loopRange4 rule.SetName = "loop_range4"
	loopRange6 rule.SetName = "loop_range6"

	// mineLife is how long an idle UDP flow stays known; connection tracking keeps one with traffic in both directions
	// for 2 minutes (Documentation/networking/nf_conntrack-sysctl.rst).
	mineLife = 3 * time.Minute
)

// toSubstitute returns the substitute of a loopback address; any other address is returned unchanged.
func toSubstitute(a netip.Addr) netip.Addr {
	switch {
	case !a.IsLoopback():
		return a
	case a.Is6():
		return rule.LoopbackAlias6()
	}
	b := a.As4()
	b[0] = rule.LoopOctet
	return netip.AddrFrom4(b)
}

// fromSubstitute is the inverse of toSubstitute.
func fromSubstitute(a netip.Addr) netip.Addr {
	switch {
	case a == rule.LoopbackAlias6():
		return netip.IPv6Loopback()
	case !rule.LoopbackAlias4().Contains(a):
		return a
	}
	b := a.As4()
	b[0] = rule.LoopbackOctet
	return netip.AddrFrom4(b)
}

// loopElement returns the element of a publication on loopback.
func loopElement(p Publication) nft.Element {
	e := nft.Element{Text: fmt.Sprintf("%s . %d", p.Proto, p.Port), Key: rule.PortKey(p.Proto, p.Port)}
	if p.Count <= 1 {
		e.Set = rule.ByFamily(p.Host.Is6(), loop4, loop6)
		return e
	}
	last := p.Port + p.Count - 1
	e.Set, e.End = rule.ByFamily(p.Host.Is6(), loopRange4, loopRange6), rule.PortKey(p.Proto, last)
	e.Text += fmt.Sprintf("-%d", last)
	return e
}

func loopbackSets() []rule.Set {
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	flow := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, addr, nftables.TypeInetService, nftables.TypeInetService)
	}
	return []rule.Set{
		{Name: loop4, Type: port, Concat: true},
		{Name: loop6, Type: port, Concat: true},
		{Name: loopRange4, Type: port, Concat: true, Interval: true},
		{Name: loopRange6, Type: port, Concat: true, Interval: true},
		{Name: rule.HostFlows4, Type: flow(nftables.TypeIPAddr), Concat: true, Life: mineLife},
		{Name: rule.HostFlows6, Type: flow(nftables.TypeIP6Addr), Concat: true, Life: mineLife},
	}
}

// LoopbackChains returns the chains that rewrite loopback traffic for published ports to substitute addresses and back.
func LoopbackChains(b rule.SetBook) []rule.Chain {
	beforeTracking := nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 10)
	afterSourceNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)
	out := []rule.Rule{rule.New("skip what does not stay on loopback", rule.NotToLoopback(), rule.Accept())}
	loopback := rule.New("accept loopback", rule.FromLink("lo"), rule.Accept())
	ingress := append([]rule.Rule{loopback}, bridge.PortBypassRules()...)
	var back []rule.Rule
	for _, f := range rule.Families() {
		out = append(out, loopOut(b, f)...)
		ingress = append(ingress,
			rule.New(f.Name("drop spoofed loopback destination"), f.To(f.Away), rule.Drop()),
			rule.New(f.Name("drop spoofed loopback source"), f.From(f.Away), rule.Drop()))
		back = append(back, rule.New(
			f.Name("rewrite substitutes to loopback addresses"),
			f.From(f.Away), f.To(f.Away), f.Rewrite(f.Enter),
		))
	}
	return []rule.Chain{
		{
			Name: "loop_out", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookOutput,
			Priority: beforeTracking, Rules: out,
		},
		{
			Name: "ingress", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting,
			Priority: bridge.BeforeDefragmentation(), Rules: ingress,
		},
		{
			Name: "loop_in", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
			Priority: afterSourceNAT, Rules: back,
		},
	}
}

// loopOut returns the rules that rewrite loopback packets for published ports to substitute addresses. UDP flows that a
// program of the host began at a published port are remembered, since the replies to them stay on loopback.
func loopOut(b rule.SetBook, f rule.Family) (rules []rule.Rule) {
	sets := []struct {
		name   rule.SetName
		suffix string
	}{
		{rule.ByFamily(f.V6(), loop4, loop6), ""},
		{rule.ByFamily(f.V6(), loopRange4, loopRange6), ", port ranges"},
	}
	for _, set := range sets {
		rules = append(rules, rule.New(
			f.Name("remember UDP flows that a program began at a published port"+set.suffix),
			f.From(f.Loopback), rule.UDP(), b.SPort(set.name), rememberFlow(b, f.Mine, f),
		))
	}
	rules = append(rules, rule.New(
		f.Name("accept replies to a program's own UDP flows on loopback"),
		f.From(f.Loopback), rule.UDP(), repliesToFlow(b, f.Mine, f), rule.Accept(),
	))
	for _, set := range sets {
		rules = append(rules, rule.New(
			f.Name("rewrite loopback addresses to substitutes"+set.suffix),
			f.From(f.Loopback), f.To(f.Loopback), b.DPort(set.name), f.Rewrite(f.Leave),
		))
	}
	return rules
}

// midstream returns the rules that exempt TCP packets which begin no connection from translation. Where a client's port
// happens to be published, what a server on loopback sends to that client looks to connection tracking as if it began
// in the middle.
func midstream() (rules []rule.Rule) {
	const flagsAt, fin, syn, rst, ack = 13, 1, 2, 4, 16 // RFC 9293
	for _, f := range rule.Families() {
		notFirst := []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
			&expr.Bitwise{
				SourceRegister: rule.Reg1, DestRegister: rule.Reg1, Len: 1,
				Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0},
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: rule.Reg1, Data: []byte{syn}},
		}
		rules = append(rules, rule.New(
			f.Name("do not translate TCP replies on loopback"),
			f.To(f.Away), rule.L4proto(unix.IPPROTO_TCP), notFirst, rule.Accept(),
		))
	}
	return rules
}

// rememberFlow adds the flow of a packet to a set.
func rememberFlow(b rule.SetBook, set rule.SetName, f rule.Family) []expr.Any {
	return append(f.Flow(f.Src, f.Dst, true), &expr.Dynset{
		SrcRegKey: rule.Reg1, SetName: b[set].Name, SetID: b[set].ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: mineLife,
	})
}

// repliesToFlow matches packets in the opposite direction of a flow in a set.
func repliesToFlow(b rule.SetBook, set rule.SetName, f rule.Family) []expr.Any {
	return append(f.Flow(f.Dst, f.Src, false), b.Lookup(set, false))
}

// LoopSource4 matches packets whose source is the substitute of an IPv4 loopback address.
func LoopSource4() []expr.Any { f := rule.IPv4(); return f.From(f.Away) }

// LoopSource6 is LoopSource4 for IPv6.
func LoopSource6() []expr.Any { f := rule.IPv6(); return f.From(f.Away) }

// loopRoutes returns the prefixes of the substitute addresses, which routes make local to the host.
func loopRoutes() []netip.Prefix {
	return []netip.Prefix{rule.LoopbackAlias4(), netip.PrefixFrom(rule.LoopbackAlias6(), 128)}
}

// EnsureLoopRoutes adds the local routes of the substitute addresses. A host without IPv6 has no IPv6 loopback to
// publish on, and one whose lo is down has no loopback at all: the watcher calls again when it is up.
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
		noIPv6 := errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
		if noIPv6 && p.Addr().Is6() {
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

// RemoveLoopRoutes removes the routes that EnsureLoopRoutes added.
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

// LoopRouteFaults names the local routes that are missing.
func LoopRouteFaults(k *core.Handle) (faults []string, err error) {
	if up, err := loopUp(k); err != nil || !up {
		return nil, err
	}
	for _, p := range loopRoutes() {
		off, err := k.ReadSysctl("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
		if p.Addr().Is6() && (err != nil || off != "0") {
			continue
		}
		want := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: core.RouteProtocol}
		const fields = netlink.RT_FILTER_TABLE | netlink.RT_FILTER_PROTOCOL
		have, err := core.Retry(func() ([]netlink.Route, error) {
			return k.NL.RouteListFiltered(core.Family(p.Addr()), want, fields)
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		if !slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Dst != nil && core.PrefixOf(r.Dst) == p }) {
			faults = append(faults,
				fmt.Sprintf("local route %s is missing: published ports do not answer on loopback", p))
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
		LinkIndex: lo.Attrs().Index, Dst: core.IPNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Protocol: core.RouteProtocol, Scope: netlink.SCOPE_HOST,
	}, nil
}
