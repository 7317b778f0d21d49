package kernel

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
)

// sealChain is a chain that nothing comes by. The comment of its only rule tells this ruleset from those of other
// versions.
const sealChain = "seal"

// takeOver goes on with the tables as they are, when a daemon before this one left just what this one wants. A table
// that is loaded anew is replaced in one transaction, but the kernel commits what intervals have a moment after the
// rules (nft_set_commit_update, net/netfilter/nf_tables_api.c): a flow that begins in between may not be found in them.
func (f *firewall) takeOver() (same bool, err error) {
	f.renewSets()
	if same, err = f.asWanted(); err != nil || !same {
		return false, err
	}
	for _, t := range tables() {
		own, err := f.claim(t)
		if errors.Is(err, errUnsure) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !own && !f.shared { // of a kernel that cannot, or of a daemon that shared it: the load knows
			return false, nil
		}
	}
	f.setLoaded(true)
	f.out.orphaned = false
	return true, nil
}

// sameElements says whether the sets have what is wanted, and nothing else.
func (f *firewall) sameElements() (bool, error) {
	have, none, err := f.dumpElements()
	if err != nil || none {
		return false, err
	}
	count := 0
	for _, keys := range have {
		count += len(keys)
	}
	return count == len(f.want) && f.hasWanted(have), nil
}

// hasWanted says whether every element that is wanted is among those.
func (f *firewall) hasWanted(have map[SetName]map[string]content) bool {
	for id, w := range f.want {
		if c, ok := have[id.set][id.key]; !ok || c != w.content {
			return false
		}
	}
	return true
}

func newSetBook() setBook {
	b := setBook{}
	for i, spec := range allSets() {
		b[spec.name] = spec.set(spec.table(), uint32(i+1)) //nolint:gosec // a handful
	}
	return b
}

// sealOf is the chain that seals chains and the sets they look into.
func sealOf(tables [][]chainSpec) chainSpec {
	sum := sha256.New()
	for _, s := range allSets() {
		note(sum, "%+v", s)
	}
	for _, chains := range tables {
		for _, c := range chains {
			note(sum, "chain %s %s", c.name, c.kind)
			if c.hook != nil {
				note(sum, "hook %d %d", *c.hook, *c.priority)
			}
			for _, r := range c.rules {
				note(sum, "rule %s", r.comment)
				for _, e := range r.exprs {
					fields, err := json.Marshal(e)
					note(sum, "%T %s %v", e, fields, err)
				}
			}
		}
	}
	const digits = 16
	return chainSpec{name: sealChain, rules: []ruleSpec{{fmt.Sprintf("%.*x", digits/2, sum.Sum(nil)[:digits/2]), accept()}}}
}

func note(sum hash.Hash, format string, args ...any) {
	_, _ = fmt.Fprintf(sum, format+"\n", args...) // a hash takes everything
}
