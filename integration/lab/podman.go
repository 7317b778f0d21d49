package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// podmanConfig is what Debian's podman needs to use CNI's networks, and no systemd.
const podmanConfig = `[containers]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
infra_image = "localhost/` + PauseImage + `:latest"
infra_command = "/bin/sleep 1d"
`

// InstallPodman configures this machine's own podman on the host, which has the root of Debian 12, loads the images,
// and installs netyard's plugin. The test is skipped if there is no podman.
func (h *Host) InstallPodman() {
	t := h.report.TB()
	t.Helper()
	if _, err := os.Stat("/usr/bin/podman"); err != nil || h.Engine != Engine2010 {
		Skip(t, "no podman; on Debian 12, apt-get install podman installs it")
	}
	h.placePlugins()
	h.Sh(fmt.Sprintf("mkdir -p /etc/containers && cat > /etc/containers/containers.conf <<'END'\n%sEND", podmanConfig))
	for _, image := range []string{Image, PauseImage} {
		file := filepath.Join(h.Dir, image+".tar")
		archive, err := imageArchive(image, nil)
		if err == nil {
			err = os.WriteFile(file, archive, 0o644)
		}
		if err != nil {
			t.Fatalf("lab: build the image %s: %v", image, err)
		}
		h.Podman("load -q -i", file)
	}
	h.Sh("rm -r /etc/cni") // podman's lock; RemoveAll removes the directory
}

// Podman runs a podman command line, with shell quoting, and returns its output; the test fails if the command does.
func (h *Host) Podman(cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryPodman(cmd...)
	if err != nil {
		t.Fatalf("%s# podman %s\n%v", h.Name, strings.Join(cmd, " "), err)
	}
	return out
}

// TryPodman runs a podman command line; the error has its error output.
func (h *Host) TryPodman(cmd ...string) (string, error) {
	return h.TrySh("podman --storage-driver overlay --root", filepath.Join(h.Dir, "podman"), strings.Join(cmd, " "))
}

// PodmanRun starts a container in the background. Without cmd it sleeps.
func (h *Host) PodmanRun(name, flags string, cmd ...string) {
	t := h.report.TB()
	t.Helper()
	if len(cmd) == 0 {
		cmd = []string{"sleep 1d"}
	}
	h.Podman("run -d --cgroup-parent", h.CgroupParent(), "--name", name, flags, Image, strings.Join(cmd, " "))
}

// RemovePodman ends and removes all containers and pods of podman.
func (h *Host) RemovePodman() {
	h.report.TB().Helper()
	h.Podman("pod rm -fa -t 0")
	h.Podman("rm -fa -t 0")
}
