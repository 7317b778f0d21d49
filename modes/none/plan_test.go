package none_test

import (
	"testing"

	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/modes/none"
)

// TestPlans: nothing is wanted.
func TestPlans(t *testing.T) {
	t.Parallel()
	modetest.Golden(t, "none", none.New(modes.Env{}), modetest.Plan{Name: "plain"},
		modetest.Plan{Name: "internal", Internal: true})
}
