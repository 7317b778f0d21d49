package rule

import "github.com/google/nftables/expr"

// A Ruleset is what netyard's tables contain without the elements: the sets, and the chains that look them up. Chains
// returns the chains of each table; it is called whenever the tables are loaded.
type Ruleset struct {
	Sets   []Set
	Chains func(SetBook) [][]Chain
}

// New returns a rule of expressions in parts: matches first, and then what the rule does with a matching packet.
func New(comment string, parts ...[]expr.Any) Rule {
	return Rule{Comment: comment, Exprs: Join(parts...)}
}
