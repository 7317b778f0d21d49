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

// A network is joined to what is outside of it in one way for each family: translated (the default), routed, or not at
// all. The sets below say how, which source address its containers leave with, and whether one of its containers is the
// gateway of the others.
const (
	// open4 and open6 hold the ports that containers of routed networks publish on their own addresses. Single ports
	// are found by hashing, ranges by their bounds, as in the maps of published ports.
	open4      rule.SetName = "open4"
	open6      rule.SetName = "open6"
	openRange4 rule.SetName = "open_range4"
	openRange6 rule.SetName = "open_range6"

	// trusted4 and trusted6 hold ports that containers of translated networks publish, on their own addresses, with the
	// links of the host by which clients reach them there.
	trusted4 rule.SetName = "trusted4"
	trusted6 rule.SetName = "trusted6"

	// routed4 and routed6 hold the bridges whose containers are reached by their own addresses.
	routed4 rule.SetName = "routed4"
	routed6 rule.SetName = "routed6"
	// isolated4 and isolated6 hold the bridges that the host has no address on.
	isolated4 rule.SetName = "isolated4"
	isolated6 rule.SetName = "isolated6"

	// egress4 and egress6 map a subnet to the source address of its outbound traffic.
	egress4 rule.SetName = "egress4"
	egress6 rule.SetName = "egress6"

	// GatewayContainerBridges holds the bridges of networks whose gateway is one of their containers; guide4 and guide6
	// hold that container's addresses if its own outbound traffic leaves by the same bridge.
	GatewayContainerBridges rule.SetName = "guided"
	guide4                  rule.SetName = "guide4"
	guide6                  rule.SetName = "guide6"

	// admitChain decides which clients reach a published port.
	admitChain = "admit"
)

// An OpenPort is a port of a container, or Count consecutive ports, that is reached without translation.
type OpenPort struct {
	Proto       string // tcp, udp, sctp
	Addr        netip.Addr
	Port, Count uint16
}

// Elements returns the set elements that open the port.
func (p OpenPort) Elements() []nft.Element {
	set, ranges := open4, openRange4
	if p.Addr.Is6() {
		set, ranges = open6, openRange6
	}
	addr := string(p.Addr.AsSlice())
	key := addr + rule.PortKey(p.Proto, p.Port)
	if p.Count <= 1 {
		return []nft.Element{{Set: set, Text: fmt.Sprintf("%s . %s . %d", p.Addr, p.Proto, p.Port), Key: key}}
	}
	last := p.Port + p.Count - 1
	return []nft.Element{{
		Set: ranges, Text: fmt.Sprintf("%s . %s . %d-%d", p.Addr, p.Proto, p.Port, last), Key: key,
		Content: nft.Content{End: addr + rule.PortKey(p.Proto, last)},
	}}
}

// From returns the set element that opens the port to what comes in by a link.
func (p OpenPort) From(link string) nft.Element {
	to := rule.IfName(link) + string(p.Addr.AsSlice())
	last := p.Port + max(p.Count, 1) - 1
	text := fmt.Sprintf("%s . %s . %s . %d", link, p.Addr, p.Proto, p.Port)
	if last > p.Port {
		text += fmt.Sprintf("-%d", last)
	}
	return nft.Element{
		Set: rule.ByFamily(p.Addr.Is6(), trusted4, trusted6), Text: text,
		Key: to + rule.PortKey(p.Proto, p.Port), Content: nft.Content{End: to + rule.PortKey(p.Proto, last)},
	}
}

// Opened returns the open ports of containers that the ruleset has, as Published returns the published ports of the
// host.
func Opened(k *core.Handle) (all []OpenPort) {
	for _, e := range nft.Of(k).Wanted() {
		if p, ok := OpenPortOf(e); ok {
			all = append(all, p)
		}
	}
	return all
}

// OpenPortOf returns the open port that an element of one of the sets stands for.
func OpenPortOf(e nft.Element) (p OpenPort, ok bool) {
	size := net.IPv4len
	switch e.Set {
	case open6, openRange6:
		size = net.IPv6len
	case open4, openRange4:
	default:
		return p, false
	}
	addr, _ := netip.AddrFromSlice([]byte(e.Key[:size]))
	p = OpenPort{Proto: rule.ProtoName(e.Key[size]), Addr: addr, Port: rule.PortOf(e.Key[size+4:]), Count: 1}
	if e.End != "" {
		p.Count = rule.PortOf(e.End[size+4:]) - p.Port + 1
	}
	return p, true
}

// Routed returns the element that lets traffic for open ports, and echo requests, through to the containers of a bridge
// by their own addresses.
func Routed(bridge string, v6 bool) nft.Element {
	return nft.InterfaceIn(rule.ByFamily(v6, routed4, routed6), bridge)
}

// Isolated returns the element that drops what a bridge's containers send to the host itself.
func Isolated(bridge string, v6 bool) nft.Element {
	return nft.InterfaceIn(rule.ByFamily(v6, isolated4, isolated6), bridge)
}

// Egress returns the element that translates the source of a subnet's outbound traffic to an address of the host.
func Egress(subnet netip.Prefix, as netip.Addr) nft.Element {
	e := nft.SubnetIn(rule.ByFamily(as.Is6(), egress4, egress6), subnet)
	e.Text += " : " + as.String()
	e.Val = string(as.AsSlice())
	return e
}

