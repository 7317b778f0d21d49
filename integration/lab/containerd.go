package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CtrImage is containerd's name of Image.
const CtrImage = "docker.io/library/" + Image + ":latest"

// containerdSocket is where nerdctl and netyard look for it.
const containerdSocket = "/run/containerd/containerd.sock"

// containerdConfig disables plugins that no test needs, or that would use directories of others.
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
`

// criConfig enables CRI. It takes the image of PauseImage for the sandboxes of pods, since there is no registry.
const criConfig = `version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/` + PauseImage + `:latest"
  restrict_oom_score_adj = true
`

// StartContainerd starts a containerd on the host, beside the one that dockerd starts for itself, loads the image, and
// installs netyard's plugin where ctr looks for it, and cnitool.
func (h *Host) StartContainerd() {
	h.report.TB().Helper()
	h.startContainerd(containerdConfig)
	h.CtrImport(Image, nil)
}

// StartCRI does what StartContainerd does, with CRI. Of the plugins in /opt/cni/bin only netyard's is there, also as
// the plugin loopback, as scripts/install has it. It returns the path of the socket on this machine.
func (h *Host) StartCRI() (socket string) {
	t := h.report.TB()
	t.Helper()
	h.startContainerd(criConfig)
	h.Sh("rm /opt/cni/bin/bandwidth /opt/cni/bin/tuning; ln -s netyard /opt/cni/bin/loopback")
	archive, err := imageArchive(PauseImage, nil)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.Dir, "pause.tar"), archive, 0o644)
	}
	if err != nil {
		t.Fatalf("lab: build the image %s: %v", PauseImage, err)
	}
	h.Ctr("-n k8s.io images import", filepath.Join(h.Dir, "pause.tar"))
	return h.Inside(containerdSocket)
}

func (h *Host) startContainerd(configuration string) {
	t := h.report.TB()
	t.Helper()
	config := filepath.Join(h.Dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(configuration), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Containerd = h.Service("containerd", "containerd", "--config", config, "--root",
		filepath.Join(h.Dir, "containerd"),
		"--state", "/run/containerd/state", "--address", containerdSocket)
	h.Containerd.ready = func() error {
		_, err := h.TryCtr("version")
		return err
	}
	h.Containerd.Start()
	h.placePlugins()
}

// CtrImport loads an image with labels into containerd, and returns its name.
func (h *Host) CtrImport(image string, labels map[string]string) string {
	t := h.report.TB()
	t.Helper()
	file := filepath.Join(h.Dir, image+".tar")
	archive, err := imageArchive(image, labels)
	if err == nil {
		err = os.WriteFile(file, archive, 0o644)
	}
	if err != nil {
		t.Fatalf("lab: build the image %s: %v", image, err)
	}
	h.Ctr("images import", file)
	return strings.Replace(CtrImage, Image, image, 1)
}

// debianPlugins is the directory of Debian's package containernetworking-plugins on this machine.
const debianPlugins = "/usr/lib/cni/"

// placePlugins installs netyard's plugin, under all names that networks call it by, cnitool, and those of Debian's
// plugins that can be chained after netyard's.
func (h *Host) placePlugins() {
	t := h.report.TB()
	t.Helper()
	for name, program := range map[string]string{
		"netyard-cni": BuildPlugin(t), "cnitool": BuildCNITool(t),
		"bandwidth": debianPlugins + "bandwidth", "tuning": debianPlugins + "tuning",
	} {
		if err := install(program, filepath.Join(h.Dir, "bin", name)); err != nil {
			t.Fatalf("install %s on %s: %v", name, h.Name, err)
		}
	}
	h.Sh("mkdir -p /opt/cni/bin && cp", filepath.Join(h.Dir, "bin", "netyard-cni"), "/opt/cni/bin/netyard")
	h.Sh("cp", filepath.Join(h.Dir, "bin", "bandwidth"), filepath.Join(h.Dir, "bin", "tuning"), "/opt/cni/bin")
	h.Sh("for mode in bridge macvlan ipvlan; do ln -sf netyard /opt/cni/bin/netyard-$mode; done")
}

// Ctr runs a ctr command line, with shell quoting, and returns its output; the test fails if the command does.
func (h *Host) Ctr(cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryCtr(cmd...)
	if err != nil {
		t.Fatalf("%s# ctr %s\n%v", h.Name, strings.Join(cmd, " "), err)
	}
	return out
}

// TryCtr runs a ctr command line; the error has its error output. It may be called from any goroutine.
func (h *Host) TryCtr(cmd ...string) (string, error) {
	return h.TrySh("ctr --address", containerdSocket, strings.Join(cmd, " "))
}

// CtrRun starts a containerd container in the background, on the first network in /etc/cni/net.d. Without cmd it
// sleeps.
func (h *Host) CtrRun(name, flags string, cmd ...string) {
	t := h.report.TB()
	t.Helper()
	if out, err := h.TryCtrRun(name, flags, cmd...); err != nil {
		t.Fatalf("%s# ctr run %s\n%v%s", h.Name, name, err, out)
	}
}

// TryCtrRun does what CtrRun does, and returns an error if the container does not start.
func (h *Host) TryCtrRun(name, flags string, cmd ...string) (string, error) {
	if len(cmd) == 0 {
		cmd = []string{"sleep 1d"}
	}
	return h.tryCtrRun(CtrImage, name, flags, cmd...)
}

// CtrRunImage does what CtrRun does, with another image.
func (h *Host) CtrRunImage(image, name, flags string) {
	t := h.report.TB()
	t.Helper()
	if out, err := h.tryCtrRun(image, name, flags, "sleep 1d"); err != nil {
		t.Fatalf("%s# ctr run %s\n%v%s", h.Name, name, err, out)
	}
}

func (h *Host) tryCtrRun(image, name, flags string, cmd ...string) (string, error) {
	return h.TryCtr("run -d --cni --cgroup", h.cgroup(name), flags, image, name, strings.Join(cmd, " "))
}

// CgroupParent returns the node's cgroup: what is below it is removed with the node.
func (h *Host) CgroupParent() string { return "/" + filepath.Base(h.Dir) }

// cgroup returns a container's cgroup.
func (h *Host) cgroup(name string) string { return h.CgroupParent() + "/" + name }

// CtrPID returns the first process of a containerd container, by its PID on the host.
func (h *Host) CtrPID(name string) string {
	t := h.report.TB()
	t.Helper()
	for line := range strings.SplitSeq(h.Ctr("task ls"), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return f[1]
		}
	}
	t.Fatalf("%s has no task", name)
	return ""
}

// CtrExec runs a shell command in a containerd container; the error has its error output.
func (h *Host) CtrExec(name string, cmd ...string) (string, error) {
	exec := fmt.Sprintf("task exec --exec-id x%d %s sh -c", time.Now().UnixNano(), name)
	return h.TryCtr(exec, "'"+strings.Join(cmd, " ")+"'")
}

// CtrStop ends the task of a container; the container stays.
func (h *Host) CtrStop(name string) {
	h.report.TB().Helper()
	h.Ctr("task rm -f", name)
}

// CtrRemove ends and removes a container.
func (h *Host) CtrRemove(name string) {
	_, _ = h.TryCtr("task rm -f", name) // there may be none
	h.report.TB().Helper()
	h.Ctr("container rm", name)
}

// removeCtr removes all containers of containerd but the engine's: an engine that starts again uses this containerd if
// it runs, and removes its containers itself.
func (h *Host) removeCtr() error {
	if h.Containerd == nil || !h.Containerd.Running() {
		return nil
	}
	var errs []error
	spaces, err := h.TryCtr("namespace ls -q")
	errs = append(errs, err)
	for ns := range strings.FieldsSeq(spaces) {
		if ns == "moby" {
			continue
		}
		names, err := h.TryCtr("-n", ns, "container ls -q")
		errs = append(errs, err)
		for name := range strings.FieldsSeq(names) {
			_, _ = h.TryCtr("-n", ns, "task rm -f", name)
			_, err := h.TryCtr("-n", ns, "container rm", name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeOwn removes the networks that belong to no engine, and what runtimes keep of them.
func (h *Host) removeOwn() error {
	if !h.Netyard.Running() {
		return nil
	}
	names, err := h.TrySh(`netyard network ls --format '{{if eq .Engine "netyard"}}{{.Name}}{{end}}'`)
	errs := []error{err}
	for name := range strings.FieldsSeq(names) {
		_, err := h.TrySh("netyard network rm", name)
		errs = append(errs, err)
	}
	// ip makes /run/netns a mount point, which stays.
	_, err = h.TrySh("rm -rf /etc/cni/net.d /run/netyard/tombstones; rmdir /etc/cni 2>/dev/null; " +
		"ip -all netns del; umount /run/netns 2>/dev/null; rmdir /run/netns 2>/dev/null || true")
	return errors.Join(append(errs, err)...)
}

// Named returns a network namespace of the host by its name: ip netns add NAME.
func (h *Host) Named(name string) *Net {
	return &Net{report: h.report, name: name, node: h.Node, space: func() (space, error) {
		return openNet(h.Inside("/run/netns/"+name), unix.CLONE_NEWNET)
	}}
}
