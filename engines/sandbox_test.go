package engines

import (
	"os"
	"strings"
	"testing"
)

func TestContainerID(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	for name, c := range map[string]struct{ in, want string }{
		"cgroupfs, v1":    {"12:pids:/docker/" + id + "\n11:cpu:/docker/" + id + "\n", id},
		"systemd, v2":     {"0::/system.slice/docker-" + id + ".scope\n", id},
		"cgroup parent":   {"0::/web/" + id, id},
		"containerd, CRI": {"0::/kubepods.slice/cri-containerd-" + id + ".scope\n", id},
		"own namespace":   {"0::/\n", ""},
		"a service":       {"0::/system.slice/netyard.service\n", ""},
		"too short":       {"0::/docker/" + id[:63] + "\n", ""},
		"a group inside":  {"0::/docker/" + id + "/init\n", id},
	} {
		if got := containerID(c.in); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestFirstProcesses(t *testing.T) {
	t.Parallel()
	c, ok := scanProcesses().container("/proc/self/ns/net")
	if !ok || c.PID == 0 || c.PID > os.Getpid() {
		t.Errorf("container of this namespace: %+v %v", c, ok)
	}
	if _, ok := scanProcesses().container("/nonexistent"); ok {
		t.Error("a sandbox that does not exist has a process")
	}
}

func TestDoorMode(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		mode string
		ok   bool
	}{
		"netyard": {"", true}, "netyard:latest": {"", true}, "netyard-bridge": {"bridge", true},
		"bridge": {"", false}, "default": {"", false}, "netyardx": {"", false},
	} {
		mode, ok := doorMode(name)
		if ok != want.ok || ok && mode != want.mode {
			t.Errorf("%s: %q %v", name, mode, ok)
		}
	}
}
