// Package policy makes the kernel enforce which traffic is allowed: the elements of sets, the chains that look them up,
// and the end of connections that are no longer allowed.
package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// IsSet reports whether a set is one of policy.
func IsSet(name rule.SetName) bool {
	return slices.ContainsFunc(policySets(), func(s rule.Set) bool { return s.Name == name })
}

// Policy consists of elements only. The closed sets hold the addresses that a policy applies to; the allow sets hold
// the traffic that is allowed, as (own address, other's address, protocol, port). Elements of one set never overlap:
// whoever makes them has decided which rule takes precedence.
const (
	closedIn4  rule.SetName = "closed_in4"
	closedIn6  rule.SetName = "closed_in6"
	closedOut4 rule.SetName = "closed_out4"
	closedOut6 rule.SetName = "closed_out6"
	allowIn4   rule.SetName = "allow_in4"
	allowIn6   rule.SetName = "allow_in6"
	allowOut4  rule.SetName = "allow_out4"
	allowOut6  rule.SetName = "allow_out6"

	// quiet holds the ports with an ingress policy: they receive only what is sent to their own addresses.
	quiet rule.SetName = "quiet"

	// forwardChain decides about new connections at the forward hook of each table.
	forwardChain = "policy_forward"
)

func policySets() []rule.Set {
	port := nftables.TypeIFName
	sets := []rule.Set{{Name: quiet, Type: port, Bridge: true}, {Name: bridge.Bound, Type: port, Bridge: true}}
	for _, f := range []struct {
		addr   nftables.SetDatatype
		closed []rule.SetName
		allow  []rule.SetName
	}{
		{nftables.TypeIPAddr, []rule.SetName{closedIn4, closedOut4}, []rule.SetName{allowIn4, allowOut4}},
		{nftables.TypeIP6Addr, []rule.SetName{closedIn6, closedOut6}, []rule.SetName{allowIn6, allowOut6}},
	} {
		four := nftables.MustConcatSetType(f.addr, f.addr, nftables.TypeInetProto, nftables.TypeInetService)
		for _, name := range f.closed {
			sets = append(sets, rule.Set{Name: name, Type: f.addr},
				rule.Set{Name: name + rule.Bridged, Type: f.addr, Bridge: true})
		}
		for _, name := range f.allow {
			sets = append(sets, rule.Set{Name: name, Type: four, Concat: true, Interval: true},
				rule.Set{Name: name + rule.Bridged, Type: four, Concat: true, Interval: true, Bridge: true})
		}
	}
	return sets
}

// A Subject is an address of an endpoint that policy applies to.
type Subject struct {
	Port   string // of the bridge
	Bridge string
	// Foreign: the bridge is the host's, and must not be changed.
	Foreign bool
	Addr    netip.Addr
	// In and Out are what is allowed in each direction; nil: everything.
	In, Out *Access
}

// An Access is all traffic that is allowed in one direction. Its passages do not overlap.
type Access struct{ Allow []Allowance }

// A Allowance allows traffic of a range of protocols, with a range of addresses at the other end, to a range of ports.
// Both ends of a range belong to it.
type Allowance struct {
	First, Last           netip.Addr
	FirstProto, LastProto uint8
	FirstPort, LastPort   uint16
}

// Objects returns what makes the kernel enforce the policy of all subjects.
func Objects(k *core.Handle, subjects []Subject) []core.Object {
	return ObjectsWith(nft.Of(k).Conntrack, subjects)
}

// ObjectsWith is Objects for a kernel that tracks connections on bridges, or does not.
func ObjectsWith(conntrack bool, subjects []Subject) []core.Object {
	var objects []core.Object
	tables := []rule.SetName{""}
	if conntrack {
		tables = append(tables, rule.Bridged)
	}
	for _, s := range subjects {
		if !conntrack {
			objects = append(objects, bridge.NetfilterCall{Name: s.Bridge, Foreign: s.Foreign})
		}
		for _, d := range []struct {
			access        *Access
			port          rule.SetName
			closed, allow [2]rule.SetName // for IPv4 and IPv6
		}{
			{s.In, quiet, [2]rule.SetName{closedIn4, closedIn6}, [2]rule.SetName{allowIn4, allowIn6}},
			{s.Out, bridge.Bound, [2]rule.SetName{closedOut4, closedOut6}, [2]rule.SetName{allowOut4, allowOut6}},
		} {
			if d.access == nil {
				continue
			}
			v6 := 0
			if s.Addr.Is6() {
				v6 = 1
			}
			own := string(s.Addr.AsSlice())
			add := func(e nft.Element) { objects = append(objects, e.For(nft.PolicyOwner)) }
			add(nft.InterfaceIn(d.port, s.Port))
			for _, suffix := range tables {
				add(nft.NewElement(policySets(), d.closed[v6]+suffix, own, ""))
				for _, p := range d.access.Allow {
					first := own + p.key(p.First, p.FirstProto, p.FirstPort)
					last := own + p.key(p.Last, p.LastProto, p.LastPort)
					add(nft.NewElement(policySets(), d.allow[v6]+suffix, first, last))
				}
			}
		}
	}
	return objects
}

