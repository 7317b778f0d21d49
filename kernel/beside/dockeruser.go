// Package beside makes netyard work beside others on the host: it adds accept rules to the chains of Docker and ufw, by
// nftables and by the old iptables interface, and turns on forwarding for containers only.
package beside

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	dockerUserChain = "DOCKER-USER"
	forwardChain    = "FORWARD"
	bypassComment   = "netyard"
)

// bypassChains returns the names of the chains that take a Bypass, by family: the one that Docker leaves to the admin,
// and the one that ufw keeps the admin's rules for routed packets in.
func bypassChains(family nftables.TableFamily) []string {
	if family == nftables.TableFamilyIPv6 {
		return []string{dockerUserChain, "ufw6-user-forward"}
	}
	return []string{dockerUserChain, "ufw-user-forward"}
}

// A Bypass is a rule in Docker's DOCKER-USER chain, or in one of bypassChains in its place, that lets traffic of
// netyard's networks pass Docker's FORWARD policy DROP. An accept in netyard's own table cannot override that policy,
// which with br_netfilter even drops traffic within one bridge. What netyard's own table drops is dropped all the same.
// The rules stand in front of the chain's final RETURN, so that the admin's rules in the chain come first.
type Bypass struct {
	// In and Out are interface names; an empty one matches any, a final + matches any ending (iptables(8)).
	In, Out string
	// Network is the ID of the network that the rule belongs to; empty for the two rules of the bridges that netyard
	// names.
	Network string
}

// OwnBypasses returns the bypasses that every host needs: those of the bridges that netyard names itself.
func OwnBypasses() map[Bypass]bool {
	return map[Bypass]bool{{In: core.BridgePrefix + "+"}: true, {Out: core.BridgePrefix + "+"}: true}
}

// comment marks the rule as netyard's and names its network.
func (b Bypass) comment() string { return strings.TrimSpace(bypassComment + " " + b.Network) }

// String returns the rule as iptables-save prints it, without its comment.
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
	want(k, b, true)
	k.RequestCheck()
	return SyncDockerUser(k)
}

func (b Bypass) Remove(k *core.Handle) error {
	want(k, b, false)
	k.RequestCheck()
	return SyncDockerUser(k)
}

func (b Bypass) Check(s *core.View) []string {
	var faults []string
	for _, have := range chainsOf(s) {
		if !have.unneeded && !slices.Contains(have.bypasses, b) {
			text := strings.Replace(b.String(), dockerUserChain, have.chain.Name, 1)
			faults = append(faults, fmt.Sprintf("%s (%s) is missing", text, have.family))
		}
	}
	return faults
}

// SyncDockerUser makes the DOCKER-USER chains hold exactly the wanted bypasses. Where Docker has made no such chain it
// does nothing: the watcher calls it again when Docker does.
func SyncDockerUser(k *core.Handle) error {
	return nft.Of(k).RunLater(nft.Turn{
		Act: "update chain " + dockerUserChain,
		Do:  func() error { return SyncDockerUserNow(nft.Of(k)) },
	})
}

// SyncDockerUserNow does the same at once. The caller has the turn to change the ruleset.
func SyncDockerUserNow(f *nft.Firewall) error {
	return f.RetryUnknown(func(tx *exchange.Transaction) error {
		chains, err := dockerUserChains(f)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if err := syncChain(f, tx, c); err != nil {
				return err
			}
		}
		return nil
	})
}

// A dockerUser is the current state of one family's DOCKER-USER chain, or of another chain that takes a Bypass.
type dockerUser struct {
	family   string
	chain    *nftables.Chain
	rules    []*nftables.Rule
	bypasses []Bypass // those that the rules of ours stand for, in the same order
	ours     []*nftables.Rule
	unneeded bool           // no rule of netyard's is needed here
	end      *nftables.Rule // the plain RETURN that ends the chain, wherever Docker put it; nil: none
}

