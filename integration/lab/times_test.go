package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestTimes: the CPU time of a process that nobody waits for is counted, and that of a service, which this program
// waits for, is not.
func TestTimes(t *testing.T) {
	n := NewLAN(t).Node("busy")
	const some = 0.2 // seconds
	work := func(done string) string {
		return `while read -r l </proc/self/stat; set -- $l; [ $((${14} + ${15})) -lt 20 ]; do :; done; touch ` +
			n.Dir + "/" + done + "; exec sleep 1d"
	}
	ready := func(done string) {
		t.Helper()
		if err := within(commandTime, func() error { return n.tries("test -e " + n.Dir + "/" + done) }); err != nil {
			t.Fatal(err)
		}
	}
	n.Sh("cat >" + n.Dir + "/work <<'E'\n" + work("one") + "\nE\n" +
		"unshare --pid --fork sh " + n.Dir + "/work >/dev/null 2>&1 </dev/null &")
	ready("one")
	u, s := orphanTimes(n.initPID())
	if u+s < some {
		t.Errorf("an orphan in a namespace of its own used %.2f s of CPU time, and %.2f s are counted", some, u+s)
	}
	n.Service("own", "sh", "-c", work("two")).Start()
	ready("two")
	user, system := orphanTimes(n.initPID())
	if user+system-u-s >= some {
		t.Errorf("%.2f s of a service are counted", user+system-u-s)
	}

	file := filepath.Join(t.TempDir(), "times")
	t.Setenv(timesEnv, file)
	n.powerOff()
	line, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if _, err := fmt.Sscanln(string(line), &user, &system, &name); err != nil || name != n.Name || user+system < some {
		t.Errorf("the node's line is %q: %v", line, err)
	}
}
