package ports

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// How a network is joined to what is outside of it, for each family: translated (the default), routed, or not at all;
// with which address its containers leave, and whether one of them stands between the others and the outside.
const (
	// open4 and open6 have the ports that containers of routed networks publish: by their own addresses. Those of one
	// port each are found by hashing, ranges by their bounds, as in the maps of published ports.
	open4      rule.SetName = "open4"
	open6      rule.SetName = "open6"
	openRange4 rule.SetName = "open_range4"
	openRange6 rule.SetName = "open_range6"

	// routed4 and routed6 have the bridges whose containers are reached by their own addresses.
	routed4 rule.SetName = "routed4"
	routed6 rule.SetName = "routed6"
	// isolated4 and isolated6 have the bridges that the host has no address on.
	isolated4 rule.SetName = "isolated4"
	isolated6 rule.SetName = "isolated6"

	// egress4 and egress6 say which address what leaves a subnet takes.
	egress4 rule.SetName = "egress4"
	egress6 rule.SetName = "egress6"

	// GuidedBridges has the bridges of networks that a container of theirs is the gateway of, guide4 and guide6 its
	// addresses if it goes out by that bridge itself.
	GuidedBridges rule.SetName = "guided"
	guide4        rule.SetName = "guide4"
	guide6        rule.SetName = "guide6"

	AdmitChain = "admit"
)

// An OpenPort is a port of a container, or Count of them in a row, that is reached without translation.
type OpenPort struct {
	Proto       string // tcp, udp, sctp
	Addr        netip.Addr
	Port, Count uint16
}

// Elements are what puts the port into the ruleset.
func (p OpenPort) Elements() []nft.Element {
	set, ranges := open4, openRange4
	if p.Addr.Is6() {
		set, ranges = open6, openRange6
	}
	addr := string(p.Addr.AsSlice())
	if p.Count <= 1 {
		return []nft.Element{{Set: set, Text: fmt.Sprintf("%s . %s . %d", p.Addr, p.Proto, p.Port), Key: addr + rule.PortKey(p.Proto, p.Port)}}
	}
	last := p.Port + p.Count - 1
	return []nft.Element{{
		Set: ranges, Text: fmt.Sprintf("%s . %s . %d-%d", p.Addr, p.Proto, p.Port, last), Key: addr + rule.PortKey(p.Proto, p.Port),
		Content: nft.Content{End: addr + rule.PortKey(p.Proto, last)},
	}}
}

// Opened are the ports of containers' own that the ruleset has, as Published are those of the host.
func Opened(k *core.Handle) (all []OpenPort) {
	nft.Of(k).Mu.Lock()
	defer nft.Of(k).Mu.Unlock()
	for _, w := range nft.Of(k).Want {
		size := net.IPv4len
		switch w.Set {
		case open6, openRange6:
			size = net.IPv6len
		case open4, openRange4:
		default:
			continue
		}
		addr, _ := netip.AddrFromSlice([]byte(w.Key[:size]))
		p := OpenPort{Proto: rule.ProtoName(w.Key[size]), Addr: addr, Port: rule.PortOf(w.Key[size+4:]), Count: 1}
		if w.End != "" {
			p.Count = rule.PortOf(w.End[size+4:]) - p.Port + 1
		}
		all = append(all, p)
	}
	return all
}

// Routed lets what opens a port, and echo requests, through to the containers of a bridge by their own addresses.
func Routed(bridge string, v6 bool) nft.Element {
	return nft.InterfaceIn(rule.Either(v6, routed4, routed6), bridge)
}

// Isolated keeps what a bridge's containers send from the host itself.
func Isolated(bridge string, v6 bool) nft.Element {
	return nft.InterfaceIn(rule.Either(v6, isolated4, isolated6), bridge)
}

// Egress makes what leaves a subnet take an address of the host's.
func Egress(subnet netip.Prefix, as netip.Addr) nft.Element {
	e := nft.SubnetIn(rule.Either(as.Is6(), egress4, egress6), subnet)
	e.Text += " : " + as.String()
	e.Val = string(as.AsSlice())
	return e
}

// Guided lets nothing out of a bridge but what is from one of the addresses: of the container that the others go out
// by.
func Guided(bridge string, by []netip.Addr) []nft.Element {
	all := []nft.Element{nft.InterfaceIn(GuidedBridges, bridge)}
	for _, a := range by {
		all = append(all, nft.Element{
			Set: rule.Either(a.Is6(), guide4, guide6), Text: bridge + " . " + a.String(), Key: rule.IfName(bridge) + string(a.AsSlice()),
		})
	}
	return all
}

