// Package nft keeps tables of nftables: it loads a ruleset as one transaction, keeps the elements of its sets as they
// are wanted, and says what is different in the kernel. It knows no rule of netyard's own: it is given them.
package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// Adopt takes the elements of some sets for wanted. They have no owner: see superseded.
func (f *Firewall) Adopt(of func(rule.SetName) bool) error {
	return f.RunNow(func() error {
		have, err := f.ReadElements(of)
		if err != nil {
			return err
		}
		f.Mu.Lock()
		defer f.Mu.Unlock()
		f.adopted = true
		decided := f.decided()
		for set, keys := range have {
			for key, c := range keys {
				e := Element{Set: set, Text: rule.Show(f.Rules.Sets, set, key, c.End), Key: key, Content: c}
				if f.Want[e.ID()] == nil && !f.disclaimed[e.ID()] && !f.superseded(e, decided) {
					f.Want[e.ID()] = &Wish{Element: e, owners: map[string]bool{}}
				}
			}
		}
		return nil
	})
}

// ReadElements reads the elements of some sets. A table or a set that is not there has none; one that cannot be read is
// an error.
func (f *Firewall) ReadElements(of func(rule.SetName) bool) (all map[rule.SetName]map[string]Content, err error) {
	err = f.In.Look(func(v View) error {
		all = map[rule.SetName]map[string]Content{}
		for _, spec := range f.Rules.Sets {
			if spec.Life > 0 || !of(spec.Name) {
				continue
			}
			set, err := v.GetSetByName(spec.Table(), string(spec.Name))
			if errors.Is(err, unix.ENOENT) { // no table, or an older version's
				continue
			}
			if err != nil {
				return fmt.Errorf("read set %s: %w", spec.Name, err)
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("read elements of set %s: %w", spec.Name, err)
			}
			all[spec.Name] = pairUp(elements)
		}
		return nil
	})
	return all, err
}

// A ruling is a direction of an address, in one of the tables.
type ruling struct {
	sets rule.SetName // the name of the sets without closed or allow
	own  string
}

// rulingOf takes an element of policy apart; ok is false for others.
func rulingOf(e Element) (r ruling, ok bool) {
	name, closed := strings.CutPrefix(string(e.Set), "closed_")
	if !closed {
		if name, ok = strings.CutPrefix(string(e.Set), "allow_"); !ok {
			return r, false
		}
	}
	size := 4
	if strings.Contains(name, "6") {
		size = 16
	}
	if len(e.Key) < size {
		return r, false
	}
	return ruling{rule.SetName(name), e.Key[:size]}, true
}

// decided are the rulings that the records make.
func (f *Firewall) decided() map[ruling]bool {
	all := map[ruling]bool{}
	for _, w := range f.Want {
		if r, ok := rulingOf(w.Element); ok && w.owners[PolicyOwner] {
			all[r] = true
		}
	}
	return all
}

// superseded says whether an element that was adopted gives way to the records: they decide about its address
// themselves, or know the address and that nothing is decided about it. Of an address that is in no record yet, what
// the kernel enforces stays.
func (f *Firewall) superseded(e Element, decided map[ruling]bool) bool {
	r, ok := rulingOf(e)
	return ok && (decided[r] || f.settled[r.own])
}

// noteSettled notes the addresses that the records know all about.
func (f *Firewall) noteSettled(addrs []netip.Addr) {
	f.settled = map[string]bool{}
	for _, a := range addrs {
		f.settled[string(a.AsSlice())] = true
	}
}
