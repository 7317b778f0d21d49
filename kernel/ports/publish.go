package ports

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// Published ports are map elements: single ports are found by hashing, ranges by their bounds. Ports on one of the
// host's addresses and ports on all of them are in separate maps, so that no map has two answers to one packet. A range
// leads to the same port numbers: nftables cannot count from one port to another, so a range that is shifted becomes
// one element for each port.
const (
	toOne4   rule.SetName = "to_one4"
	toOne6   rule.SetName = "to_one6"
	toAny4   rule.SetName = "to_any4"
	toAny6   rule.SetName = "to_any6"
	toRange4 rule.SetName = "to_range4"
	toRange6 rule.SetName = "to_range6"

	// own4 and own6 redirect ports of containers' own addresses to other ports there, for packets that pass the host's
	// rules and not those of the sandbox: those of ipvlan in mode l3s, which takes packets at the end of the input hook
	// (drivers/net/ipvlan/ipvlan_l3s.c). They also hold the ports of overlay gateways, see AnswerAt.
	own4 rule.SetName = "own4"
	own6 rule.SetName = "own6"

	// Self4 and Self6 hold the pairs (a, a) of containers with published ports: what such a container sends to its own
	// published port must not come back to it with its own source address. With br_netfilter on, not even the interface
	// that the packet came by is known.
	Self4 rule.SetName = "self4"
	Self6 rule.SetName = "self6"

	// limited holds the bridges of networks whose published ports are restricted to some clients (publish_from).
	limited rule.SetName = "limited"
	// from4, from6 and fromIf hold those clients: subnets, and the interfaces that packets come in by.
	from4  rule.SetName = "from4"
	from6  rule.SetName = "from6"
	fromIf rule.SetName = "from_if"

	publishChain = "publish"
)

// A Publication leads packets for ports of the host to a container.
type Publication struct {
	Proto string // tcp, udp, sctp
	// Host is the host's address; the unspecified address stands for all addresses of its family.
	Host netip.Addr
	// Port is the first of Count ports on the host, ToPort the first on To.
	Port, Count uint16
	To          netip.Addr
	ToPort      uint16
}

// Elements returns the set elements that publish the ports.
func (p Publication) Elements() (all []nft.Element) {
	set := map[bool]rule.SetName{true: toAny4, false: toOne4}[p.Host.IsUnspecified()]
	ranges := toRange4
	if p.To.Is6() {
		set, ranges = map[bool]rule.SetName{true: toAny6, false: toOne6}[p.Host.IsUnspecified()], toRange6
	}
	host := toSubstitute(p.Host)
	if p.Count > 1 && p.Port == p.ToPort {
		first, last := host, host
		if p.Host.IsUnspecified() {
			last = rule.LastOf(host)
		}
		lastPort := p.Port + p.Count - 1
		all = append(all, nft.Element{
			Set: ranges, Text: fmt.Sprintf("%s . %s . %d-%d : %s", showHost(host), p.Proto, p.Port, lastPort, p.To),
			Key: string(first.AsSlice()) + rule.PortKey(p.Proto, p.Port),
			Content: nft.Content{
				End: string(last.AsSlice()) + rule.PortKey(p.Proto, lastPort), Val: string(p.To.AsSlice()),
			},
		})
	} else {
		for i := range max(p.Count, 1) {
			key := rule.PortKey(p.Proto, p.Port+i)
			text := fmt.Sprintf("%s . %d : %s . %d", p.Proto, p.Port+i, p.To, p.ToPort+i)
			if !p.Host.IsUnspecified() {
				key, text = string(host.AsSlice())+key, showHost(host)+" . "+text
			}
			all = append(all, nft.Element{
				Set: set, Text: text, Key: key,
				Content: nft.Content{Val: string(p.To.AsSlice()) + rule.PaddedPort(p.ToPort+i)},
			})
		}
	}
	for _, e := range all {
		e.Set, e.Val = published(e.Set), ""
		e.Text, _, _ = strings.Cut(e.Text, " : ")
		all = append(all, e)
	}
	all = append(all, nft.Element{
		Set: rule.ByFamily(p.To.Is6(), Self4, Self6), Text: p.To.String() + " . " + p.To.String(),
		Key: strings.Repeat(string(p.To.AsSlice()), 2),
	})
	if p.Host.IsUnspecified() || p.Host.IsLoopback() {
		all = append(all, loopElement(p))
	}
	return all
}

// Published returns the publications that the ruleset has, from which lost records are rebuilt.
func Published(k *core.Handle) (all []Publication) {
	for _, e := range nft.Of(k).Wanted() {
		if p, ok := PublicationOf(e); ok {
			all = append(all, p)
		}
	}
	return all
}

// PublicationOf returns the publication that an element of one of the maps stands for.
func PublicationOf(e nft.Element) (p Publication, ok bool) {
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
	port := e.Key
	if e.Set != toAny4 && e.Set != toAny6 {
		host, _ := netip.AddrFromSlice([]byte(e.Key[:size]))
		p.Host, port = fromSubstitute(host), e.Key[size:]
	}
	p.Proto, p.Port = rule.ProtoName(port[0]), rule.PortOf(port[4:])
	p.To, _ = netip.AddrFromSlice([]byte(e.Val[:size]))
	p.ToPort = p.Port
	if e.Set == toRange4 || e.Set == toRange6 {
		p.Count = rule.PortOf(e.End[size+4:]) - p.Port + 1
	} else {
		p.ToPort = rule.PortOf(e.Val[size:])
	}
	return p, true
}

