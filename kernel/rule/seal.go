package rule

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
)

// sealChain is a chain that no packet passes. The comment of its only rule is a hash of the ruleset, by which a ruleset
// of another version is recognized.
const sealChain = "seal"

// original ends the comment. nft neither prints what is behind a NUL, nor writes any: so a copy of the tables that nft
// has loaded, as at a boot from what it had listed, is not taken for the tables themselves.
const original = "\x00original"

// Seal returns the chain with the hash of the sets and chains.
func Seal(sets []Set, tables [][]Chain) Chain {
	sum := sha256.New()
	for _, s := range sets {
		hashLine(sum, "%+v", s)
	}
	for _, chains := range tables {
		for _, c := range chains {
			hashLine(sum, "chain %s %s", c.Name, c.Kind)
			if c.Hook != nil {
				hashLine(sum, "hook %d %d", *c.Hook, *c.Priority)
			}
			for _, r := range c.Rules {
				hashLine(sum, "rule %s", r.Comment)
				for _, e := range r.Exprs {
					fields, err := json.Marshal(e)
					hashLine(sum, "%T %s %v", e, fields, err)
				}
			}
		}
	}
	const size = 8 // bytes of the hash, 16 digits
	seal := fmt.Sprintf("%x", sum.Sum(nil)[:size])
	return Chain{Name: sealChain, Rules: []Rule{New(seal+original, Accept())}}
}

func hashLine(sum hash.Hash, format string, args ...any) {
	_, _ = fmt.Fprintf(sum, format+"\n", args...) // a hash never fails
}
