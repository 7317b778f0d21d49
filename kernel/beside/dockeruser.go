// Package beside is about what netyard does beside others: its accepts in the chains of Docker and ufw, by nftables
// and by the old iptables interface, and forwarding for containers only.
package beside

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	dockerUserChain = "DOCKER-USER"
	forwardChain    = "FORWARD"
	bypassComment   = "netyard"
)

// yieldingChains are the chains of others that netyard's accepts go into, by family: the one Docker leaves to the
// admin, and the one ufw keeps the admin's rules for routed packets in.
func yieldingChains(family nftables.TableFamily) []string {
	if family == nftables.TableFamilyIPv6 {
		return []string{dockerUserChain, "ufw6-user-forward"}
	}
	return []string{dockerUserChain, "ufw-user-forward"}
}

// A Bypass is a rule in Docker's DOCKER-USER chain that keeps Docker's FORWARD policy DROP off packets of netyard's
// networks: an accept in a table of our own cannot override it, and with br_netfilter it even cuts what stays on one
// bridge. What netyard forbids is dropped in its own table all the same. The rules go in front of the chain's final
// RETURN, so that what the admin put there comes first.
type Bypass struct {
	// In and Out are interface names; "" is any, a final + stands for any ending (iptables(8)).
	In, Out string
	// Network is whose rule it is; empty for the two that let every bridge of netyard's naming through.
	Network string
}

// OwnBypasses returns the bypasses that are always there: those of the bridges that netyard names itself.
func OwnBypasses() map[Bypass]bool {
	return map[Bypass]bool{{In: core.BridgePrefix + "+"}: true, {Out: core.BridgePrefix + "+"}: true}
}

// comment marks the rule as netyard's and says of which network.
func (b Bypass) comment() string { return strings.TrimSpace(bypassComment + " " + b.Network) }

// String reads like iptables-save.
func (b Bypass) String() string {
	s := "rule -A " + dockerUserChain
	if b.In != "" {
		s += " -i " + b.In
	}
	if b.Out != "" {
		s += " -o " + b.Out
	}
	return s + " -j ACCEPT"
}

func (b Bypass) Ensure(k *core.Handle) error {
	nft.Of(k).Mu.Lock()
	bypassesOf(k)[b] = true
	nft.Of(k).Mu.Unlock()
	k.Poke()
	return SyncDockerUser(k)
}

func (b Bypass) Remove(k *core.Handle) error {
	nft.Of(k).Mu.Lock()
	delete(bypassesOf(k), b)
	nft.Of(k).Mu.Unlock()
	k.Poke()
	return SyncDockerUser(k)
}

func (b Bypass) Check(s *core.View) []string {
	var faults []string
	for _, have := range chainsOf(s) {
		if !have.spare && !slices.Contains(have.bypasses, b) {
			text := strings.Replace(b.String(), dockerUserChain, have.chain.Name, 1)
			faults = append(faults, fmt.Sprintf("%s (%s) is missing", text, have.family))
		}
	}
	return faults
}

// SyncDockerUser makes the DOCKER-USER chains hold just the rules wanted. Where Docker has made none there is nothing
// to do: the watcher calls again when it does.
func SyncDockerUser(k *core.Handle) error {
	return nft.Of(k).RunLater(nft.Turn{Act: "update chain " + dockerUserChain, Do: func() error { return SyncDockerUserNow(nft.Of(k)) }})
}

// SyncDockerUserNow is SyncDockerUser for whose turn it is.
func SyncDockerUserNow(f *nft.Firewall) error {
	return f.Sure(func() error {
		chains, err := dockerUserChains(f)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if err := syncChain(f, c); err != nil {
				return err
			}
		}
		return nil
	})
}

// A dockerUser is one family's DOCKER-USER chain as it is.
type dockerUser struct {
	family   string
	chain    *nftables.Chain
	rules    []*nftables.Rule
	bypasses []Bypass // of netyard's, in the order of their rules
	ours     []*nftables.Rule
	spare    bool           // no rule of netyard's is needed here
	end      *nftables.Rule // the plain RETURN that ends the chain, wherever Docker put it; nil: none
}

func dockerUserChains(f *nft.Firewall) (all []dockerUser, err error) {
	err = f.In.Look(func(v nft.View) error {
		all = nil
		for _, one := range []struct {
			family nftables.TableFamily
			name   string
		}{{nftables.TableFamilyIPv4, "IPv4"}, {nftables.TableFamilyIPv6, "IPv6"}} {
			some, err := yielding(v, one.family)
			if err != nil {
				return err
			}
			for _, d := range some {
				d.family = one.name
				all = append(all, d)
			}
		}
		return nil
	})
	return all, err
}

