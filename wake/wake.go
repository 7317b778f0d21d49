// Package wake wakes a goroutine that waits for work.
package wake

// A Signal wakes the goroutine that receives from it. Signals that are sent before it receives count as one.
type Signal chan struct{}

// New returns a signal.
func New() Signal { return make(Signal, 1) }

// Send wakes the receiver, now or when it next receives. It does not wait.
func (s Signal) Send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
