package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestTimes has a process that nobody will wait for, and a service, which this program waits for, work until each has
// had some of a processor: the first is counted, the second is not.
func TestTimes(t *testing.T) {
	n := NewLAN(t).Node("busy")
	const some = 0.2 // seconds
	work := func(done string) string {
		return `while read -r l </proc/self/stat; set -- $l; [ $((${14} + ${15})) -lt 20 ]; do :; done; touch ` + n.Dir + "/" + done + "; exec sleep 1d"
	}
	ready := func(done string) {
		t.Helper()
		if err := within(commandTime, func() error { return n.tries("test -e " + n.Dir + "/" + done) }); err != nil {
			t.Fatal(err)
		}
	}
	n.Sh("cat >" + n.Dir + "/work <<'E'\n" + work("one") + "\nE\nunshare --pid --fork sh " + n.Dir + "/work >/dev/null 2>&1 </dev/null &")
	ready("one")
	u, s := orphanTimes(n.initPID())
	if u+s < some {
		t.Errorf("a process without a parent, in a namespace of its own, had %.2f s of the processors, and counted are %.2f", some, u+s)
	}
	n.Service("own", "sh", "-c", work("two")).Start()
	ready("two")
	user, system := orphanTimes(n.initPID())
	if user+system-u-s >= some {
		t.Errorf("%.2f s are counted that are a service's", user+system-u-s)
	}

	file := filepath.Join(t.TempDir(), "times")
	t.Setenv(timesEnv, file)
	n.powerOff()
	said, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if _, err := fmt.Sscanln(string(said), &user, &system, &name); err != nil || name != n.Name || user+system < some {
		t.Errorf("the node's line is %q: %v", said, err)
	}
}
