// Package nft manages netyard's nftables tables. It loads a ruleset as one transaction, adds and removes elements of
// its sets, and reports what differs in the kernel. Its caller passes the rules; it defines none itself.
package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"netyard/kernel/rule"
)

// Adopt makes the elements that the kernel has in some sets wanted elements, without an owner. Those that the records
// decide about are left out, see superseded.
func (f *Firewall) Adopt(of func(rule.SetName) bool) error {
	return f.RunNow(func() error {
		have, err := f.ReadElements(of)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.adopted = true
		decided := f.decided()
		for set, keys := range have {
			for key, c := range keys {
				e := Element{Set: set, Text: rule.Show(f.Rules.Sets, set, key, c.End), Key: key, Content: c}
				if f.wanted.by[e.ID()] == nil && !f.removedEarly[e.ID()] && !f.superseded(e, decided) {
					f.wanted.put(&wantedElement{Element: e, owners: map[string]bool{}})
				}
			}
		}
		return nil
	})
}

// ReadElements reads the elements of some sets. A missing table or set has none; one that cannot be read is an error.
func (f *Firewall) ReadElements(of func(rule.SetName) bool) (all map[rule.SetName]map[string]Content, err error) {
	err = f.Reader.Look(func(v View) error {
		all = map[rule.SetName]map[string]Content{}
		for _, spec := range f.Rules.Sets {
			if spec.Life > 0 || !of(spec.Name) {
				continue
			}
			set, err := v.GetSetByName(spec.Table(), string(spec.Name))
			other := set != nil && (set.KeyType.Name != spec.Type.Name || set.KeyType.Bytes != spec.Type.Bytes)
			if errors.Is(err, unix.ENOENT) || other { // no table, or that of an older version
				continue
			}
			if err != nil {
				return fmt.Errorf("read set %s: %w", spec.Name, err)
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("read elements of set %s: %w", spec.Name, err)
			}
			all[spec.Name] = joinIntervals(elements)
		}
		return nil
	})
	return all, err
}

// A policyKey is what a policy decides about: one direction of the traffic of an address, in one of the tables.
type policyKey struct {
	sets rule.SetName // the name of the sets, without its prefix closed_ or allow_
	own  string       // the address, as in the key of an element
}

// policyKeyOf returns what an element of policy is about; ok is false for other elements.
func policyKeyOf(e Element) (r policyKey, ok bool) {
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
	return policyKey{rule.SetName(name), e.Key[:size]}, true
}

// decided returns what the policies in the records decide about.
func (f *Firewall) decided() map[policyKey]bool {
	all := map[policyKey]bool{}
	for _, w := range f.wanted.policy {
		if r, ok := policyKeyOf(w.Element); ok {
			all[r] = true
		}
	}
	return all
}

// superseded reports whether the records override an adopted element: a policy decides about the element's address and
// direction, or the records know the address, so that no policy decides about it. For an address that is in no record
// yet, the kernel goes on to enforce what was adopted.
func (f *Firewall) superseded(e Element, decided map[policyKey]bool) bool {
	r, ok := policyKeyOf(e)
	return ok && (decided[r] || f.known[r.own])
}

// setKnown stores the addresses that the records know.
func (f *Firewall) setKnown(addrs []netip.Addr) {
	f.known = map[string]bool{}
	for _, a := range addrs {
		f.known[string(a.AsSlice())] = true
	}
}
