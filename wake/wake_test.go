package wake_test

import (
	"testing"

	"netyard/wake"
)

// TestSignal shows that a signal is kept for a receiver that is busy, and that several count as one.
func TestSignal(t *testing.T) {
	t.Parallel()
	s := wake.New()
	for range 3 {
		s.Send()
	}
	<-s
	select {
	case <-s:
		t.Error("it was received twice")
	default:
	}
	s.Send()
	<-s
}
