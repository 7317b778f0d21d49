//go:build failpoint

package daemon

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// failpoint returns a function that kills the daemon at one step, for crash tests only. NETYARD_FAILPOINT names a file
// that contains the step. The file is removed first, so that the next daemon survives. If the file contains
// "hold STEP", the goroutine that reaches the step waits instead: the file is renamed to FILE.held, and the goroutine
// goes on when that file is removed.
func failpoint() func(string) {
	file := os.Getenv("NETYARD_FAILPOINT")
	if file == "" {
		return nil
	}
	return func(step string) {
		raw, err := os.ReadFile(file)
		if err != nil {
			return
		}
		at, held := strings.CutPrefix(strings.TrimSpace(string(raw)), "hold ")
		if at != step {
			return
		}
		if held {
			hold(file)
			return
		}
		_ = os.Remove(file)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// hold renames the file to FILE.held and waits until that is removed.
func hold(file string) {
	held := file + ".held"
	for err := os.Rename(file, held); err == nil; _, err = os.Stat(held) {
		time.Sleep(time.Millisecond)
	}
}
