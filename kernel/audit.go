package kernel

import (
	"netyard/kernel/beside"
	"netyard/kernel/core"
)

// A Fault is something that is not as wanted: one of the objects, by its index, or the ruleset itself (-1).
type Fault struct {
	Object int
	Text   string
	// Lost: Ensure cannot bring it back, since a part of it is in a sandbox.
	Lost bool
	// Late: it could not be made before, since it is in a sandbox that may have been made after the request.
	Late bool
}

// A Snapshot is the kernel at one moment.
type Snapshot struct {
	s     *core.View
	rules []string
}

// Faults are the wanted things that are missing or different, in words.
func (s *Snapshot) Faults(wanted []core.Object) (faults []Fault) {
	for _, text := range s.rules {
		faults = append(faults, Fault{Object: -1, Text: text})
	}
	seen := map[string]bool{}
	for i, o := range wanted {
		for _, text := range o.Check(s.s) {
			if !seen[text] { // several networks want the same of the host
				seen[text] = true
				l, ok := o.(core.Loser)
				_, late := o.(core.Latecomer)
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