// yielding are a family's chains that netyard's accepts belong in. Where FORWARD drops what no rule of it decides
// about, and comes by none of them, it is one itself: so Docker's chain is when somebody has flushed its rules, and
// with them the way to DOCKER-USER. A chain that FORWARD does not come by is left empty: who flushes all chains is
// about to delete them, and the kernel deletes no chain with rules.
func yielding(v nft.View, family nftables.TableFamily) (all []dockerUser, err error) {
	chains, err := v.ListChainsOfTableFamily(family)
	if err != nil {
		return nil, fmt.Errorf("find chain %s: %w", dockerUserChain, err)
	}
	rules := map[string][]*nftables.Rule{}
	for _, c := range chains {
		if c.Table.Name != "filter" {
			continue
		}
		if rules[c.Name], err = v.GetRules(c.Table, c); err != nil {
			return nil, fmt.Errorf("list chain %s: %w", c.Name, err)
		}
	}
	passed := map[string]bool{}
	passes(rules, forwardChain, passed)
	comesBy := slices.ContainsFunc(yieldingChains(family), func(name string) bool { return passed[name] })
	for _, c := range chains {
		base := c.Name == forwardChain && c.Hooknum != nil
		if c.Table.Name != "filter" || !base && !slices.Contains(yieldingChains(family), c.Name) {
			continue
		}
		d := dockerUser{chain: c, rules: rules[c.Name]}
		d.spare = !passed[c.Name] || base && (comesBy || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop)
		d.read()
		if !d.spare || len(d.ours) > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

// passes collects the chains that packets may come by from one on.
func passes(rules map[string][]*nftables.Rule, from string, passed map[string]bool) {
	if passed[from] {
		return
	}
	passed[from] = true
	for _, r := range rules[from] {
		for _, e := range r.Exprs {
			if v, ok := e.(*expr.Verdict); ok && v.Chain != "" {
				passes(rules, v.Chain, passed)
			}
		}
	}
}

// read finds netyard's rules. One that nothing comes to, behind the end, or that comes before one of the admin's, who
// put that at the end since, is none that is wanted: it is made anew in its place.
func (d *dockerUser) read() {
	theirs := -1
	for i, r := range d.rules {
		if d.end == nil && isReturn(r) {
			d.end = r
		}
		if _, ours := ownBypass(r); !ours && d.end == nil {
			theirs = i
		}
	}
	behind := false
	for i, r := range d.rules {
		behind = behind || r == d.end
		b, ours := ownBypass(r)
		if !ours {
			continue
		}
		if behind || i < theirs || d.spare {
			b = Bypass{}
		}
		d.ours, d.bypasses = append(d.ours, r), append(d.bypasses, b)
	}
}

func syncChain(f *nft.Firewall, d dockerUser) error {
	changed := false
	f.Mu.Lock()
	wanted := maps.Clone(bypassesOf(f.Handle))
	f.Mu.Unlock()
	for i, b := range d.bypasses {
		if !wanted[b] || slices.Contains(d.bypasses[:i], b) {
			changed = true
			if err := f.Tx.DelRule(d.ours[i]); err != nil {
				return fmt.Errorf("delete %s: %w", b, err)
			}
		}
	}
	var before uint64
	if d.end != nil {
		before = d.end.Handle
	}
	for b := range wanted {
		if d.spare || slices.Contains(d.bypasses, b) {
			continue
		}
		changed = true
		r := &nftables.Rule{Table: d.chain.Table, Chain: d.chain, Exprs: b.exprs(), UserData: rule.Comment(b.comment()), Position: before}
		if before != 0 {
			f.Tx.InsertRule(r)
		} else {
			f.Tx.AddRule(r)
		}
	}
	if !changed {
		return nil
	}
	return f.Flush("update chain " + d.chain.Name)
}

// exprs is the rule as iptables-nft writes it, so that iptables can show it.
func (b Bypass) exprs() []expr.Any {
	var es []expr.Any
	for key, name := range map[expr.MetaKey]string{expr.MetaKeyIIFNAME: b.In, expr.MetaKeyOIFNAME: b.Out} {
		if prefix, wild := strings.CutSuffix(name, "+"); wild {
			es = append(es, rule.IfNamePrefix(key, prefix)...)
		} else if name != "" {
			es = append(es, rule.IfNamePrefix(key, rule.IfName(name))...)
		}
	}
	return append(es, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// ownBypass reads a rule that is netyard's: its comment says so, and it matches nothing but interfaces. The comment is
// user data as netyard and iptables write it, and a match of its own in a rule that came back by iptables-restore.
func ownBypass(r *nftables.Rule) (b Bypass, ok bool) {
	text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	var key expr.MetaKey
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Meta:
			key = e.Key
		case *expr.Cmp:
			if !b.match(key, e) {
				return b, false
			}
		case *expr.Match:
			c, isComment := e.Info.(*xt.Comment)
			if !isComment {
				return b, false
			}
			text = strings.TrimRight(string(*c), "\x00")
		case *expr.Verdict:
			if e.Kind != expr.VerdictAccept {
				return b, false
			}
		default:
			return b, false
		}
	}
	owner, network, _ := strings.Cut(text, " ")
	b.Network = network
	return b, owner == bypassComment
}

// match reads a comparison of a name; a shorter one than names are is a wildcard.
func (b *Bypass) match(key expr.MetaKey, c *expr.Cmp) bool {
	name := strings.TrimRight(string(c.Data), "\x00")
	if len(c.Data) < unix.IFNAMSIZ {
		name += "+"
	}
	switch key {
	case expr.MetaKeyIIFNAME:
		b.In = name
	case expr.MetaKeyOIFNAME:
		b.Out = name
	default:
		return false
	}
	return c.Op == expr.CmpOpEq
}

// isReturn says whether a rule is a plain RETURN, the end Docker gives the chain.
func isReturn(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}
