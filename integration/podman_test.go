package integration

import (
	"slices"
	"strings"
	"testing"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// TestPodman: containers and pods of podman 4 with the CNI backend: published ports, addresses and names; stop and
// start, networks connected, disconnected and reloaded, and a container that is removed while the daemon is down. A
// network's file that podman deletes is reported.
func TestPodman(t *testing.T) {
	t.Parallel()
	h := lab.New(t, lab.Engine2010, lab.NoEngine())
	h.InstallPodman()
	h.Netyard.Start()
	h.Sh("netyard network create web --subnet 10.77.0.0/24; netyard network create back --subnet 10.78.0.0/24")
	h.Sh("netyard cni install web; netyard cni install back")
	const server = "nc -ll -p 80 -e hostname"
	serves := func(when, port, want string) {
		t.Helper()
		last := ""
		eventually(t, "port "+port+" answers "+when, func() bool {
			got, err := h.Outside.TryDial("tcp", h.IP+":"+port)
			if err != nil {
				got = err.Error()
			}
			if got != last {
				t.Logf("port %s answers %s: %s", port, when, got)
			}
			last = got
			return got == want
		})
	}
	of := func(name string) []api.Endpoint {
		return slices.DeleteFunc(ps(t, h), func(e api.Endpoint) bool { return e.Container != name })
	}

	h.PodmanRun("c1", "--net web -p 8080:80 --hostname c1", server)
	h.PodmanRun("c2", "--net web:ip=10.77.0.77,alias=store,mac=02:00:00:00:00:07")
	serves("at first", "8080", "c1")
	id := h.Podman("inspect -f '{{.Id}}' c1")
	if es := of("c1"); len(es) != 1 || es[0].ContainerID != id || es[0].Engine != "cni" {
		t.Errorf("c1 is shown as %+v", es)
	}
	if es := of("c2"); len(es) != 1 || es[0].Addresses[0] != "10.77.0.77/24" || es[0].MAC != "02:00:00:00:00:07" ||
		!slices.Contains(es[0].Aliases, "store") {
		t.Errorf("c2 is shown as %+v", es)
	}
	has(t, h.Sh("netyard endpoint inspect", id[:12], "--format '{{.Container}}'"), "c1")
	has(t, h.Sh("netyard trace c2 c1:80"), "c1")
	has(t, h.Podman("exec c2 nc -w 9", strings.TrimSuffix(of("c1")[0].Addresses[0], "/24"), "80 </dev/null"), "c1")

	h.Podman("network reload c1")
	serves("after network reload", "8080", "c1")
	h.Podman("network connect back c1")
	if n := len(of("c1")); n != 2 {
		t.Errorf("after network connect c1 has %d endpoints", n)
	}
	h.Podman("network disconnect back c1")
	eventually(t, "c1 has left", func() bool { return len(of("c1")) == 1 })
	h.Podman("stop -t 0 c1")
	eventually(t, "c1 has stopped", func() bool { return len(of("c1")) == 0 })
	h.Podman("start c1")
	serves("after stop and start", "8080", "c1")

	h.Podman("pod create --cgroup-parent", h.CgroupParent(), "--name p1 --net web -p 8081:80")
	h.Podman("run -d --cgroup-parent", h.CgroupParent(), "--pod p1 --name inner", lab.Image, "nc -ll -p 80 -e echo pod")
	serves("of the pod", "8081", "pod")
	named(t, h, "p1")
	healthy(t, h)

	h.Netyard.Kill()
	h.Podman("rm -f -t 0 c1")
	h.Netyard.Start()
	eventually(t, "c1 is gone", func() bool { return len(of("c1")) == 0 })
	h.PodmanRun("c3", "--net web -p 8080:80 --hostname c3", server)
	serves("of the next container", "8080", "c3")

	h.Podman("network prune -f")
	eventually(t, "doctor reports the file that podman deleted", func() bool {
		out, _ := h.TrySh("netyard doctor")
		return strings.Contains(out, "netyard cni install back")
	})
	h.Sh("netyard cni install back")
	healthy(t, h)
	h.RemovePodman()
	nothing(t, h, "podman's containers")
	healthy(t, h)
}
