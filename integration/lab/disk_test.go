package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netyard/integration/lab"
)

// TestNothingStays: nothing of a host is left on this machine after a test, and after one that was killed.
func TestNothingStays(t *testing.T) {
	if os.Getenv("LAB_TEST_HANG") != "" {
		h := lab.New(t, lab.Engine285, lab.Name("stays"))
		h.Run("c1", "")
		fmt.Println("hanging in", h.Dir)
		select {}
	}
	dir, err := os.MkdirTemp("/var/tmp", "lab-test-stays-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("NETYARD_LAB_DIR", dir)
	gone := func(t *testing.T) {
		t.Helper()
		var left []string
		for range 50 { // the kernel removes mounts and links with a delay
			if left = stays(dir); len(left) == 0 {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("left on this machine:\n%s", strings.Join(left, "\n"))
	}

	t.Run("ends", func(t *testing.T) {
		h := lab.New(t, lab.Engine285, lab.Name("stays"))
		h.Run("c1", "")
		h.In("c1").Listen("tcp", ":80")
		if len(stays(dir)) < 4 {
			t.Error("this test does not see the host")
		}
	})
	gone(t)
	hangAndKill(t)
	t.Run("sweeps", func(t *testing.T) { lab.NewLAN(t) })
	gone(t)
}

// stays lists what is on this machine of hosts whose disks are in dir. Other tests may be running.
func stays(dir string) (found []string) {
	for _, pattern := range []string{
		dir + "/*", "/sys/fs/cgroup/netyard*stays*", "/sys/fs/cgroup/*/netyard*stays*",
		"/sys/class/net/port*", "/sys/class/net/lan*",
	} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/task/*/mountinfo")
	for _, proc := range procs {
		if mounts, _ := os.ReadFile(proc); strings.Contains(string(mounts), dir) {
			found = append(found, proc)
		}
	}
	return found
}

// hangAndKill runs this test's program until it has a host with a container, and kills it then.
func hangAndKill(t *testing.T) {
	t.Helper()
	cmd := exec.Command(self(t), "-test.run=^TestNothingStays$", "-test.v")
	cmd.Env = append(os.Environ(), "LAB_TEST_HANG=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "hanging in") {
		t.Log(lines.Text())
	}
	cmd.Process.Kill()
	cmd.Wait()
}
