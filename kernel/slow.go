package kernel

import (
	"fmt"
	"time"
)

// Slow says in words what the kernel is slow at: that is what a request hangs on which has not ended in time.
func (k *Kernel) Slow() string {
	if took := k.fw.out.forHowLong(); took != "" {
		return ErrBusy.Error() + took
	}
	return "the kernel does not answer"
}

// forHowLong says how long an exchange has been under way; nothing if none is.
func (t *talker) forHowLong() string {
	since := t.since.Load()
	if since == 0 {
		return ""
	}
	return fmt.Sprintf(" (for %s now)", time.Since(time.Unix(0, since)).Round(100*time.Millisecond))
}