// GatewayContainer returns the elements that drop everything leaving a bridge, except from the given addresses: those
// of the container that is the gateway of the others.
func GatewayContainer(bridge string, by []netip.Addr) []nft.Element {
	all := []nft.Element{nft.InterfaceIn(GatewayContainerBridges, bridge)}
	for _, a := range by {
		all = append(all, nft.Element{
			Set: rule.ByFamily(a.Is6(), guide4, guide6), Text: bridge + " . " + a.String(),
			Key: rule.IfName(bridge) + string(a.AsSlice()),
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
		from := nftables.MustConcatSetType(iface, addr, nftables.TypeInetProto, nftables.TypeInetService)
		specs = append(specs, []rule.Set{
			{Name: rule.ByFamily(v6, trusted4, trusted6), Type: from, Concat: true, Interval: true},
			{Name: rule.ByFamily(v6, open4, open6), Type: port, Concat: true},
			{Name: rule.ByFamily(v6, openRange4, openRange6), Type: port, Concat: true, Interval: true},
			{Name: rule.ByFamily(v6, routed4, routed6), Type: iface},
			{Name: rule.ByFamily(v6, isolated4, isolated6), Type: iface},
			{Name: rule.ByFamily(v6, egress4, egress6), Type: addr, Interval: true, Data: addr},
			{Name: rule.ByFamily(v6, guide4, guide6), Type: nftables.MustConcatSetType(iface, addr), Concat: true},
		}...)
	}
	return append(specs, rule.Set{Name: GatewayContainerBridges, Type: iface})
}

// GatewayChains returns the chain admit, which decides which clients reach published ports, and the chain isolation,
// which keeps isolated networks from the host. The latter is needed since the host answers for each of its addresses on
// each of its links, also on a link that has no address.
func GatewayChains(b rule.SetBook) []rule.Chain {
	var isolation []rule.Rule
	for _, f := range rule.Families() {
		set := rule.ByFamily(f.V6(), isolated4, isolated6)
		isolation = append(isolation, rule.New(
			f.Name("drop traffic from isolated networks to the host"),
			rule.NFProto(f.Proto), b.IIF(set, false), rule.Drop(),
		))
	}
	return []rule.Chain{
		{Name: admitChain, Rules: []rule.Rule{
			rule.New("accept clients on interfaces named in publish_from", b.IfPair(fromIf, false), rule.Accept()),
			rule.New("accept IPv4 clients named in publish_from", b.OIFSAddr4(from4), rule.Accept()),
			rule.New("accept IPv6 clients named in publish_from", b.OIFSAddr6(from6), rule.Accept()),
			rule.New("drop clients not named in publish_from", b.OIF(limited, false), rule.Drop()),
			rule.New("accept all clients of other networks", b.OIF(bridge.Bridges, false), rule.Accept()),
			rule.New("accept all clients of ports on the LAN", b.OIF(lan.Shims, false), rule.Accept()),
			// Who translated it, another manager or the admin, decides about its clients.
			rule.New("accept what others publish on their networks", b.OIF(bridge.Foreign, false), rule.Accept()),
		}},
		{
			Name: "isolation", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityFilter, Rules: isolation,
		},
	}
}

// KillSwitch returns the rules that drop traffic of a network that bypasses its gateway container. They stand before
// the rule that accepts established connections: a flow that went out by the gateway must not go on without it.
func KillSwitch(b rule.SetBook) []rule.Rule {
	rules := []rule.Rule{rule.New(
		"accept replies from published ports",
		b.IIF(GatewayContainerBridges, false), rule.Translated(), rule.Reply(), rule.Accept(),
	)}
	for _, f := range rule.Families() {
		set := rule.ByFamily(f.V6(), guide4, guide6)
		rules = append(rules, rule.New(
			f.Name("drop traffic that bypasses the gateway container"),
			b.IIF(GatewayContainerBridges, false), b.IIFSAddr(set, f, true), rule.Drop(),
		))
	}
	return rules
}

// InboundRules returns the forward rules for what containers have opened: translated ports of the host, on routed
// networks ports of their own and pings, and ports of their own for clients on trusted interfaces. The chain admit
// decides which clients may use them.
func InboundRules(b rule.SetBook) []rule.Rule {
	rules := []rule.Rule{rule.New("check clients of published ports", rule.Translated(), rule.Jump(admitChain))}
	for _, f := range rule.Families() {
		single, ranges := rule.ByFamily(f.V6(), open4, open6), rule.ByFamily(f.V6(), openRange4, openRange6)
		const text = "check clients of ports on routed networks"
		rules = append(rules,
			rule.New(f.Name(text), b.DPortOf(single, f), rule.Jump(admitChain)),
			rule.New(f.Name(text+", port ranges"), b.DPortOf(ranges, f), rule.Jump(admitChain)),
			rule.New(f.Name("check clients of published ports on trusted interfaces"),
				b.FromDPortOf(rule.ByFamily(f.V6(), trusted4, trusted6), f), rule.Jump(admitChain)))
	}
	for _, f := range rule.Families() {
		rules = append(rules, rule.New(
			f.Name("check who pings routed networks"),
			b.OIF(rule.ByFamily(f.V6(), routed4, routed6), false), rule.NFProto(f.Proto), f.EchoRequest(),
			rule.Jump(admitChain),
		))
	}
	return rules
}

// EgressRules returns the postrouting rules that give outbound traffic its network's egress address, where it has one.
func EgressRules(b rule.SetBook) (rules []rule.Rule) {
	for _, f := range rule.Families() {
		source := &expr.Payload{
			DestRegister: rule.Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: f.Src, Len: f.Size,
		}
		translate := &expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.Proto), RegAddrMin: rule.Reg1}
		rules = append(rules, rule.New(
			f.Name("translate outbound traffic to the network's egress address"),
			b.OIF(bridge.Bridges, true), rule.NFProto(f.Proto),
			[]expr.Any{source}, b.Translate(rule.ByFamily(f.V6(), egress4, egress6)), []expr.Any{translate},
		))
	}
	return rules
}
