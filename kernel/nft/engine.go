package nft

import (
	"errors"
	"fmt"
	"sort"

	"netyard/kernel/core"
	"netyard/kernel/exchange"
	"netyard/kernel/rule"
)

// Open stores a firewall with these rules with a handle. Kernel.LoadFirewall loads them into the kernel.
func Open(h *core.Handle, rules rule.Ruleset) error {
	f := Connect(h.Log, int(h.NS))
	f.Handle, f.Rules, f.wanted, f.poke = h, rules, newWantedSet(), h.RequestCheck
	if err := f.out.Open(); err != nil {
		return err
	}
	err := f.RunNow(func() (err error) {
		f.Conntrack, err = f.probeConntrack()
		return err
	})
	if err != nil {
		return errors.Join(err, f.Close())
	}
	core.Store(h, f)
	return nil
}

// chains returns the chains of each table, the seal among them.
func (f *Firewall) chains() [][]rule.Chain {
	all := f.Rules.Chains(f.Sets)
	all[0] = append(all[0], rule.Seal(f.Rules.Sets, all))
	return all
}

// Port returns the netlink port ID of the socket that changes are sent by (netlink(7), nl_pid).
func (f *Firewall) Port() uint32 { return f.out.Port() }

// Intercept puts a Peer between the firewall and the kernel, for tests. It must be called within a turn.
func (f *Firewall) Intercept(wrap func(exchange.Socket) exchange.Socket) error {
	err := f.out.Open()
	f.out.P = wrap(f.out.P)
	return err
}

// Of returns the firewall of a handle.
func Of(h *core.Handle) *Firewall { return core.Stored[Firewall](h) }

// spec returns the declaration of a set.
func (f *Firewall) spec(set rule.SetName) rule.Set {
	s, _ := rule.SpecOf(f.Rules.Sets, set)
	return s
}

// elements are the elements in a view, by set and key. none: a table or set is missing, or the view has no firewall.
type elements struct {
	by   map[rule.SetName]map[string]Content
	none bool
}

// LookAtElements reads the elements into a view, for Element.Check to compare.
func LookAtElements(v *core.View) error {
	_, err := core.Dump(v, readElements)
	return err
}

func elementsOf(v *core.View) elements {
	e, _ := core.Dump(v, readElements)
	return e
}

func readElements(v *core.View) (e elements, err error) {
	if !v.Firewall {
		return elements{none: true}, nil
	}
	e.by, e.none, err = Of(v.Handle).DumpElements()
	return e, err
}

// Elements returns the elements in a view, by set and key.
func Elements(v *core.View) map[rule.SetName]map[string]Content { return elementsOf(v).by }

// NoTable reports whether a table or set is missing, or the view has no firewall.
func NoTable(v *core.View) bool { return elementsOf(v).none }

// A Keyed object is an element whose value the records do not tell, only its key.
type Keyed interface {
	Key() (set rule.SetName, key string)
}

// Strays returns the elements in a view that are none of the wanted objects. policies reports which sets are those of
// policies. The sets others are left out: their elements are not among the objects.
func Strays(v *core.View, wanted []core.Object, policies func(rule.SetName) bool, others ...rule.SetName) (
	strays []core.Stray,
) {
	want := map[ElementID]bool{}
	for _, set := range others {
		want[ElementID{Set: set}] = true
	}
	for _, o := range wanted {
		switch o := o.(type) {
		case Element:
			want[o.ID()] = true
		case Keyed:
			set, key := o.Key()
			want[ElementID{Set: set, Key: key}] = true
		}
	}
	f := Of(v.Handle)
	for set, keys := range Elements(v) {
		if want[ElementID{Set: set}] {
			continue
		}
		for key, c := range keys {
			id := ElementID{Set: set, Key: key}
			if !want[id] {
				strays = append(strays, core.Stray{
					Text:   fmt.Sprintf("element { %s } of set %s", rule.Show(f.Rules.Sets, set, key, c.End), set),
					Policy: policies(set),
					Drop:   func() error { return f.removeStray(id) },
				})
			}
		}
	}
	sort.Slice(strays, func(i, j int) bool { return strays[i].Text < strays[j].Text })
	return strays
}

// NewElement returns an element of one of the sets.
func NewElement(sets []rule.Set, set rule.SetName, key, end string) Element {
	return Element{Set: set, Text: rule.Show(sets, set, key, end), Key: key, Content: Content{End: end}}
}
