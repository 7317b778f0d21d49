//go:build failpoint

package cli

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// failpoint kills the daemon at the step that the file named by NETYARD_FAILPOINT has in it, once: the file goes first,
// so that the next daemon lives. With "hold" before the step the daemon stands still there instead: the file gets the
// ending .held, and what came to the step goes on when that is gone. For crash tests only.
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
		at, hold := strings.CutPrefix(strings.TrimSpace(string(raw)), "hold ")
		if at != step {
			return
		}
		if hold {
			stand(file)
			return
		}
		_ = os.Remove(file)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

func stand(file string) {
	held := file + ".held"
	for err := os.Rename(file, held); err == nil; _, err = os.Stat(held) {
		time.Sleep(time.Millisecond)
	}
}
