package nft

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"

	"netyard/kernel/rule"
)

// sealChain is a chain that nothing comes by. The comment of its only rule tells this ruleset from those of other
// versions.
const sealChain = "seal"

// TakeOver goes on with the tables as they are, when a daemon before this one left just what this one wants. A table
// that is loaded anew is replaced in one transaction, but the kernel commits what intervals have a moment after the
// rules (nft_set_commit_update, net/netfilter/nf_tables_api.c): a flow that begins in between may not be found in them.
func (f *Firewall) TakeOver() (same bool, err error) {
	f.renewSets()
	if same, err = f.asWanted(); err != nil || !same {
		return false, err
	}
	for _, t := range rule.Tables() {
		own, err := f.claim(t)
		if errors.Is(err, errUnsure) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !own && !f.Shared { // of a kernel that cannot, or of a daemon that shared it: the load knows
			return false, nil
		}
	}
	f.SetLoaded(true)
	f.out.orphaned = false
	return true, nil
}

// sameElements says whether the sets have what is wanted, and nothing else.
func (f *Firewall) sameElements() (bool, error) {
	have, none, err := f.DumpElements()
	if err != nil || none {
		return false, err
	}
	count := 0
	for _, keys := range have {
		count += len(keys)
	}
	return count == len(f.Want) && f.hasWanted(have), nil
}

// hasWanted says whether every element that is wanted is among those.
func (f *Firewall) hasWanted(have map[rule.SetName]map[string]Content) bool {
	for id, w := range f.Want {
		if c, ok := have[id.Set][id.Key]; !ok || c != w.Content {
			return false
		}
	}
	return true
}

// sealOf is the chain that seals chains and the sets they look into.
func sealOf(sets []rule.Set, tables [][]rule.Chain) rule.Chain {
	sum := sha256.New()
	for _, s := range sets {
		note(sum, "%+v", s)
	}
	for _, chains := range tables {
		for _, c := range chains {
			note(sum, "chain %s %s", c.Name, c.Kind)
			if c.Hook != nil {
				note(sum, "hook %d %d", *c.Hook, *c.Priority)
			}
			for _, r := range c.Rules {
				note(sum, "rule %s", r.Comment)
				for _, e := range r.Exprs {
					fields, err := json.Marshal(e)
					note(sum, "%T %s %v", e, fields, err)
				}
			}
		}
	}
	const digits = 16
	return rule.Chain{Name: sealChain, Rules: []rule.Rule{rule.New(fmt.Sprintf("%.*x", digits/2, sum.Sum(nil)[:digits/2]), rule.Accept())}}
}

func note(sum hash.Hash, format string, args ...any) {
	_, _ = fmt.Fprintf(sum, format+"\n", args...) // a hash takes everything
}
