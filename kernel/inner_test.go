package kernel_test

import (
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/kernel/kerneltest"
)

// TestHostname reads the host names of many processes, and no thread of this one takes one of them for its own
// afterwards.
func TestHostname(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	cmd := exec.Command("unshare", "-u", "sh", "-c", "echo shop >/proc/sys/kernel/hostname && echo && exec sleep 1d")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	home := thread(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if name, err := h.Hostname(cmd.Process.Pid); name != "shop" || err != nil {
				t.Errorf("host name %q, %v", name, err)
			}
			if now := thread(t); now != home {
				t.Errorf("a thread is on host %s now, and was on %s", now, home)
			}
		})
	}
	wg.Wait()
}

// thread is the name of the host that this thread is on.
func thread(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Error(err)
	}
	return unix.ByteSliceToString(name.Nodename[:])
}
