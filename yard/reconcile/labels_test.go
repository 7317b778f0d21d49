package reconcile

import (
	"maps"
	"testing"

	"netyard/modes"
)

// TestImageOfAnotherDay shows that a label which a container has from its image is never taken for its own, also when
// the image's name stands for another image later.
func TestImageOfAnotherDay(t *testing.T) {
	t.Parallel()
	labels := func(pairs ...string) map[string]string {
		all := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = pairs[i+1]
		}
		return all
	}
	of := func(id string, own, image map[string]string) modes.Container {
		return modes.Container{ID: id, Labels: own, ImageLabels: image}
	}
	old := of("c", labels("by", "hand"), labels("role", "frontend"))
	for name, test := range map[string]struct{ fresh, want modes.Container }{
		"the image has lost it": {
			of("c", labels("by", "hand", "role", "frontend"), nil), old,
		},
		"the same": {old, old},
		"somebody has set another value since": {
			of("c", labels("by", "hand", "role", "x"), nil), of("c", labels("by", "hand", "role", "x"), nil),
		},
		"another container": {
			of("d", labels("role", "frontend"), nil), of("d", labels("role", "frontend"), nil),
		},
		"not known": {of("c", nil, nil), old},
	} {
		got := merge(old, test.fresh)
		if !maps.Equal(got.Labels, test.want.Labels) || !maps.Equal(got.ImageLabels, test.want.ImageLabels) {
			t.Errorf("%s: %v %v; want %v %v",
				name, got.Labels, got.ImageLabels, test.want.Labels, test.want.ImageLabels)
		}
	}
	if !maps.Equal(old.Labels, labels("by", "hand")) {
		t.Errorf("the record was changed: %v", old.Labels)
	}
}
