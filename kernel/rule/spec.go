package rule

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Tables are netyard's.
func Tables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: TableName},
		{Family: nftables.TableFamilyBridge, Name: TableName},
	}
}

// Bridged ends the names of the same sets in the bridge table: a set belongs to one table.
const Bridged = "_bridged"

// TableName is the name of both tables. The ruleset is static: these rules are loaded once, atomically, and never
// change. What varies are the elements of the sets they look into, so that a packet costs the same whatever the number
// of networks.
const TableName = "netyard"

// A SetName is the name of a set of the ruleset.
type SetName string

// A Set is how a set is declared; one with data is a map.
type Set struct {
	Name     SetName
	Type     nftables.SetDatatype
	Concat   bool
	Interval bool
	Bridge   bool // in the bridge table
	Data     nftables.SetDatatype
	// Life is how long an element stays that the rules themselves put in; 0: netyard puts them in.
	Life time.Duration
	// Early: the ruleset does not wait for the rest of what is wanted when an element of it is.
	Early bool
}

// Declare is the set as nftables declares it.
func (s Set) Declare(t *nftables.Table, id uint32) *nftables.Set {
	set := &nftables.Set{
		Table: t, Name: string(s.Name), ID: id, KeyType: s.Type, Concatenation: s.Concat, Interval: s.Interval,
		DataType: s.Data, IsMap: s.Data.Bytes > 0,
	}
	if s.Life > 0 {
		const most = 1 << 16
		set.HasTimeout, set.Dynamic, set.Timeout, set.Size = true, true, s.Life, most
	}
	for _, field := range FieldsOf(s.Type) {
		if field == nftables.TypeIFName || s.Type == nftables.TypeMark { // or nft would show them backwards
			set.KeyByteOrder = binaryutil.NativeEndian
		}
	}
	return set
}

// FieldsOf takes a concatenation apart.
func FieldsOf(key nftables.SetDatatype) []nftables.SetDatatype {
	if many := nftables.ConcatSetTypeElements(key); len(many) > 0 {
		return many
	}
	return []nftables.SetDatatype{key}
}

// A Chain is a chain and its rules; without a hook it is one that others jump to.
type Chain struct {
	Name     string
	Kind     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Rules    []Rule
}

// A Rule is one rule; its comment is how people and doctor tell it.
type Rule struct {
	Comment string
	Exprs   []expr.Any
}

// A Book finds the sets that rules look into.
type Book map[SetName]*nftables.Set

// Comment is the user data that nft and iptables show as a rule's comment.
func Comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

// Table is the table that it is in.
func (s Set) Table() *nftables.Table {
	if s.Bridge {
		return Tables()[1]
	}
	return Tables()[0]
}

// NewBook numbers sets.
func NewBook(sets []Set) Book {
	b := Book{}
	for i, spec := range sets {
		b[spec.Name] = spec.Declare(spec.Table(), uint32(i+1)) //nolint:gosec // a handful
	}
	return b
}