func showHost(a netip.Addr) string {
	if a.IsUnspecified() {
		return a.String() + "-" + rule.LastOf(a).String()
	}
	return a.String()
}

// RestrictClients returns the elements that close the published ports of a bridge to all clients but those in the given
// subnets and those that come in by the given interfaces.
func RestrictClients(bridge string, subnets []netip.Prefix, interfaces []string) []nft.Element {
	all := []nft.Element{nft.InterfaceIn(limited, bridge)}
	for _, p := range subnets {
		set := from4
		if p.Addr().Is6() {
			set = from6
		}
		first, last := p.Masked().Addr(), rule.LastIn(p)
		all = append(all, nft.Element{
			Set: set, Text: bridge + " . " + p.Masked().String(), Key: rule.IfName(bridge) + string(first.AsSlice()),
			Content: nft.Content{End: rule.IfName(bridge) + string(last.AsSlice())},
		})
	}
	for _, name := range interfaces {
		all = append(all, nft.InterfaceIn(fromIf, name, bridge))
	}
	return all
}

func publishSets() []rule.Set {
	port := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	with := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(append([]nftables.SetDatatype{addr}, port...)...)
	}
	to := func(addr nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(addr, nftables.TypeInetService)
	}
	any4, any6, iface := nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeIFName
	maps := []rule.Set{
		{Name: toOne4, Type: with(any4), Concat: true, Data: to(any4)},
		{Name: toOne6, Type: with(any6), Concat: true, Data: to(any6)},
		{Name: toAny4, Type: nftables.MustConcatSetType(port...), Concat: true, Data: to(any4)},
		{Name: toAny6, Type: nftables.MustConcatSetType(port...), Concat: true, Data: to(any6)},
		{Name: toRange4, Type: with(any4), Concat: true, Interval: true, Data: any4},
		{Name: toRange6, Type: with(any6), Concat: true, Interval: true, Data: any6},
	}
	var keys []rule.Set
	for _, s := range maps {
		s.Name, s.Data = published(s.Name), nftables.SetDatatype{}
		keys = append(keys, s)
	}
	return slices.Concat(maps, keys, []rule.Set{
		{Name: own4, Type: with(any4), Concat: true, Data: to(any4)},
		{Name: own6, Type: with(any6), Concat: true, Data: to(any6)},
		{Name: Self4, Type: nftables.MustConcatSetType(any4, any4), Concat: true},
		{Name: Self6, Type: nftables.MustConcatSetType(any6, any6), Concat: true},
		{Name: limited, Type: iface},
		{Name: from4, Type: nftables.MustConcatSetType(iface, any4), Concat: true, Interval: true},
		{Name: from6, Type: nftables.MustConcatSetType(iface, any6), Concat: true, Interval: true},
		{Name: fromIf, Type: nftables.MustConcatSetType(iface, iface), Concat: true},
	})
}

// published returns the name of the set with the keys of a map: nft cannot express a rule that looks a key up in a map
// and does not use the value, and leaves the lookup out of what it lists.
func published(m rule.SetName) rule.SetName {
	return "published" + rule.SetName(strings.TrimPrefix(string(m), "to"))
}

// PublishChains returns the chains that translate packets for published ports of the host itself. What is only routed
// through the host is never translated, whatever its port (CVE-2025-67499).
func PublishChains(b rule.SetBook, obeys bool) []rule.Chain {
	local := rule.Join(rule.ForHost(), rule.Jump(publishChain))
	const v4, v6 = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6
	return []rule.Chain{
		{Name: publishChain, Rules: []rule.Rule{
			rule.New("translate ports of one address", b.DAddrPort(toOne4), rule.DNAT(v4, true)),
			rule.New("translate ports of any address", b.Port(toAny4, v4), rule.DNAT(v4, true)),
			rule.New("translate ports in a range", b.DAddrPort(toRange4), rule.DNAT(v4, false)),
			rule.New("translate ports of one address, IPv6", b.DAddrPort(toOne6), rule.DNAT(v6, true)),
			rule.New("translate ports of any address, IPv6", b.Port(toAny6, v6), rule.DNAT(v6, true)),
			rule.New("translate ports in a range, IPv6", b.DAddrPort(toRange6), rule.DNAT(v6, false)),
		}},
		{
			Name: "prerouting", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityNATDest, Rules: append(toOwn(b), toPublished(b, obeys)...),
		},
		{
			Name: "output", Kind: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput,
			Priority: nftables.ChainPriorityNATDest,
			Rules:    append(midstream(), rule.New("translate published ports for the host itself", local)),
		},
	}
}

// toOwn returns the rules that redirect ports of containers' own addresses. These are not ports of the host, yet its
// own firewall sees such packets at the input hook.
func toOwn(b rule.SetBook) []rule.Rule {
	const v4, v6 = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6
	return []rule.Rule{
		rule.New("redirect ports of containers' own addresses", b.DAddrPort(own4), rule.DNAT(v4, true)),
		rule.New("redirect ports of containers' own addresses, IPv6", b.DAddrPort(own6), rule.DNAT(v6, true)),
	}
}
