package kernel

import (
	"netyard/kernel/beside"
	"netyard/kernel/core"
)

// A Fault is a difference from what is wanted: of one of the objects, given by its index, or of the ruleset itself
// (-1).
type Fault struct {
	Object int
	Text   string
	// Lost says that Ensure cannot restore the object (core.Unrepairable).
	Lost bool
	// Late says that the object may not have been made at the request, since it is in a sandbox that may have been made
	// later.
	Late bool
}

// A Snapshot is the kernel at one moment.
type Snapshot struct {
	s     *core.View
	rules []string
}

// Faults describes each wanted object that is missing or different.
func (s *Snapshot) Faults(wanted []core.Object) (faults []Fault) {
	for _, text := range s.rules {
		faults = append(faults, Fault{Object: -1, Text: text})
	}
	seen := map[string]bool{}
	for i, o := range wanted {
		for _, text := range o.Check(s.s) {
			if !seen[text] { // several networks may want the same object of the host
				seen[text] = true
				l, ok := o.(core.Unrepairable)
				_, late := o.(core.DeferredObject)
				faults = append(faults, Fault{Object: i, Text: text, Lost: ok && l.Lost(s.s), Late: late})
			}
		}
	}
	for b := range beside.OwnBypasses() {
		for _, text := range b.Check(s.s) {
			faults = append(faults, Fault{Object: -1, Text: text})
		}
	}
	return faults
}
