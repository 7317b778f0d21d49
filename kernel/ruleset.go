package kernel

import (
	"net"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The ruleset is static: these rules are loaded once, atomically, and never change. What varies are the elements of the
// sets they look into, so that a packet costs the same whatever the number of networks.
const (
	tableName = "netyard"

	guardComment4 = "this host routes IPv4 for containers only"
	guardComment6 = "this host routes IPv6 for containers only"

	// Bridges has the bridge of each network.
	Bridges SetName = "bridges"
	// Internal has those of them that have no way out.
	Internal SetName = "internal"
	// Talk has the pairs of bridges that may talk; (b, b) lets the containers of b reach each other.
	Talk SetName = "talk"
	// NAT4 and NAT6 have the subnets that leave masqueraded.
	NAT4 SetName = "nat4"
	NAT6 SetName = "nat6"
	// Own has the pairs (b, b) of netyard's bridges.
	Own SetName = "own"
	// foreign has the bridges of other managers of containers, found by watching the links.
	foreign SetName = "foreign"
	// same has the pairs (b, b) of all bridges that are not netyard's: with br_netfilter what stays on one passes the forward hook.
	same SetName = "same"
)

// A SetName is the name of a set of the ruleset.
type SetName string

// A setSpec is how a set is declared; one with data is a map.
type setSpec struct {
	name     SetName
	key      nftables.SetDatatype
	concat   bool
	interval bool
	bridge   bool // in the bridge table
	data     nftables.SetDatatype
	// life is how long an element stays that the rules themselves put in; 0: netyard puts them in.
	life time.Duration
}

func (s setSpec) set(t *nftables.Table, id uint32) *nftables.Set {
	set := &nftables.Set{
		Table: t, Name: string(s.name), ID: id, KeyType: s.key, Concatenation: s.concat, Interval: s.interval,
		DataType: s.data, IsMap: s.data.Bytes > 0,
	}
	if s.life > 0 {
		const most = 1 << 16
		set.HasTimeout, set.Dynamic, set.Timeout, set.Size = true, true, s.life, most
	}
	for _, field := range fieldsOf(s.key) {
		if field == nftables.TypeIFName || s.key == nftables.TypeMark { // or nft would show them backwards
			set.KeyByteOrder = binaryutil.NativeEndian
		}
	}
	return set
}

// fieldsOf takes a concatenation apart.
func fieldsOf(key nftables.SetDatatype) []nftables.SetDatatype {
	if many := nftables.ConcatSetTypeElements(key); len(many) > 0 {
		return many
	}
	return []nftables.SetDatatype{key}
}

func setSpecs() []setSpec {
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	return slices.Concat(publishSets(), loopbackSets(), gatewaySets(), admitSets(), returnSets(), []setSpec{
		{name: Bridges, key: nftables.TypeIFName},
		{name: Internal, key: nftables.TypeIFName},
		{name: foreign, key: nftables.TypeIFName},
		{name: Talk, key: pair, concat: true},
		{name: same, key: pair, concat: true},
		{name: NAT4, key: nftables.TypeIPAddr, interval: true},
		{name: NAT6, key: nftables.TypeIP6Addr, interval: true},
		{name: Own, key: pair, concat: true},
	})
}

// A chainSpec is a chain and its rules; without a hook it is one that others jump to.
type chainSpec struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []ruleSpec
}

// A ruleSpec is one rule; its comment is how people and doctor tell it.
type ruleSpec struct {
	comment string
	exprs   []expr.Any
}

