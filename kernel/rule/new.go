package rule

import "github.com/google/nftables/expr"

// A Ruleset is all that netyard's tables have beside elements: the sets, and the chains of each of the tables, which
// look into them. The chains are asked for anew whenever the tables are loaded.
type Ruleset struct {
	Sets   []Set
	Chains func(Book) [][]Chain
}

// New is a rule: what matches all parts but the last, to that the last one is done.
func New(comment string, parts ...[]expr.Any) Rule {
	return Rule{Comment: comment, Exprs: Join(parts...)}
}
