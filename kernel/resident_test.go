package kernel_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
)

const outsider = "NETYARD_TEST_OUTSIDER"

// TestOutOfSight: from a PID namespace of its own a daemon does not see the host's processes. It takes none of them for
// ended, and knows that it does not see all.
func TestOutOfSight(t *testing.T) {
	if raw := os.Getenv(outsider); raw != "" { // inside
		var p sandbox.Process
		if err := json.Unmarshal([]byte(raw), &p); err != nil {
			t.Fatal(err)
		}
		if _, there := sandbox.ProcessAt(p.PID); there {
			t.Error("the outsider is in sight")
		}
		if p.Ended() || p.Here() || sandbox.SeesAllProcesses() {
			t.Errorf("ended: %v, here: %v, sees all: %v", p.Ended(), p.Here(), sandbox.SeesAllProcesses())
		}
		return
	}
	t.Parallel()
	kerneltest.NeedsRoot(t)
	if !sandbox.SeesAllProcesses() {
		t.Log("the test is in a PID namespace itself")
	}
	sleeper := exec.Command("sleep", "1d")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	p, ok := sandbox.ProcessAt(sleeper.Process.Pid)
	if !ok || p.Ended() || !p.Here() {
		t.Errorf("%+v, there: %v, ended: %v, here: %v", p, ok, p.Ended(), p.Here())
	}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	inside := exec.Command("unshare", "--pid", "--fork", "--mount-proc", os.Args[0], "-test.run=^TestOutOfSight$",
		"-test.count=1")
	inside.Env = append(os.Environ(), outsider+"="+string(raw))
	if out, err := inside.CombinedOutput(); err != nil {
		t.Errorf("inside: %v\n%s", err, out)
	}
	_ = sleeper.Process.Kill()
	_ = sleeper.Wait()
	if !p.Ended() {
		t.Error("a process that was killed has not ended")
	}
}
