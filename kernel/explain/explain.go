// Package explain says what the rules of a host do to a packet, netyard's and everybody else's.
package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"netyard/kernel/beside"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
	krule "netyard/kernel/rule"
)

// A Packet is the first packet of a flow, at one of netfilter's hooks.
type Packet struct {
	// In and Out are the interfaces it comes in and leaves by; empty where it has none, as one for the host or from it.
	In, Out  string
	Src, Dst netip.Addr
	Proto    string
	Port     uint16
	// Local says that Dst is an address of the host.
	Local bool
	// OrigDst and OrigPort are what it was sent to, if it was translated on the way.
	OrigDst  netip.Addr
	OrigPort uint16
}

func (p Packet) translated() bool { return p.OrigDst.IsValid() }

// A Hook is where rules see a packet.
type Hook string

// The hooks that Judge knows.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

func (h Hook) number() nftables.ChainHook {
	return map[Hook]nftables.ChainHook{
		Prerouting: *nftables.ChainHookPrerouting, Input: *nftables.ChainHookInput, Forward: *nftables.ChainHookForward,
		Output: *nftables.ChainHookOutput, Postrouting: *nftables.ChainHookPostrouting,
	}[h]
}

// An Outcome is what may become of a packet; there are several where netyard cannot tell.
type Outcome uint8

// What may become of a packet.
const (
	Passes Outcome = 1 << iota
	Dropped
)

// A Judgement is what a rule does to a packet.
type Judgement struct {
	Rule    string
	Foreign bool
	Outcome Outcome
}

// Judge says which rules at a hook decide about a packet, in the order in which it meets them, and what becomes of it.
// It reads all chains of nftables there, which are iptables-nft's too. Rules that only may match are named as such:
// what it cannot read, it does not guess.
func Judge(k *core.Handle, h Hook, p Packet) (out []Judgement, sum Outcome, err error) {
	err = nft.Of(k).In.Look(func(v nft.View) (err error) {
		out, sum, err = (&judge{k: k, v: v, p: p, sets: map[string]*knownSet{}}).hook(h)
		return err
	})
	if err != nil || sum == Dropped {
		return out, sum, err
	}
	if used, err := beside.LegacyUsed(k, map[bool]string{true: "/proc/net/ip_tables_names", false: "/proc/net/ip6_tables_names"}[p.Dst.Is4()]); err == nil && used && h != Prerouting {
		out = append(out, Judgement{Rule: "the rules of iptables-legacy, which cannot be read here", Foreign: true, Outcome: Passes | Dropped})
		sum |= Dropped
	}
	return out, sum, nil
}

// hook follows the packet through all chains at a hook.
func (j *judge) hook(h Hook) (out []Judgement, sum Outcome, err error) {
	chains, err := j.baseChains(h)
	if err != nil {
		return nil, 0, err
	}
	sum = Passes
	for _, c := range chains {
		j.found = nil
		o, err := j.base(c)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, j.found...)
		switch o {
		case Dropped:
			return out, Dropped, nil
		case Passes | Dropped:
			sum = Passes | Dropped
		case Passes:
		}
	}
	return out, sum, nil
}

// A judge follows one packet through the chains of one hook.
type judge struct {
	k     *core.Handle
	v     nft.View
	p     Packet
	rules map[string][]readRule
	sets  map[string]*knownSet
	found []Judgement
	depth int
}

// baseChains are the chains at a hook that see packets of the family, in their order.
func (j *judge) baseChains(h Hook) (all []*nftables.Chain, err error) {
	families := []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4}
	if j.p.Dst.Is6() {
		families[1] = nftables.TableFamilyIPv6
	}
	j.rules = map[string][]readRule{}
	for _, family := range families {
		chains, err := j.v.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		rules, err := readRules(j.v, family)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			j.rules[chainID(c.Table, c.Name)] = rules[c.Table.Name+" "+c.Name]
			// The chain that lets clients in drops what has come through all others: it decides about nothing.
			if c.Hooknum != nil && *c.Hooknum == h.number() && (c.Table.Name != krule.TableName || c.Name != ports.AdmitChain) {
				all = append(all, c)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *nftables.Chain) int { return cmp.Compare(*a.Priority, *b.Priority) })
	return all, nil
}

func familyWord(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}[f]
}

func chainID(t *nftables.Table, chain string) string {
	return familyWord(t.Family) + " " + t.Name + " " + chain
}

// What a walk through a chain may end with.
type ending uint8

const (
	goesOn ending = 1 << iota
	accepted
	droppedEnd
)

// base follows the packet through a base chain.
func (j *judge) base(c *nftables.Chain) (Outcome, error) {
	e, err := j.chain(c.Table, c.Name, true)
	if err != nil {
		return 0, err
	}
	if e&goesOn != 0 && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		e = e&^goesOn | droppedEnd
		j.note(c.Table, "the policy of chain "+chainID(c.Table, c.Name), e == droppedEnd)
	}
	switch {
	case e&droppedEnd == 0:
		return Passes, nil
	case e == droppedEnd:
		return Dropped, nil
	}
	return Passes | Dropped, nil
}

