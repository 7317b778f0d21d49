package rule

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Tables returns netyard's tables: inet, and bridge.
func Tables() []*nftables.Table {
	return []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: TableName},
		{Family: nftables.TableFamilyBridge, Name: TableName},
	}
}

// Bridged ends the names of sets in the bridge table that have a counterpart in the inet table: a set belongs to one
// table.
const Bridged = "_bridged"

// TableName is the name of both tables. The rules are loaded once, atomically, and never change. Only the elements of
// the sets that they look up change, so a packet passes the same number of rules however many networks there are.
const TableName = "netyard"

// A SetName is the name of a set of the ruleset.
type SetName string

// A Set is the declaration of a set. One with Data is a map.
type Set struct {
	Name     SetName
	Type     nftables.SetDatatype
	Concat   bool
	Interval bool
	Bridge   bool // in the bridge table
	Data     nftables.SetDatatype
	// Raw is the last field of the key, if nft has no name for that.
	Raw RawField
	// Life is the timeout of elements that rules add; 0: netyard adds the elements, and they stay.
	Life time.Duration
	// Early: the ruleset may be loaded as soon as an element of the set is wanted, before the rest is known.
	Early bool
}

// Declare converts the declaration to that of the nftables library.
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
		// Without it nft would print their bytes in reverse. With it nft would ignore what WithFieldNames adds.
		if field == nftables.TypeIFName && s.Raw.Len == 0 {
			set.KeyByteOrder = binaryutil.NativeEndian
		}
	}
	return set
}

// FieldsOf returns the fields of a concatenation, or the type itself if it is none.
func FieldsOf(key nftables.SetDatatype) []nftables.SetDatatype {
	if many := nftables.ConcatSetTypeElements(key); len(many) > 0 {
		return many
	}
	return []nftables.SetDatatype{key}
}

// A Chain is a chain and its rules. One without a hook is entered only by jumps from other chains.
type Chain struct {
	Name     string
	Kind     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Rules    []Rule
}

// A Rule is one rule. Its comment says its purpose; people and `netyard doctor` know the rule by it.
type Rule struct {
	Comment string
	Exprs   []expr.Any
}

// A SetBook has the sets that rules look up, by name.
type SetBook map[SetName]*nftables.Set

// Comment encodes the user data that nft and iptables print as a rule's comment.
func Comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

// Table returns the table that the set is in.
func (s Set) Table() *nftables.Table {
	if s.Bridge {
		return Tables()[1]
	}
	return Tables()[0]
}

// NewSetBook declares sets, and numbers them within a transaction.
func NewSetBook(sets []Set) SetBook {
	b := SetBook{}
	for i, spec := range sets {
		b[spec.Name] = spec.Declare(spec.Table(), uint32(i+1)) //nolint:gosec // a handful
	}
	return b
}
