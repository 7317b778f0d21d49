package none_test

import (
	"testing"

	"netyard/modes"
	"netyard/modes/modetest"
	"netyard/modes/none"
)

func TestContract(t *testing.T) {
	t.Parallel()
	modetest.Run(t, modetest.Case{
		New: none.New, Network: modes.Network{ID: "0a", Mode: "none"},
		Endpoint: modes.Endpoint{ID: "0b", NetworkID: "0a"},
	})
}
