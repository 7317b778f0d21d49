package modes_test

import (
	"testing"

	"netyard/modes"
)

// TestLabels: a label of netyard's sets an option or is one of the two others; foreign labels are neither.
func TestLabels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		label, option string
		own, sets     bool
	}{
		{label: "netyard.rate", option: "rate", own: true, sets: true},
		{label: "netyard.mac", own: true},
		{label: "netyard.alias", own: true},
		{label: "netyard.macs", option: "macs", own: true, sets: true},
		{label: "netyard", option: "netyard"},
		{label: "com.example.netyard.rate", option: "com.example.netyard.rate"},
		{label: ""},
	} {
		option, sets := modes.LabelOption(c.label)
		if option != c.option || sets != c.sets || modes.IsLabel(c.label) != c.own {
			t.Errorf("label %q: option %q, %v; netyard's: %v", c.label, option, sets, modes.IsLabel(c.label))
		}
	}
}