func (j *judge) note(t *nftables.Table, rule string, sure bool) {
	o := Dropped
	if !sure {
		o |= Passes
	}
	j.found = append(j.found, Judgement{Rule: rule, Foreign: t.Name != krule.TableName, Outcome: o})
}

// chain follows the packet through the rules of a chain. sure: it certainly comes here.
func (j *judge) chain(t *nftables.Table, name string, sure bool) (ending, error) {
	const deepest = 16 // NFT_JUMP_STACK_SIZE (net/netfilter/nf_tables.h)
	if j.depth++; j.depth > deepest+1 {
		return goesOn | accepted | droppedEnd, nil
	}
	defer func() { j.depth-- }()
	var e ending
	for i, r := range j.rules[chainID(t, name)] {
		matches, v := j.rule(t, r)
		if matches == no || v.Kind == expr.VerdictContinue && !v.may {
			continue
		}
		certain := sure && matches == yes && e == 0
		some, leaves, err := j.verdict(t, v, certain)
		if err != nil {
			return 0, err
		}
		if some&droppedEnd != 0 && v.Chain == "" {
			j.note(t, ruleName(t, name, i, r), certain && !v.may)
		}
		e |= some &^ goesOn
		if matches == yes && !v.may && (leaves || some&goesOn == 0) {
			return e | some&goesOn, nil
		}
	}
	return e | goesOn, nil
}

// verdict is what a verdict may end the walk with, and whether the rest of the chain is left out.
func (j *judge) verdict(t *nftables.Table, v verdict, sure bool) (e ending, leaves bool, err error) {
	switch v.Kind {
	case expr.VerdictAccept:
		return accepted, false, nil
	case expr.VerdictDrop:
		return droppedEnd, false, nil
	case expr.VerdictReturn:
		return goesOn, true, nil
	case expr.VerdictJump, expr.VerdictGoto:
		e, err := j.chain(t, v.Chain, sure)
		return e, v.Kind == expr.VerdictGoto, err
	}
	return goesOn | accepted | droppedEnd, false, nil // queued to a program, or what is not known
}

// ruleName is how people find a rule.
func ruleName(t *nftables.Table, chain string, i int, r readRule) string {
	text, _ := userdata.GetString(r.userData, userdata.TypeComment)
	if t.Name == krule.TableName && text != "" {
		return fmt.Sprintf("netyard's rule %q of chain %s", text, chain)
	}
	name := fmt.Sprintf("rule %d (handle %d) of chain %s", i+1, r.handle, chainID(t, chain))
	if words := r.words(); words != "" {
		name += ": " + words
	}
	if text != "" {
		name += fmt.Sprintf(" (%q)", text)
	}
	return name
}

// words says what can be said of a rule without reading all of it.
func (r readRule) words() string {
	var said []string
	for _, e := range r.exprs {
		switch e := e.(type) {
		case *expr.Match:
			if e.Name != "comment" {
				said = append(said, "match "+e.Name)
			}
		case *expr.Target:
			said = append(said, e.Name)
		case *expr.Verdict:
			if name := verdictWord(e.Kind); name != "" {
				said = append(said, name)
			}
		case *expr.Reject:
			said = append(said, "reject")
		}
	}
	return strings.Join(append(said, r.unread...), ", ")
}

func verdictWord(k expr.VerdictKind) string {
	return map[expr.VerdictKind]string{expr.VerdictDrop: "drop", expr.VerdictAccept: "accept", expr.VerdictQueue: "queue"}[k]
}

// RouteTo is the interface that the host reaches an address by, and the host's own address towards it.
func RouteTo(k *core.Handle, a netip.Addr) (iface string, src netip.Addr, err error) {
	routes, err := k.NL.RouteGet(a.AsSlice())
	if err != nil || len(routes) == 0 {
		return "", src, fmt.Errorf("find a route to %s: %w", a, err)
	}
	link, err := k.NL.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", src, fmt.Errorf("find a route to %s: %w", a, err)
	}
	src, _ = netip.AddrFromSlice(routes[0].Src)
	return link.Attrs().Name, src.Unmap(), nil
}

// BridgedSeen says whether netfilter's rules for routed packets see what stays on one bridge (br_netfilter).
func BridgedSeen(k *core.Handle, v6 bool) bool {
	v, err := k.ReadSysctl("/proc/sys/net/bridge/bridge-nf-call-" + map[bool]string{false: "iptables", true: "ip6tables"}[v6])
	return err == nil && v == "1"
}

// l4 is the number of the packet's protocol.
func (p Packet) l4() byte {
	if n := krule.ProtoNumber(p.Proto); n != 0 {
		return n
	}
	return unix.IPPROTO_ICMP
}
