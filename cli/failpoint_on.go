//go:build failpoint

package cli

import (
	"os"
	"strings"
	"syscall"
)

// failpoint kills the daemon at the step that the file named by NETYARD_FAILPOINT has in it, once: the file goes first, so
// that the next daemon lives. For crash tests only.
func failpoint() func(string) {
	file := os.Getenv("NETYARD_FAILPOINT")
	if file == "" {
		return nil
	}
	return func(step string) {
		raw, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(raw)) != step {
			return
		}
		_ = os.Remove(file)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}
