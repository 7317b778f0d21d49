// Package explain says what the rules of a host do to a packet: netyard's rules and everybody else's.
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
	// In and Out are the interfaces that it comes in and leaves by; empty where it has none, as a packet from or to the
	// host.
	In, Out  string
	Src, Dst netip.Addr
	Proto    string
	Port     uint16
	// Local says that Dst is an address of the host.
	Local bool
	// OrigDst and OrigPort are its original destination, if it was translated on the way.
	OrigDst  netip.Addr
	OrigPort uint16
}

func (p Packet) translated() bool { return p.OrigDst.IsValid() }

// A Hook is a netfilter hook, where rules see a packet.
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

// An Outcome is a set of what may become of a packet; it has both members where netyard cannot tell.
type Outcome uint8

// What may become of a packet.
const (
	Passes Outcome = 1 << iota
	Dropped
)

// A Judgement is what one rule does to a packet.
type Judgement struct {
	Rule    string // what identifies the rule, see ruleName
	Foreign bool   // the rule is not netyard's
	Outcome Outcome
	// To is where the rule, another program's, translates the packet to; invalid: it does not.
	To netip.AddrPort
}

// Judge names the rules at a hook that decide about a packet, in the order in which the packet reaches them, and says
// what becomes of it. It reads all nftables chains at the hook, which include those of iptables-nft. A rule that
// netyard cannot fully evaluate is reported as one that may drop the packet.
func Judge(k *core.Handle, h Hook, p Packet) (out []Judgement, sum Outcome, err error) {
	err = nft.Of(k).Reader.Look(func(v nft.View) (err error) {
		out, sum, err = (&judge{k: k, v: v, p: p, sets: map[string]*knownSet{}}).hook(h)
		return err
	})
	if err != nil || sum == Dropped {
		return out, sum, err
	}
	tables := "/proc/net/ip_tables_names"
	if !p.Dst.Is4() {
		tables = "/proc/net/ip6_tables_names"
	}
	if used, err := beside.LegacyUsed(k, tables); err == nil && used && h != Prerouting {
		out = append(out, Judgement{
			Rule: "the rules of iptables-legacy, which cannot be read here", Foreign: true, Outcome: Passes | Dropped,
		})
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
		// The first translation counts: a packet that has one passes no other chain of this kind.
		if c.Type == nftables.ChainTypeNAT && j.translated {
			continue
		}
		j.found = nil
		o, err := j.base(c)
		if err == nil {
			err = j.translate()
		}
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
	// translated: a rule has translated the destination; to is where to, until that is applied to the packet.
	translated bool
	to         netip.AddrPort
}

// baseChains returns the chains at a hook that see packets of the family, by priority, and reads the rules of all
// chains.
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
			// The chain that admits clients drops what has passed all other chains: it does not decide.
			admits := c.Table.Name == krule.TableName && c.Name == ports.LetInChain
			if c.Hooknum != nil && *c.Hooknum == h.number() && !admits {
				all = append(all, c)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *nftables.Chain) int { return cmp.Compare(*a.Priority, *b.Priority) })
	return all, nil
}

func familyName(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	}[f]
}

func chainID(t *nftables.Table, chain string) string {
	return familyName(t.Family) + " " + t.Name + " " + chain
}

// An ending is a set of the ways in which the evaluation of a chain may end.
type ending uint8

const (
	continues ending = 1 << iota
	accepts
	drops
)

// base follows the packet through a base chain.
func (j *judge) base(c *nftables.Chain) (Outcome, error) {
	e, err := j.chain(c.Table, c.Name, true)
	if err != nil {
		return 0, err
	}
	if e&continues != 0 && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		e = e&^continues | drops
		j.record(c.Table, "the policy of chain "+chainID(c.Table, c.Name), e == drops)
	}
	switch {
	case e&drops == 0:
		return Passes, nil
	case e == drops:
		return Dropped, nil
	}
	return Passes | Dropped, nil
}

// record adds a judgement of a rule that drops the packet, or if not certain may drop it.
func (j *judge) record(t *nftables.Table, rule string, certain bool) {
	o := Dropped
	if !certain {
		o |= Passes
	}
	j.found = append(j.found, Judgement{Rule: rule, Foreign: t.Name != krule.TableName, Outcome: o})
}

