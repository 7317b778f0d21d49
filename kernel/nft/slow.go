package nft

import (
	"fmt"
	"time"

	"netyard/kernel/core"
)

// Slow says in words what the kernel is slow at: that is what a request hangs on which has not ended in time.
func Slow(k *core.Handle) string {
	if took := Of(k).out.forHowLong(); took != "" {
		return ErrBusy.Error() + took
	}
	return "the kernel does not answer"
}

// took is how long an exchange has been under way; 0 if none is.
func (t *talker) took() time.Duration {
	since := t.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(time.Unix(0, since))
}

// forHowLong says so in words. What takes that long waits for somebody else's change.
func (t *talker) forHowLong() string {
	took := t.took()
	if took < slow/4 {
		return ""
	}
	return fmt.Sprintf(" with another program's change (for %s now)", took.Round(100*time.Millisecond))
}
