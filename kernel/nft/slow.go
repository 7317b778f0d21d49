package nft

import (
	"fmt"
	"time"

	"netyard/kernel/core"
)

// BusyReason says what the kernel is busy with, for the error of a request that did not end in time.
func BusyReason(k *core.Handle) string {
	if took := Of(k).out.forHowLong(); took != "" {
		return ErrBusy.Error() + took
	}
	return "the kernel does not answer"
}

// took returns how long the current exchange has taken so far; 0 if there is none.
func (t *writer) took() time.Duration {
	since := t.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// forHowLong says it in words, for an error. An exchange that takes long waits for another program's change.
func (t *writer) forHowLong() string {
	took := t.took()
	if took < slowExchange/4 {
		return ""
	}
	return fmt.Sprintf(" with another program's change (for %s now)", took.Round(100*time.Millisecond))
}
