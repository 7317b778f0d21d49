package nft

import "netyard/kernel/core"

// BusyReason says what the kernel is busy with, for the error of a request that did not end in time.
func BusyReason(k *core.Handle) string {
	if took := Of(k).out.ForHowLong(); took != "" {
		return ErrBusy.Error() + took
	}
	return "the kernel does not answer"
}