func dockerUserChains(f *nft.Firewall) (all []dockerUser, err error) {
	err = f.Reader.Look(func(v nft.View) error {
		all = nil
		for _, one := range []struct {
			family nftables.TableFamily
			name   string
		}{{nftables.TableFamilyIPv4, "IPv4"}, {nftables.TableFamilyIPv6, "IPv6"}} {
			some, err := bypassed(v, one.family)
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

// bypassed returns a family's chains that take a Bypass, or have one that they do not need. FORWARD itself is one of
// them where its policy is DROP and none of its rules leads to the others: that is how somebody who flushes Docker's
// rules leaves it. A chain that FORWARD does not lead to gets no rules: whoever flushes all chains is about to delete
// them, and the kernel deletes no chain that has rules.
func bypassed(v nft.View, family nftables.TableFamily) (all []dockerUser, err error) {
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
	reached := map[string]bool{}
	collectReached(rules, forwardChain, reached)
	leadsOn := slices.ContainsFunc(bypassChains(family), func(name string) bool { return reached[name] })
	for _, c := range chains {
		base := c.Name == forwardChain && c.Hooknum != nil
		if c.Table.Name != "filter" || !base && !slices.Contains(bypassChains(family), c.Name) {
			continue
		}
		d := dockerUser{chain: c, rules: rules[c.Name]}
		d.unneeded = !reached[c.Name] || base && (leadsOn || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop)
		d.read()
		if !d.unneeded || len(d.ours) > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

// collectReached adds to reached the chains that a packet may reach from a chain, and that chain itself.
func collectReached(rules map[string][]*nftables.Rule, from string, reached map[string]bool) {
	if reached[from] {
		return
	}
	reached[from] = true
	for _, r := range rules[from] {
		for _, e := range r.Exprs {
			if v, ok := e.(*expr.Verdict); ok && v.Chain != "" {
				collectReached(rules, v.Chain, reached)
			}
		}
	}
}

// read finds netyard's rules in the chain. A rule that no packet reaches, behind the end, or that stands before a rule
// which the admin has appended since, counts as no wanted one: it is deleted, and made again in its place.
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
		if behind || i < theirs || d.unneeded {
			b = Bypass{}
		}
		d.ours, d.bypasses = append(d.ours, r), append(d.bypasses, b)
	}
}

// syncChain deletes and adds rules of netyard's until the chain has exactly the wanted ones.
func syncChain(f *nft.Firewall, tx *exchange.Transaction, d dockerUser) error {
	changed := false
	wanted := bypassesOf(f.Handle)
	for i, b := range d.bypasses {
		if !wanted[b] || slices.Contains(d.bypasses[:i], b) {
			changed = true
			if err := tx.DelRule(d.ours[i]); err != nil {
				return fmt.Errorf("delete %s: %w", b, err)
			}
		}
	}
	var before uint64
	if d.end != nil {
		before = d.end.Handle
	}
	for b := range wanted {
		if d.unneeded || slices.Contains(d.bypasses, b) {
			continue
		}
		changed = true
		r := &nftables.Rule{
			Table: d.chain.Table, Chain: d.chain, Position: before,
			Exprs: b.exprs(), UserData: rule.Comment(b.comment()),
		}
		if before != 0 {
			tx.InsertRule(r)
		} else {
			tx.AddRule(r)
		}
	}
	if !changed {
		return nil
	}
	return f.Flush("update chain " + d.chain.Name)
}

// exprs returns the rule's expressions as iptables-nft writes them, so that iptables can list the rule.
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

// ownBypass returns the bypass that a rule stands for, if the rule is netyard's: its comment says so, and it matches
// nothing but interfaces. The comment is user data where netyard or iptables wrote the rule, and a match expression
// where iptables-restore did.
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

// match reads a comparison of an interface name; one that compares less than a whole name is a wildcard.
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

// isReturn reports whether a rule is a plain RETURN, with which Docker ends the chain.
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
