package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Policy is made of elements only. Who is decided about is in the sets of the closed; what they may is in the sets of
// the allowed, as (own address, other's address, protocol, port). Elements of one set never overlap: whoever makes them
// has settled what goes before what.
const (
	closedIn4  SetName = "closed_in4"
	closedIn6  SetName = "closed_in6"
	closedOut4 SetName = "closed_out4"
	closedOut6 SetName = "closed_out6"
	allowIn4   SetName = "allow_in4"
	allowIn6   SetName = "allow_in6"
	allowOut4  SetName = "allow_out4"
	allowOut6  SetName = "allow_out6"

	// bridged ends the names of the same sets in the bridge table: a set belongs to one table.
	bridged = "_bridged"

	// quiet has the ports whose ingress is decided: they get nothing that is not sent to their own addresses.
	quiet SetName = "quiet"
	// bound has the ports whose egress is decided: they send from their own addresses, whatever antispoof says.
	bound SetName = "bound"

	// policyOwner is who wants the elements of policy.
	policyOwner = "policy"
)

func policySets() []setSpec {
	port := nftables.TypeIFName
	sets := []setSpec{{name: quiet, key: port, bridge: true}, {name: bound, key: port, bridge: true}}
	for _, f := range []struct {
		addr   nftables.SetDatatype
		closed []SetName
		allow  []SetName
	}{
		{nftables.TypeIPAddr, []SetName{closedIn4, closedOut4}, []SetName{allowIn4, allowOut4}},
		{nftables.TypeIP6Addr, []SetName{closedIn6, closedOut6}, []SetName{allowIn6, allowOut6}},
	} {
		four := nftables.MustConcatSetType(f.addr, f.addr, nftables.TypeInetProto, nftables.TypeInetService)
		for _, name := range f.closed {
			sets = append(sets, setSpec{name: name, key: f.addr}, setSpec{name: name + bridged, key: f.addr, bridge: true})
		}
		for _, name := range f.allow {
			sets = append(sets, setSpec{name: name, key: four, concat: true, interval: true},
				setSpec{name: name + bridged, key: four, concat: true, interval: true, bridge: true})
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

// PolicyObjects are what makes the kernel decide so.
func (k *Kernel) PolicyObjects(subjects []Subject) []Object {
	var objects []Object
	tables := []SetName{""}
	if k.fw.conntrack {
		tables = append(tables, bridged)
	}
	for _, s := range subjects {
		if !k.fw.conntrack {
			objects = append(objects, bridgeCall{name: s.Bridge, foreign: s.Foreign})
		}
		for _, d := range []struct {
			access         *Access
			port           SetName
			closed, allow4 [2]SetName
		}{
			{s.In, quiet, [2]SetName{closedIn4, closedIn6}, [2]SetName{allowIn4, allowIn6}},
			{s.Out, bound, [2]SetName{closedOut4, closedOut6}, [2]SetName{allowOut4, allowOut6}},
		} {
			if d.access == nil {
				continue
			}
			v6 := 0
			if s.Addr.Is6() {
				v6 = 1
			}
			own := string(s.Addr.AsSlice())
			objects = append(objects, InterfaceIn(d.port, s.Port).For(policyOwner))
			for _, suffix := range tables {
				objects = append(objects, newElement(d.closed[v6]+suffix, own, "").For(policyOwner))
				for _, p := range d.access.Allow {
					objects = append(objects, newElement(d.allow4[v6]+suffix, own+p.key(p.First, p.FirstProto, p.FirstPort),
						own+p.key(p.Last, p.LastProto, p.LastPort)).For(policyOwner))
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

// Enforce makes the elements of policy what these objects say, in one transaction: a packet sees the policies as they
// were or as they are to be. Before the ruleset is loaded they are only collected. What was adopted stays for all
// addresses but those that are decided about here or settled: of those the records know all.
func (k *Kernel) Enforce(ctx context.Context, objects []Object, settled ...netip.Addr) error {
	wanted := map[elementID]Element{}
	var rest []Object
	for _, o := range objects {
		if e, ok := o.(Element); ok {
			wanted[e.id()] = e
		} else if !slices.Contains(rest, o) {
			rest = append(rest, o)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("enforce policy: %w", err)
	}
	if err := k.fw.replace(ctx, wanted, settled); err != nil {
		return err
	}
	return k.Ensure(ctx, rest...)
}

// replace exchanges the elements of policy.
func (f *firewall) replace(ctx context.Context, wanted map[elementID]Element, settled []netip.Addr) error {
	var c policyChange
	t := turn{
		act: "enforce policy",
		do: func() error {
			c = f.differ(wanted, settled)
			return f.swap(c)
		},
		undo: func() error { return f.swap(c.back()) },
	}
	if _, bounded := ctx.Deadline(); !bounded { // something is taken back
		return f.runLater(t)
	}
	return f.run(ctx, t)
}

// A policyChange is what becomes of the elements of policy. Each wish is as it was, or is to be, whosever it is: what
// was adopted is adopted again when a change is taken back.
type policyChange struct {
	gone, fresh []*wish
	// taken are what was adopted and is policy's own wish from now on; freed the other way round.
	taken, freed []*wish
}

func (c policyChange) back() policyChange {
	return policyChange{gone: c.fresh, fresh: c.gone, taken: c.freed, freed: c.taken}
}

// differ says which elements policy is to have that it has not, and the other way round.
func (f *firewall) differ(wanted map[elementID]Element, settled []netip.Addr) (c policyChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noteSettled(settled)
	decided := map[ruling]bool{}
	for _, e := range wanted {
		if r, ok := rulingOf(e); ok && f.adopted {
			decided[r] = true
		}
	}
	for id, w := range f.want {
		ours := w.owners[policyOwner] || len(w.owners) == 0 && f.superseded(w.Element, decided)
		if e, keep := wanted[id]; ours && (!keep || e.content != w.content) {
			c.gone = append(c.gone, w)
		}
	}
	for id, e := range wanted {
		switch w := f.want[id]; {
		case w == nil || w.content != e.content:
			c.fresh = append(c.fresh, &wish{Element: e, owners: map[string]bool{policyOwner: true}})
		case !w.owners[policyOwner]:
			c.taken = append(c.taken, w)
		}
	}
	return c
}

// swap makes policy want other elements.
func (f *firewall) swap(c policyChange) error {
	f.wish(c)
	if len(c.fresh)+len(c.gone) == 0 || !f.loaded {
		return nil
	}
	err := f.exchange(elementsOf(c.gone), elementsOf(c.fresh))
	if err != nil {
		f.wish(c.back())
	}
	return err
}

func elementsOf(wishes []*wish) (all []Element) {
	for _, w := range wishes {
		all = append(all, w.Element)
	}
	return all
}

// exchange takes elements out of the kernel and puts others in.
func (f *firewall) exchange(gone, fresh []Element) error {
	// Taking an element out of a set of concatenated intervals costs the kernel more the more there are (pipapo_drop,
	// net/netfilter/nft_set_pipapo.c): 1000 of them seconds. Loading the table anew takes out none.
	const few = 64
	if len(gone) > few {
		return f.load()
	}
	err := f.change(gone, f.tx.SetDeleteElements)
	if err == nil {
		err = f.change(fresh, f.tx.SetAddElements)
	}
	if err == nil {
		err = f.outcome(f.flush("enforce policy"))
	}
	return err
}

// wish changes what policy wants.
func (f *firewall) wish(c policyChange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range c.gone {
		delete(f.want, w.id())
	}
	for _, w := range c.fresh {
		f.want[w.id()] = w
	}
	for _, w := range c.taken {
		w.owners[policyOwner] = true
	}
	for _, w := range c.freed {
		delete(w.owners, policyOwner)
	}
}

// policyChains decide about what is routed, before chain forward does, so that neither depends on the rules of the
// other: a drop is final, and what passes here still has to pass there. Where br_netfilter is on they see what is
// bridged, too.
func policyChains(b setBook) []chainSpec {
	early := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5)
	family := []([]expr.Any){nfproto(unix.NFPROTO_IPV4), nfproto(unix.NFPROTO_IPV6)}
	base := []ruleSpec{
		{"answers", rule(established(), accept())},
		{"neighbours find each other", rule(neighbours(), accept())},
	}
	chains := []chainSpec{
		{
			name: "policy", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: early,
			rules: append(base, b.decisions(family, "", true)...),
		},
		{ // what containers send to the host is theirs to decide, too; what the host sends is not
			name: "policy_host", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: early,
			rules: append(base[:len(base):len(base)], b.decisions(family, "", false)...),
		},
	}
	return append(chains, b.verdicts("")...)
}

// bridgePolicyChains decide about what is bridged. Where the kernel cannot follow connections there, br_netfilter takes
// the frames to the chain policy of the other table; what is for everybody is decided here all the same, since only
// here one sees whom it goes to.
func bridgePolicyChains(b setBook, conntrack bool) []chainSpec {
	v4, v6 := etherType(unix.ETH_P_IP), etherType(unix.ETH_P_IPV6)
	base := chainSpec{
		name: "policy", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 5), rules: []ruleSpec{
			{"ports whose ingress is decided", rule(b.oif(quiet, false), jump(string(quiet)))},
			{"neighbours find each other", rule(neighbours(), accept())},
		},
	}
	chains := []chainSpec{{name: string(quiet), rules: b.quietRules(v4, v6)}}
	if !conntrack {
		return append(chains, base)
	}
	base.rules = append(base.rules, ruleSpec{"answers", rule(established(), accept())})
	base.rules = append(base.rules, b.decisions([]([]expr.Any){v4, v6}, bridged, true)...)
	return append(append(chains, base), b.verdicts(bridged)...)
}

// quietRules are about frames to a port whose ingress is decided. A policy says who may send IP, so nothing else gets
// there but ARP: br_netfilter and conntrack do not look into what is tagged or wrapped, and receivers do.
func (b setBook) quietRules(v4, v6 []expr.Any) []ruleSpec {
	others := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2}}
	for _, t := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP} {
		others = append(others, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{byte(t >> 8), byte(t)}})
	}
	to := func(set SetName, offset, size uint32) []expr.Any {
		return b.ifKey(expr.MetaKeyOIFNAME, set, true, expr.PayloadBaseNetworkHeader, offset, size)
	}
	return []ruleSpec{
		{"drop tags and other protocols", rule(others, drop())},
		{"neighbours find each other", rule(neighbours(), accept())},
		{"only what is sent to it", rule(v4, to(Addrs4, 16, 4), drop())},
		{"only what is sent to it, IPv6", rule(v6, to(Addrs6, 24, 16), drop())},
	}
}

// A side is one of the four questions that policy asks about a new connection.
type side struct {
	chain         string
	text          string
	closed, allow SetName
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
func (s side) own() *expr.Payload   { return s.address(s.in) }
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
func (b setBook) decisions(family [][]expr.Any, suffix SetName, in bool) (rules []ruleSpec) {
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
		rules = append(rules, ruleSpec{s.text, rule(f, []expr.Any{own, b.lookup(s.closed+suffix, false)}, jump(s.chain))})
	}
	return rules
}

// verdicts look a connection up, and drop what is not found, or cannot be looked up.
func (b setBook) verdicts(suffix SetName) (chains []chainSpec) {
	const first = 8 // NFT_REG32_00: 4 bytes each from here on
	for _, s := range sides() {
		own, other := s.own(), s.other()
		own.DestRegister = first
		other.DestRegister = own.DestRegister + own.Len/4
		proto := other.DestRegister + other.Len/4
		chains = append(chains, chainSpec{name: s.chain, rules: []ruleSpec{
			{"is allowed", rule([]expr.Any{
				own, other,
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
				&expr.Payload{DestRegister: proto + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Lookup{SourceRegister: first, SetName: b[s.allow+suffix].Name, SetID: b[s.allow+suffix].ID},
			}, back())},
			{"or is dropped", drop()},
		}})
	}
	return chains
}

// neighbours matches what IPv6 needs to work at all: groups (130 to 132) and neighbour discovery (133 to 136). It stays
// on the link, and the guard of ports has checked it.
func neighbours() []expr.Any {
	const listenerQuery = 130 // RFC 2710
	return rule(
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}}},
		[]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{listenerQuery}, ToData: []byte{ndNeighbourAnswer}},
		},
	)
}

// probeConntrack asks the kernel, by a table that nobody ever sees, whether it can follow connections in the bridge
// family (nf_conntrack_bridge, Linux 5.3; a module that the question loads).
func (f *firewall) probeConntrack() (can bool, err error) {
	err = f.sure(func() error {
		t := f.tx.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: fmt.Sprintf("%s-probe", tableName)})
		c := f.tx.AddChain(&nftables.Chain{Table: t, Name: "probe"})
		f.tx.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: established()})
		f.tx.DelTable(t)
		return f.flush("ask for connection tracking on bridges")
	})
	if errors.Is(err, errUnsure) {
		return false, err
	}
	return err == nil, nil
}
