package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// AdoptFirewall is LoadFirewall for when the records are lost: what is in the kernel's table counts as wanted, but for
// what the records say otherwise. If it cannot be read nothing is loaded: what is in force stays so.
func (k *Kernel) AdoptFirewall() error {
	if err := k.fw.adopt(func(SetName) bool { return true }); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// AdoptPolicy is LoadFirewall for when the policies alone are lost: what the kernel has of them counts as wanted.
func (k *Kernel) AdoptPolicy() error {
	if err := k.fw.adopt(isPolicySet); err != nil {
		return err
	}
	return k.LoadFirewall()
}

// Policed says whether the kernel has elements of policy.
func (k *Kernel) Policed() (bool, error) {
	have, err := k.fw.readElements(isPolicySet)
	if err != nil {
		return false, err
	}
	for _, keys := range have {
		if len(keys) > 0 {
			return true, nil
		}
	}
	return false, nil
}

func isPolicySet(name SetName) bool {
	return slices.ContainsFunc(policySets(), func(s setSpec) bool { return s.name == name })
}

// adopt takes the elements of some sets for wanted. They have no owner: see superseded.
func (f *firewall) adopt(of func(SetName) bool) error {
	return f.runNow(func() error {
		have, err := f.readElements(of)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.adopted = true
		decided := f.decided()
		for set, keys := range have {
			for key, c := range keys {
				e := Element{Set: set, text: showKey(set, key, c.end), key: key, content: c}
				if f.want[e.id()] == nil && !f.disclaimed[e.id()] && !f.superseded(e, decided) {
					f.want[e.id()] = &wish{Element: e, owners: map[string]bool{}}
				}
			}
		}
		return nil
	})
}

// readElements reads the elements of some sets. A table or a set that is not there has none; one that cannot be read is
// an error.
func (f *firewall) readElements(of func(SetName) bool) (all map[SetName]map[string]content, err error) {
	err = f.in.look(func(v view) error {
		all = map[SetName]map[string]content{}
		for _, spec := range allSets() {
			if spec.life > 0 || !of(spec.name) {
				continue
			}
			set, err := v.GetSetByName(spec.table(), string(spec.name))
			if errors.Is(err, unix.ENOENT) { // no table, or an older version's
				continue
			}
			if err != nil {
				return fmt.Errorf("read set %s: %w", spec.name, err)
			}
			elements, err := v.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("read elements of set %s: %w", spec.name, err)
			}
			all[spec.name] = pairUp(elements)
		}
		return nil
	})
	return all, err
}

// A ruling is a direction of an address, in one of the tables.
type ruling struct {
	sets SetName // the name of the sets without closed or allow
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
	if len(e.key) < size {
		return r, false
	}
	return ruling{SetName(name), e.key[:size]}, true
}

// decided are the rulings that the records make.
func (f *firewall) decided() map[ruling]bool {
	all := map[ruling]bool{}
	for _, w := range f.want {
		if r, ok := rulingOf(w.Element); ok && w.owners[policyOwner] {
			all[r] = true
		}
	}
	return all
}

// superseded says whether an element that was adopted gives way to the records: they decide about its address
// themselves, or know the address and that nothing is decided about it. Of an address that is in no record yet, what
// the kernel enforces stays.
func (f *firewall) superseded(e Element, decided map[ruling]bool) bool {
	r, ok := rulingOf(e)
	return ok && (decided[r] || f.settled[r.own])
}

// noteSettled notes the addresses that the records know all about.
func (f *firewall) noteSettled(addrs []netip.Addr) {
	f.settled = map[string]bool{}
	for _, a := range addrs {
		f.settled[string(a.AsSlice())] = true
	}
}
