// Package policy makes the kernel decide who may talk to whom: elements of sets, the chains that look into them, and
// the end of connections that are no longer allowed.
package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

// IsSet says whether a set is one of policy.
func IsSet(name rule.SetName) bool {
	return slices.ContainsFunc(policySets(), func(s rule.Set) bool { return s.Name == name })
}

// Policy is made of elements only. Who is decided about is in the sets of the closed; what they may is in the sets of
// the allowed, as (own address, other's address, protocol, port). Elements of one set never overlap: whoever makes them
// has settled what goes before what.
const (
	closedIn4  rule.SetName = "closed_in4"
	closedIn6  rule.SetName = "closed_in6"
	closedOut4 rule.SetName = "closed_out4"
	closedOut6 rule.SetName = "closed_out6"
	allowIn4   rule.SetName = "allow_in4"
	allowIn6   rule.SetName = "allow_in6"
	allowOut4  rule.SetName = "allow_out4"
	allowOut6  rule.SetName = "allow_out6"

	// quiet has the ports whose ingress is decided: they get nothing that is not sent to their own addresses.
	quiet rule.SetName = "quiet"
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
			sets = append(sets, rule.Set{Name: name, Type: f.addr}, rule.Set{Name: name + rule.Bridged, Type: f.addr, Bridge: true})
		}
		for _, name := range f.allow {
			sets = append(sets, rule.Set{Name: name, Type: four, Concat: true, Interval: true},
				rule.Set{Name: name + rule.Bridged, Type: four, Concat: true, Interval: true, Bridge: true})
		}
	}
	return sets
}

// A Subject is an address of an endpoint that policy decides about.
type Subject struct {
	Port   string // of the bridge
	Bridge string
	// Foreign: the bridge is the host's owner's and not to be altered.
	Foreign bool
	Addr    netip.Addr
	// In and Out say what may come and go; nil: everything.
	In, Out *Access
}

// An Access is all that may pass in one direction. Its passages do not overlap.
type Access struct{ Allow []Passage }

// A Passage lets pass what is of these protocols, from or to these addresses, to these ports; both ends belong to it.
type Passage struct {
	First, Last           netip.Addr
	FirstProto, LastProto uint8
	FirstPort, LastPort   uint16
}

// Objects are what makes the kernel decide so.
func Objects(k *core.Handle, subjects []Subject) []core.Object {
	var objects []core.Object
	tables := []rule.SetName{""}
	if nft.Of(k).Conntrack {
		tables = append(tables, rule.Bridged)
	}
	for _, s := range subjects {
		if !nft.Of(k).Conntrack {
			objects = append(objects, bridge.Call{Name: s.Bridge, Foreign: s.Foreign})
		}
		for _, d := range []struct {
			access         *Access
			port           rule.SetName
			closed, allow4 [2]rule.SetName
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
			objects = append(objects, nft.InterfaceIn(d.port, s.Port).For(nft.PolicyOwner))
			for _, suffix := range tables {
				objects = append(objects, nft.NewElement(policySets(), d.closed[v6]+suffix, own, "").For(nft.PolicyOwner))
				for _, p := range d.access.Allow {
					objects = append(objects, nft.NewElement(policySets(), d.allow4[v6]+suffix, own+p.key(p.First, p.FirstProto, p.FirstPort),
						own+p.key(p.Last, p.LastProto, p.LastPort)).For(nft.PolicyOwner))
				}
			}
		}
	}
	return objects
}

// key is the part of an element behind the own address, each value in registers of its own.
func (Passage) key(a netip.Addr, proto uint8, port uint16) string {
	b := append(a.AsSlice(), proto, 0, 0, 0)
	return string(append(binary.BigEndian.AppendUint16(b, port), 0, 0))
}

// policyChains decide about what is routed, before chain forward does, so that neither depends on the rules of the
// other: a drop is final, and what passes here still has to pass there. Where br_netfilter is on they see what is
// bridged, too.
func policyChains(b rule.Book) []rule.Chain {
	early := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5)
	family := []([]expr.Any){rule.NFProto(unix.NFPROTO_IPV4), rule.NFProto(unix.NFPROTO_IPV6)}
	base := []rule.Rule{
		rule.New("answers", rule.Established(), rule.Accept()),
		rule.New("neighbours find each other", neighbours(), rule.Accept()),
	}
	chains := []rule.Chain{
		{
			Name: "policy", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: early,
			Rules: append(base, decisions(b, family, "", true)...),
		},
		{ // what containers send to the host is theirs to decide, too; what the host sends is not
			Name: "policy_host", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: early,
			Rules: append(base[:len(base):len(base)], decisions(b, family, "", false)...),
		},
	}
	return append(chains, verdicts(b, "")...)
}

