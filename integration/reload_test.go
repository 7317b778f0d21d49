package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"netyard/integration/lab"
)

// TestReload: on SIGHUP the daemon goes on with its configuration as it is now, and a container keeps its network. An
// invalid configuration changes nothing.
func TestReload(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		file := filepath.Join(h.Dir, "netyard.yaml")
		configure := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		configure("")
		h.Netyard.Start("--config", file)
		pid := h.Netyard.PID()
		logged := func(text string, times int) {
			t.Helper()
			eventually(t, "the log says: "+text, func() bool { return strings.Count(h.Netyard.Log(), text) >= times })
		}
		h.Docker("network create -d netyard --ipam-driver netyard web")
		h.Run("c1", "--network web")

		configure("pools: [10.1.0.0/16]")
		h.Netyard.Signal(syscall.SIGHUP)
		logged("configuration not reloaded", 1)
		for i, base := range []string{"10.66.0.0/16:24", "10.67.0.0/16:24"} {
			configure("pools: ['" + base + "']")
			h.Netyard.Signal(syscall.SIGHUP)
			logged("msg=ready", i+2)
			network := fmt.Sprint("web", i)
			h.Docker("network create -d netyard --ipam-driver netyard", network)
			has(t, h.Docker("network inspect", network), base[:len("10.66.0.")])
			h.Docker("network connect", network, "c1")
		}
		h.Netyard.Signal(syscall.SIGHUP)
		logged("nothing has changed", 1)
		if now := h.Netyard.PID(); now != pid {
			t.Errorf("the daemon was process %d and is %d", pid, now)
		}
		h.Run("c2", "--network web")
		h.Ping("c1", "c2")
		healthy(t, h)
	})
}