// key returns the part of an element's key after the own address, each value in registers of its own.
func (Allowance) key(a netip.Addr, proto uint8, port uint16) string {
	b := append(a.AsSlice(), proto, 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(b, port), 0, 0))
}

// policyChains decide about routed packets, before the chain forward does, so that neither depends on the rules of the
// other: a drop is final, and what passes here still has to pass there. Where br_netfilter is on, they also see bridged
// packets.
func policyChains(b rule.SetBook) []rule.Chain {
	early := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5)
	family := []([]expr.Any){rule.NFProto(unix.NFPROTO_IPV4), rule.NFProto(unix.NFPROTO_IPV6)}
	base := append([]rule.Rule{rule.New("accept replies", rule.Established(), rule.Accept())}, neighbours(family[1])...)
	base = base[:len(base):len(base)] // for several chains
	chains := []rule.Chain{
		{
			Name: forwardChain, Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: early,
			Rules: append(base, decisions(b, family, "", true)...),
		},
		{ // policy applies to what containers send to the host, not to what the host sends
			Name: "policy_host", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: early,
			Rules: append(base, decisions(b, family, "", false)...),
		},
	}
	return append(chains, verdicts(b, family, "")...)
}

// BridgePolicyChains decide about bridged frames. Where the kernel has no conntrack on bridges, br_netfilter passes the
// frames to the chain of the same name in the other table. Frames that reach every port are decided here all the same,
// since only here the rules see which port a frame goes to.
func BridgePolicyChains(b rule.SetBook, conntrack bool) []rule.Chain {
	v4, v6 := rule.EtherType(unix.ETH_P_IP), rule.EtherType(unix.ETH_P_IPV6)
	base := rule.Chain{
		Name: forwardChain, Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5), Rules: append([]rule.Rule{
			rule.New("check frames to ports with an ingress policy", b.OIF(quiet, false), rule.Jump(string(quiet))),
		}, neighbours(v6)...),
	}
	chains := []rule.Chain{{Name: string(quiet), Rules: quietRules(b, v4, v6)}}
	if !conntrack {
		return append(chains, base)
	}
	base.Rules = append(base.Rules, rule.New("accept replies", rule.Established(), rule.Accept()))
	family := [][]expr.Any{v4, v6}
	base.Rules = append(base.Rules, decisions(b, family, rule.Bridged, true)...)
	return append(append(chains, base), verdicts(b, family, rule.Bridged)...)
}

// quietRules check frames to a port with an ingress policy. A policy says who may send IP, so nothing but IP and ARP
// gets to the port: br_netfilter and conntrack do not look inside tags and other encapsulations, and receivers do.
func quietRules(b rule.SetBook, v4, v6 []expr.Any) []rule.Rule {
	others := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}}
	for _, t := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP} {
		others = append(others, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{byte(t >> 8), byte(t)}})
	}
	to := func(set rule.SetName, offset, size uint32) []expr.Any {
		return b.IfKey(expr.MetaKeyOIFNAME, set, true, expr.PayloadBaseNetworkHeader, offset, size)
	}
	return slices.Concat([]rule.Rule{
		rule.New("drop VLAN tags and other protocols", others, rule.Drop()),
	}, neighbours(v6), []rule.Rule{
		rule.New("drop what is not sent to the endpoint's addresses", v4, to(bridge.Addrs4, 16, 4), rule.Drop()),
		rule.New("drop what is not sent to the endpoint's addresses, IPv6", v6, to(bridge.Addrs6, 24, 16), rule.Drop()),
	})
}

