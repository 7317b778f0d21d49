package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// hook does what nerdctl's hooks do, which runc calls when a container starts and after it has ended: DEL and ADD
// before its program runs, DEL after it (nerdctl, pkg/ocihook). Its input is the state of the container, as the OCI
// runtime specification defines it.
const hook = `#!/bin/sh
pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
plugin() { CNI_COMMAND=$1 CNI_CONTAINERID=default-c1 CNI_NETNS=$2 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/netyard <<'END'
%s
END
}
plugin DEL "" || exit 1
[ "$1" = stop ] || plugin ADD "/proc/$pid/ns/net"
`

// hooked creates a containerd container that the restart monitor keeps running, with hooks as nerdctl configures them.
func hooked(t *testing.T, h *lab.Host, name, conf string) {
	t.Helper()
	script, root := filepath.Join(h.Dir, "hook"), filepath.Join(h.Dir, "root-"+name)
	if err := os.WriteFile(script, fmt.Appendf(nil, hook, conf), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	h.Sh("mkdir -p", root+"/bin", root+"/proc", root+"/dev", root+"/sys", root+"/run", root+"/tmp", root+"/etc",
		"&& cp $(command -v busybox)", root+"/bin/sleep")
	spec := parse[map[string]any](t, h.Sh("ctr oci spec"))
	part := func(name string) map[string]any {
		p, ok := spec[name].(map[string]any)
		if !ok {
			t.Fatalf("the specification has no %s: %v", name, spec)
		}
		return p
	}
	part("process")["args"] = []string{"/bin/sleep", "1d"}
	part("root")["path"] = root
	part("linux")["cgroupsPath"] = "/" + filepath.Base(h.Dir) + "/" + name
	call := func(verb string) []any {
		return []any{map[string]any{"path": "/bin/sh", "args": []string{"sh", script, verb}, "env": os.Environ()}}
	}
	spec["hooks"] = map[string]any{"createRuntime": call("start"), "poststop": call("stop")}
	raw, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.Dir, "spec.json"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.Ctr("container create --config", filepath.Join(h.Dir, "spec.json"),
		"--label containerd.io/restart.status=running --label containerd.io/restart.policy=always", name)
}

// TestCNIRestartMonitor: a container that containerd's restart monitor starts again, at boot and after a crash, is
// attached as before, and nothing is left when it is removed.
func TestCNIRestartMonitor(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e)
		h.Sh("netyard network create web --subnet 10.77.0.0/24")
		h.Sh("netyard cni install web")
		hooked(t, h, "c1", confOf(t, h, "web", "1.0.0"))
		attached := func(when string) {
			t.Helper()
			eventually(t, "c1 is attached "+when, func() bool {
				rows := ps(t, h)
				return len(rows) == 1 && rows[0].Container == "c1" &&
					strings.HasPrefix(rows[0].Addresses[0], "10.77.0.2/")
			})
			h.Sh("ping -c 1 -W 5 10.77.0.2")
		}
		attached("at its first start")
		h.PowerLoss()
		h.Boot()
		attached("after a power loss")
		dead := h.CtrPID("c1")
		h.Sh("kill -9", dead)
		eventually(t, "the restart monitor has started it again", func() bool {
			tasks := h.Ctr("task ls")
			return strings.Contains(tasks, "RUNNING") && !strings.Contains(tasks, " "+dead+" ")
		})
		attached("after a crash")
		h.Ctr("container label c1 containerd.io/restart.status=stopped")
		h.CtrRemove("c1")
		nothing(t, h, "the container's end")
		healthy(t, h)
	})
}