func gatewaySets() (specs []rule.Set) {
	iface := nftables.TypeIFName
	for _, v6 := range []bool{false, true} {
		addr := nftables.TypeIPAddr
		if v6 {
			addr = nftables.TypeIP6Addr
		}
		port := nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
		specs = append(specs, []rule.Set{
			{Name: rule.Either(v6, open4, open6), Type: port, Concat: true},
			{Name: rule.Either(v6, openRange4, openRange6), Type: port, Concat: true, Interval: true},
			{Name: rule.Either(v6, routed4, routed6), Type: iface},
			{Name: rule.Either(v6, isolated4, isolated6), Type: iface},
			{Name: rule.Either(v6, egress4, egress6), Type: addr, Interval: true, Data: addr},
			{Name: rule.Either(v6, guide4, guide6), Type: nftables.MustConcatSetType(iface, addr), Concat: true},
		}...)
	}
	return append(specs, rule.Set{Name: GuidedBridges, Type: iface})
}

// GatewayChains are admit, which says who reaches what a container has published, and what keeps isolated networks from
// the host: it answers for each of its addresses on each of its links, also where it has none.
func GatewayChains(b rule.Book) []rule.Chain {
	var isolation []rule.Rule
	for _, f := range rule.Families() {
		set := rule.Either(f.V6(), isolated4, isolated6)
		isolation = append(isolation, rule.New(f.Name("isolated networks do not reach the host"), rule.NFProto(f.Proto), b.IIF(set, false), rule.Drop()))
	}
	return []rule.Chain{
		{Name: AdmitChain, Rules: []rule.Rule{
			rule.New("to whom the network says", b.IfPair(fromIf, false), rule.Accept()),
			rule.New("and IPv4 addresses it says", b.OIFSAddr4(from4), rule.Accept()),
			rule.New("and IPv6 addresses it says", b.OIFSAddr6(from6), rule.Accept()),
			rule.New("of such networks, to nobody else", b.OIF(limited, false), rule.Drop()),
			rule.New("to everybody", b.OIF(bridge.Bridges, false), rule.Accept()),
			rule.New("to everybody, on the LAN", b.OIF(lan.Shims, false), rule.Accept()),
		}},
		{
			Name: "isolation", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityFilter, Rules: isolation,
		},
	}
}

// KillSwitch stands before the rule that accepts answers: a flow that went out by the gateway must not go on without
// it.
func KillSwitch(b rule.Book) []rule.Rule {
	rules := []rule.Rule{rule.New("answers of published ports", b.IIF(GuidedBridges, false), rule.Translated(), rule.Reply(), rule.Accept())}
	for _, f := range rule.Families() {
		set := rule.Either(f.V6(), guide4, guide6)
		rules = append(rules, rule.New(
			f.Name("nothing goes past a container that is the gateway"),
			b.IIF(GuidedBridges, false), b.IIFSAddr(set, f, true), rule.Drop(),
		))
	}
	return rules
}

// WaysIn are the ways to a container that it asked for: translated ports of the host, and ports of its own where it is
// routed.
func WaysIn(b rule.Book) []rule.Rule {
	rules := []rule.Rule{rule.New("published ports", rule.Translated(), rule.Jump(AdmitChain))}
	for _, f := range rule.Families() {
		for _, set := range []rule.SetName{rule.Either(f.V6(), open4, open6), rule.Either(f.V6(), openRange4, openRange6)} {
			text := "ports of routed networks"
			if set == openRange4 || set == openRange6 {
				text += ", in a range"
			}
			rules = append(rules, rule.New(f.Name(text), b.DPortOf(set, f), rule.Jump(AdmitChain)))
		}
	}
	for _, f := range rule.Families() {
		rules = append(rules, rule.New(
			f.Name("routed networks answer a ping"),
			b.OIF(rule.Either(f.V6(), routed4, routed6), false), rule.NFProto(f.Proto), f.EchoRequest(), rule.Jump(AdmitChain),
		))
	}
	return rules
}

// Leaving says which address what leaves takes, where a network has one of its own.
func Leaving(b rule.Book) (rules []rule.Rule) {
	for _, f := range rule.Families() {
		set := rule.Either(f.V6(), egress4, egress6)
		rules = append(rules, rule.New(f.Name("leave with the address the network says"), b.OIF(bridge.Bridges, true), rule.NFProto(f.Proto), []expr.Any{
			&expr.Payload{DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size},
		}, b.Translate(set), []expr.Any{&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.Proto), RegAddrMin: rule.Reg1}}))
	}
	return rules
}