// A side is one of the four checks that policy makes of a new connection: a direction and a family.
type side struct {
	chain         string
	text          string
	closed, allow rule.SetName
	v6, in        bool
}

func sides() []side {
	return []side{
		{"egress4", "check egress", closedOut4, allowOut4, false, false},
		{"egress6", "check egress, IPv6", closedOut6, allowOut6, true, false},
		{"ingress4", "check ingress", closedIn4, allowIn4, false, true},
		{"ingress6", "check ingress, IPv6", closedIn6, allowIn6, true, true},
	}
}

// own and other return where the header has the endpoint's address, and the address of the other end.
func (s side) own() *expr.Payload { return s.address(s.in) }

func (s side) other() *expr.Payload { return s.address(!s.in) }

func (s side) address(destination bool) *expr.Payload {
	p := &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4} // RFC 791
	if s.v6 {
		p.Offset, p.Len = 8, 16 // RFC 8200
	}
	if destination {
		p.Offset += p.Len
	}
	return p
}

// among returns the side's family of IPv4 and IPv6.
func (s side) among(family [][]expr.Any) []expr.Any {
	if s.v6 {
		return family[1]
	}
	return family[0]
}

// decisions returns the rules that jump to the chain which decides; family matches IPv4 and IPv6.
func decisions(b rule.SetBook, family [][]expr.Any, suffix rule.SetName, in bool) (rules []rule.Rule) {
	for _, s := range sides() {
		if s.in && !in {
			continue
		}
		own := s.own()
		own.DestRegister = 1
		closed := []expr.Any{own, b.Lookup(s.closed+suffix, false)}
		rules = append(rules, rule.New(s.text, s.among(family), closed, rule.Jump(s.chain)))
	}
	return rules
}

// verdicts returns the chains that look a connection up, and drop what is not found or cannot be looked up.
func verdicts(b rule.SetBook, family [][]expr.Any, suffix rule.SetName) (chains []rule.Chain) {
	const first = 8 // NFT_REG32_00: 4 bytes each from here on
	for _, s := range sides() {
		own, other := s.own(), s.other()
		own.DestRegister = first
		other.DestRegister = own.DestRegister + own.Len/4
		proto := other.DestRegister + other.Len/4
		chains = append(chains, rule.Chain{Name: s.chain, Rules: []rule.Rule{
			rule.New("continue with what policy allows", s.among(family), []expr.Any{
				own, other,
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
				&expr.Payload{DestRegister: proto + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Lookup{SourceRegister: first, SetName: b[s.allow+suffix].Name, SetID: b[s.allow+suffix].ID},
			}, rule.Return()),
			rule.New("drop what policy does not allow", rule.Drop()),
		}})
	}
	return chains
}

// neighbours accept what IPv6 cannot work without, and what stays on the link: a router has lowered the hop limit of
// what it passes on. The port guard has checked neighbour discovery. v6 matches IPv6.
func neighbours(v6 []expr.Any) []rule.Rule {
	const (
		base                            = expr.PayloadBaseNetworkHeader
		limitAt, destination            = 7, 24                         // RFC 8200
		listenerQuery, listenerDone     = 130, 132                      // RFC 2710
		routerSolicit, neighbourAdvert  = 133, bridge.NDNeighbourAdvert // RFC 4861
		multicast, linkLocal, localMask = "\xff", "\xfe\x80", "\xff\xc0"
	)
	kinds := func(first, last, hopLimit byte) []expr.Any {
		return rule.Join(v6, rule.L4proto(unix.IPPROTO_ICMPV6), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{first}, ToData: []byte{last}},
		}, rule.Payload(base, limitAt, string([]byte{hopLimit}), expr.CmpOpEq))
	}
	listener := kinds(listenerQuery, listenerDone, 1)
	pad := strings.Repeat("\x00", 16-len(linkLocal))
	local := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: destination, Len: 16},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 16, Mask: []byte(localMask + pad), Xor: make([]byte, 16),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(linkLocal + pad)},
	}
	return []rule.Rule{
		rule.New("accept neighbour discovery", kinds(routerSolicit, neighbourAdvert, 255), rule.Accept()),
		rule.New("accept multicast listener messages",
			listener, rule.Payload(base, destination, multicast, expr.CmpOpEq), rule.Accept()),
		rule.New("accept multicast listener messages to link-local addresses", listener, local, rule.Accept()),
	}
}