// chain follows the packet through the rules of a chain; reached says that the packet certainly gets there.
func (j *judge) chain(t *nftables.Table, name string, reached bool) (ending, error) {
	const maxDepth = 16 // NFT_JUMP_STACK_SIZE (net/netfilter/nf_tables.h)
	if j.depth++; j.depth > maxDepth+1 {
		return continues | accepts | drops, nil
	}
	defer func() { j.depth-- }()
	var e ending
	for i, r := range j.rules[chainID(t, name)] {
		matches, v := j.rule(t, r)
		if matches == no || v.Kind == expr.VerdictContinue && !v.uncertain {
			continue
		}
		certain := reached && matches == yes && e == 0
		if v.translates {
			v = j.noteTranslation(v, certain, Judgement{
				Rule: ruleName(t, name, i, r), Foreign: t.Name != krule.TableName, Outcome: Passes, To: v.to,
			})
		}
		some, leaves, err := j.verdict(t, v, certain)
		if err != nil {
			return 0, err
		}
		if some&drops != 0 && v.Chain == "" {
			j.record(t, ruleName(t, name, i, r), certain && !v.uncertain)
		}
		e |= some &^ continues
		if matches == yes && !v.uncertain && (leaves || some&continues == 0) {
			return e | some&continues, nil
		}
	}
	return e | continues, nil
}

// noteTranslation records that a rule translates the packet. If that is not certain, the rule may do anything.
func (j *judge) noteTranslation(v verdict, certain bool, by Judgement) verdict {
	if !certain {
		if v.to.IsValid() {
			return unknown()
		}
		return v
	}
	j.translated, j.to = true, v.to
	if v.to.IsValid() {
		j.found = append(j.found, by)
	}
	return v
}

// verdict says how a verdict may end the evaluation, and whether it skips the rest of the chain.
func (j *judge) verdict(t *nftables.Table, v verdict, certain bool) (e ending, leaves bool, err error) {
	switch v.Kind {
	case expr.VerdictAccept:
		return accepts, false, nil
	case expr.VerdictDrop:
		return drops, false, nil
	case expr.VerdictReturn:
		return continues, true, nil
	case expr.VerdictJump, expr.VerdictGoto:
		e, err := j.chain(t, v.Chain, certain)
		return e, v.Kind == expr.VerdictGoto, err
	}
	return continues | accepts | drops, false, nil // queued to a program, or unknown
}

// ruleName identifies a rule for people: by its comment if it is netyard's, otherwise by its place in its chain.
func ruleName(t *nftables.Table, chain string, i int, r readRule) string {
	text, _ := userdata.GetString(r.userData, userdata.TypeComment)
	if t.Name == krule.TableName && text != "" {
		return fmt.Sprintf("netyard's rule %q of chain %s", text, chain)
	}
	name := fmt.Sprintf("rule %d (handle %d) of chain %s", i+1, r.handle, chainID(t, chain))
	if summary := r.summary(); summary != "" {
		name += ": " + summary
	}
	if text != "" {
		name += fmt.Sprintf(" (%q)", text)
	}
	return name
}

// summary describes a rule by its iptables extensions, its verdicts, and the expressions that could not be read.
func (r readRule) summary() string {
	var words []string
	for _, e := range r.exprs {
		switch e := e.(type) {
		case *expr.Match:
			if e.Name != "comment" {
				words = append(words, "match "+e.Name)
			}
		case *expr.Target:
			words = append(words, e.Name)
		case *expr.Verdict:
			if name := verdictName(e.Kind); name != "" {
				words = append(words, name)
			}
		case *expr.Reject:
			words = append(words, "reject")
		}
	}
	return strings.Join(append(words, r.unknown...), ", ")
}

func verdictName(k expr.VerdictKind) string {
	return map[expr.VerdictKind]string{
		expr.VerdictDrop: "drop", expr.VerdictAccept: "accept", expr.VerdictQueue: "queue",
	}[k]
}

// RouteTo returns the interface by which the host reaches an address, and the source address that it uses towards it.
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

// BridgeNetfilterOn reports whether the rules for routed packets see traffic within one bridge (br_netfilter).
func BridgeNetfilterOn(k *core.Handle, v6 bool) bool {
	file := "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if v6 {
		file = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	}
	v, err := k.ReadSysctl(file)
	return err == nil && v == "1"
}

// l4 returns the number of the packet's protocol.
func (p Packet) l4() byte {
	if n := krule.ProtoNumber(p.Proto); n != 0 {
		return n
	}
	return unix.IPPROTO_ICMP
}