// BridgePolicyChains decide about what is bridged. Where the kernel cannot follow connections there, br_netfilter takes
// the frames to the chain policy of the other table; what is for everybody is decided here all the same, since only
// here one sees whom it goes to.
func BridgePolicyChains(b rule.Book, conntrack bool) []rule.Chain {
	v4, v6 := rule.EtherType(unix.ETH_P_IP), rule.EtherType(unix.ETH_P_IPV6)
	base := rule.Chain{
		Name: "policy", Kind: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5), Rules: []rule.Rule{
			rule.New("ports whose ingress is decided", b.OIF(quiet, false), rule.Jump(string(quiet))),
			rule.New("neighbours find each other", neighbours(), rule.Accept()),
		},
	}
	chains := []rule.Chain{{Name: string(quiet), Rules: quietRules(b, v4, v6)}}
	if !conntrack {
		return append(chains, base)
	}
	base.Rules = append(base.Rules, rule.New("answers", rule.Established(), rule.Accept()))
	base.Rules = append(base.Rules, decisions(b, []([]expr.Any){v4, v6}, rule.Bridged, true)...)
	return append(append(chains, base), verdicts(b, rule.Bridged)...)
}

// quietRules are about frames to a port whose ingress is decided. A policy says who may send IP, so nothing else gets
// there but ARP: br_netfilter and conntrack do not look into what is tagged or wrapped, and receivers do.
func quietRules(b rule.Book, v4, v6 []expr.Any) []rule.Rule {
	others := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}}
	for _, t := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP} {
		others = append(others, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{byte(t >> 8), byte(t)}})
	}
	to := func(set rule.SetName, offset, size uint32) []expr.Any {
		return b.IfKey(expr.MetaKeyOIFNAME, set, true, expr.PayloadBaseNetworkHeader, offset, size)
	}
	return []rule.Rule{
		rule.New("drop tags and other protocols", others, rule.Drop()),
		rule.New("neighbours find each other", neighbours(), rule.Accept()),
		rule.New("only what is sent to it", v4, to(bridge.Addrs4, 16, 4), rule.Drop()),
		rule.New("only what is sent to it, IPv6", v6, to(bridge.Addrs6, 24, 16), rule.Drop()),
	}
}

// A side is one of the four questions that policy asks about a new connection.
type side struct {
	chain         string
	text          string
	closed, allow rule.SetName
	v6, in        bool
}

func sides() []side {
	return []side{
		{"egress4", "what leaves", closedOut4, allowOut4, false, false},
		{"egress6", "what leaves, IPv6", closedOut6, allowOut6, true, false},
		{"ingress4", "what comes in", closedIn4, allowIn4, false, true},
		{"ingress6", "what comes in, IPv6", closedIn6, allowIn6, true, true},
	}
}

// own and other are where the header has the address of the endpoint that is decided about, and the other one.
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

// decisions send what is to be decided to where it is; family matches IPv4 and IPv6.
func decisions(b rule.Book, family [][]expr.Any, suffix rule.SetName, in bool) (rules []rule.Rule) {
	for _, s := range sides() {
		if s.in && !in {
			continue
		}
		f := family[0]
		if s.v6 {
			f = family[1]
		}
		own := s.own()
		own.DestRegister = 1
		rules = append(rules, rule.New(s.text, f, []expr.Any{own, b.Lookup(s.closed+suffix, false)}, rule.Jump(s.chain)))
	}
	return rules
}

// verdicts look a connection up, and drop what is not found, or cannot be looked up.
func verdicts(b rule.Book, suffix rule.SetName) (chains []rule.Chain) {
	const first = 8 // NFT_REG32_00: 4 bytes each from here on
	for _, s := range sides() {
		own, other := s.own(), s.other()
		own.DestRegister = first
		other.DestRegister = own.DestRegister + own.Len/4
		proto := other.DestRegister + other.Len/4
		chains = append(chains, rule.Chain{Name: s.chain, Rules: []rule.Rule{
			rule.New("is allowed", []expr.Any{
				own, other,
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
				&expr.Payload{DestRegister: proto + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Lookup{SourceRegister: first, SetName: b[s.allow+suffix].Name, SetID: b[s.allow+suffix].ID},
			}, rule.Back()),
			rule.New("or is dropped", rule.Drop()),
		}})
	}
	return chains
}

// neighbours matches what IPv6 needs to work at all: groups (130 to 132) and neighbour discovery (133 to 136). It stays
// on the link, and the guard of ports has checked it.
func neighbours() []expr.Any {
	const listenerQuery = 130 // RFC 2710
	return rule.Join(
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}}},
		[]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{listenerQuery}, ToData: []byte{bridge.NDNeighbourAdvert}},
		},
	)
}
