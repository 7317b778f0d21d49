package others

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
)

const (
	// refused4 and refused6 hold the pairs of links between which the guard has dropped packets.
	refused4 rule.SetName = "refused4"
	refused6 rule.SetName = "refused6"

	// refusedLife is how long the guard remembers a pair of links.
	refusedLife = time.Hour
)

// Sets returns the sets of this package.
func Sets() []rule.Set {
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	return []rule.Set{
		{Name: refused4, Type: pair, Concat: true, Life: refusedLife},
		{Name: refused6, Type: pair, Concat: true, Life: refusedLife},
	}
}

// GuardRules returns the rules that drop what the host would forward for others than containers, in the families that
// netyard turned forwarding on for. The pair of links is noted by a rule of its own: in the rule that drops, a set that
// is full would let the packet pass.
func GuardRules(b rule.SetBook, on beside.Restricted) (rules []rule.Rule) {
	for _, f := range rule.Families() {
		comment := beside.RestrictedComment4
		if f.V6() {
			comment = beside.RestrictedComment6
		}
		if f.V6() && !on.V6 || !f.V6() && !on.V4 {
			continue
		}
		what := rule.Join(rule.NFProto(f.Proto), forOthers(b))
		rules = append(rules,
			rule.New(f.Name("note what is not forwarded for others"), what, noteLinks(b, refusedIn(f.V6()))),
			rule.New(comment, what, rule.Drop()))
	}
	return rules
}

func refusedIn(v6 bool) rule.SetName { return rule.ByFamily(v6, refused4, refused6) }

// forOthers matches what is forwarded for no container, neither netyard's nor another program's, and what nobody has
// translated: whoever translates a packet to another host wants it forwarded.
func forOthers(b rule.SetBook) []expr.Any {
	return rule.Join(b.IIF(bridge.Bridges, true), b.IIF(bridge.Others, true), b.OIF(bridge.Others, true),
		b.IfPair(bridge.Same, true), rule.Untranslated())
}

// noteLinks adds the incoming and the outgoing link of a packet to a set.
func noteLinks(b rule.SetBook, set rule.SetName) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG_2},
		&expr.Dynset{
			SrcRegKey: rule.Reg1, SetName: b[set].Name, SetID: b[set].ID,
			Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: refusedLife,
		},
	}
}

// A Refusal is a pair of links between which the guard has dropped packets of a family.
type Refusal struct {
	In, Out string
	IPv6    bool
}

// String says what was dropped, why, and how the host forwards it.
func (r Refusal) String() string {
	family := "IPv4"
	if r.IPv6 {
		family = "IPv6"
	}
	_, setting, _ := strings.Cut(beside.Forwarding{IPv6: r.IPv6}.String(), " ")
	return fmt.Sprintf("%s from %s to %s is not forwarded: netyard turned forwarding on, for containers only; "+
		"if this host is to be a router, run \"sysctl -w %s\" while netyard runs", family, r.In, r.Out, setting)
}

// Refusals returns what the guard has dropped within the last hour.
func Refusals(k *core.Handle) (all []Refusal, err error) {
	err = nft.Of(k).Reader.Look(func(v nft.View) error {
		all = nil
		for _, v6 := range []bool{false, true} {
			set, err := v.GetSetByName(rule.Tables()[0], string(refusedIn(v6)))
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read set %s: %w", refusedIn(v6), err)
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("read set %s: %w", refusedIn(v6), err)
			}
			for _, e := range elements {
				in, out := e.Key[:unix.IFNAMSIZ], e.Key[unix.IFNAMSIZ:]
				all = append(all, Refusal{In: linkName(string(in)), Out: linkName(string(out)), IPv6: v6})
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b Refusal) int { return cmp.Compare(a.String(), b.String()) })
	return all, err
}

// linkName decodes the name of a link in the key of an element.
func linkName(key string) string { return strings.TrimRight(key, "\x00") }