// inetChains decides about routed packets. An accept here does not override a drop elsewhere, and the other way round:
// Docker's own FORWARD policy is met in DOCKER-USER (dockeruser.go).
func inetChains(b setBook, guard guards, obeys bool) []chainSpec {
	forward := slices.Concat([]ruleSpec{
		{"containers of one network", rule(b.ifPair(Talk, false), accept())},
	}, killSwitch(b), []ruleSpec{
		{"answers", rule(established(), accept())},
		{"internal networks have no way out", rule(b.iif(Internal, false), drop())},
		{"nor in", rule(b.oif(Internal, false), drop())},
	}, published(b), onlyPublished(b), []ruleSpec{
		{"networks are apart", rule(b.iif(Bridges, false), b.oif(Bridges, false), drop())},
		{"and apart from other managers' networks", rule(b.iif(Bridges, false), b.oif(foreign, false), drop())},
		{"nothing else comes in", rule(b.oif(Bridges, false), drop())},
	})
	if guard.v4 {
		forward = append(forward, ruleSpec{guardComment4, rule(nfproto(unix.NFPROTO_IPV4), b.between(), drop())})
	}
	if guard.v6 {
		forward = append(forward, ruleSpec{guardComment6, rule(nfproto(unix.NFPROTO_IPV6), b.between(), drop())})
	}
	return slices.Concat(publishChains(b, obeys), loopbackChains(b), gatewayChains(b), admitChains(b, obeys), []chainSpec{
		{
			name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
			priority: nftables.ChainPriorityFilter, rules: forward,
		},
		{
			name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
			priority: nftables.ChainPriorityNATSource, rules: slices.Concat(returning(b), []ruleSpec{
				{"a neighbour's answer comes back by way of the host", rule(dnatted(), b.ifPair(Own, false), masquerade())},
				{"and so does its own", rule(b.addrPair(self4, v4Loop()), masquerade())},
				{"and its own, IPv6", rule(b.addrPair(self6, v6Loop()), masquerade())},
				{"so does the answer to loopback", rule(loopSource4(), b.oif(Bridges, false), masquerade())},
				{"and IPv6 loopback", rule(loopSource6(), b.oif(Bridges, false), masquerade())},
				{"so do answers that would else go by the container that is the gateway", rule(dnatted(), b.oif(guided, false), masquerade())},
				{"leave with the host's address", rule(b.saddr4(NAT4), b.oif(Bridges, true), masquerade())},
				{"leave with the host's address, IPv6", rule(b.saddr6(NAT6), b.oif(Bridges, true), masquerade())},
			}, leaving(b)),
		},
	})
}

// bridgeChains decides about frames, wherever they go. A container also does not get to play the router for its neighbours or for
// the host (CVE-2020-13401).
func bridgeChains(b setBook, conntrack bool) []chainSpec {
	return append(guardChains(b), bridgePolicyChains(b, conntrack)...)
}

// A setBook finds the sets that rules look into.
type setBook map[SetName]*nftables.Set

func rule(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (b setBook) lookup(set SetName, invert bool) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: b[set].Name, SetID: b[set].ID, Invert: invert}
}

func (b setBook) iif(set SetName, invert bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, b.lookup(set, invert)}
}

func (b setBook) oif(set SetName, invert bool) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, b.lookup(set, invert)}
}

// between matches what is forwarded for no container at all, neither netyard's nor another manager's.
func (b setBook) between() []expr.Any {
	return rule(b.iif(Bridges, true), b.iif(foreign, true), b.oif(foreign, true), b.ifPair(same, true))
}

// ifPair looks up incoming and outgoing interface together: a 16-byte register each, side by side.
func (b setBook) ifPair(set SetName, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
		b.lookup(set, invert),
	}
}

func (b setBook) saddr4(set SetName) []expr.Any {
	const offset = 12 // RFC 791
	return append(nfproto(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv4len}, b.lookup(set, false))
}

func (b setBook) saddr6(set SetName) []expr.Any {
	const offset = 8 // RFC 8200
	return append(nfproto(unix.NFPROTO_IPV6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv6len}, b.lookup(set, false))
}

func nfproto(family byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

func icmpType(proto, kind byte) []expr.Any {
	etherType := []byte{0x08, 0x00}
	if proto == unix.IPPROTO_ICMPV6 {
		etherType = []byte{0x86, 0xdd}
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: etherType},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
}

// ifNamePrefix matches names that begin so: a comparison shorter than the name, as nft and iptables write a wildcard.
func ifNamePrefix(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)},
	}
}

func established() []expr.Any {
	const zero = "\x00\x00\x00\x00"
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Xor: []byte(zero),
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(zero)},
	}
}

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// comment is the user data that nft and iptables show as a rule's comment.
func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }
