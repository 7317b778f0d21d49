package lab

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Docker runs a docker command line, with shell quoting, and returns its output; the test fails if the command does.
// The words of cmd are joined by spaces: h.Docker("network rm", name).
func (h *Host) Docker(cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryDocker(cmd...)
	if isLeaving(err) {
		out, err = h.retryRemove(cmd...)
	}
	if err != nil {
		t.Fatalf("%s# docker %s\n%v", h.Name, strings.Join(cmd, " "), err)
	}
	return out
}

// isLeaving says whether an engine refuses to remove a network since a removed container is still leaving it: engine
// 20.10 reports a container as removed before that.
func isLeaving(err error) bool {
	return err != nil && strings.Contains(err.Error(), "has active endpoints")
}

var noSuchNetwork = regexp.MustCompile(`No such network|network \S+ not found`)

// retryRemove removes networks that containers are still leaving. When many containers end at once, engine 20.10 loses
// count of the endpoints of a network (endpoint_cnt, moby/moby#17217) until it is restarted.
func (h *Host) retryRemove(cmd ...string) (out string, err error) {
	again := func() error {
		out, err = h.TryDocker(cmd...)
		if err != nil && !isLeaving(err) && noSuchNetwork.MatchString(err.Error()) {
			err = nil // the last attempt removed this one of several networks
		}
		return err
	}
	if within(settleTime/4, again) != nil && isLeaving(err) {
		h.Dockerd.Restart()
		_ = within(settleTime, again)
	}
	return out, err
}

// DockerErr runs a docker command line that must fail, and returns its error output.
func (h *Host) DockerErr(cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryDocker(cmd...)
	if err == nil {
		t.Fatalf("%s# docker %s\nmust fail, but succeeded: %s", h.Name, strings.Join(cmd, " "), out)
	}
	return err.Error()
}

// TryDocker runs a docker command line; the error has its error output. It may be called from any goroutine.
func (h *Host) TryDocker(cmd ...string) (string, error) {
	t := h.report.TB()
	t.Helper()
	line := "docker " + strings.Join(cmd, " ")
	t.Logf("%s# %s", h.Name, line)
	return run("/bin/sh", []string{"-c", line}, h.client, startHere)
}

// client sets the environment of a docker command, which is this machine's client and the host's engine.
func (h *Host) client(c *exec.Cmd) {
	c.Env = append(c.Environ(), "DOCKER_HOST=unix://"+filepath.Join(h.Dir, "docker.sock"),
		"DOCKER_CONFIG="+filepath.Join(h.Dir, "client"), "DOCKER_CLI_HINTS=false")
}

// Run starts a container in the background: docker run -d --name NAME FLAGS busybox CMD. Without cmd it sleeps.
func (h *Host) Run(name, flags string, cmd ...string) {
	h.report.TB().Helper()
	if len(cmd) == 0 {
		cmd = []string{"sleep 1d"}
	}
	h.Docker("run -d --name", name, flags, Image, strings.Join(cmd, " "))
}

// Exec runs a shell command in a container and returns its output; the test fails if the command does.
func (h *Host) Exec(container string, cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryExec(container, cmd...)
	if err != nil {
		t.Fatalf("%s# %s\n%v", container, strings.Join(cmd, " "), err)
	}
	return out
}

// ExecErr runs a shell command in a container that must fail, and returns its error output.
func (h *Host) ExecErr(container string, cmd ...string) string {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryExec(container, cmd...)
	if err == nil {
		t.Fatalf("%s# %s\nmust fail, but succeeded: %s", container, strings.Join(cmd, " "), out)
	}
	return err.Error()
}

// TryExec runs a shell command in a container; the error has its error output.
func (h *Host) TryExec(container string, cmd ...string) (string, error) {
	return run("docker", []string{"exec", container, "sh", "-c", strings.Join(cmd, " ")}, h.client, startHere)
}

// Ping fails the test unless the container soon gets an answer from target, a name or an address.
func (h *Host) Ping(container, target string) {
	t := h.report.TB()
	t.Helper()
	err := within(reachTime, func() error {
		_, err := h.TryExec(container, "ping -c 1 -W 1", target)
		return err
	})
	if err != nil {
		t.Fatalf("%s must reach %s: %v", container, target, err)
	}
}

// PingFail fails the test if the container gets an answer from target, or if it cannot resolve target's name, which
// would prove nothing.
func (h *Host) PingFail(container, target string) {
	t := h.report.TB()
	t.Helper()
	out, err := h.TryExec(container, "ping -c 2 -i 0.2 -W 1", target)
	switch {
	case err == nil:
		t.Fatalf("%s must not reach %s:\n%s", container, target, out)
	case !strings.Contains(err.Error(), "packet loss"):
		t.Fatalf("%s cannot send to %s: %v", container, target, err)
	}
}

// In returns the network namespace of a running container.
func (h *Host) In(container string) *Net {
	t := h.report.TB()
	t.Helper()
	pid := h.Docker("inspect -f '{{.State.Pid}}'", container)
	if pid == "0" {
		t.Fatalf("%s is not running", container)
	}
	path := h.Inside(fmt.Sprintf("/proc/%s/ns/net", pid))
	return &Net{report: h.report, name: container, node: h.Node, space: func() (space, error) {
		return openNet(path, unix.CLONE_NEWNET)
	}}
}

// Addr returns the container's IPv4 address on a network.
func (h *Host) Addr(container, network string) string {
	h.report.TB().Helper()
	return h.Docker(fmt.Sprintf(`inspect -f '{{(index .NetworkSettings.Networks %q).IPAddress}}' %s`, network,
		container))
}

// Addr6 returns the container's IPv6 address on a network.
func (h *Host) Addr6(container, network string) string {
	h.report.TB().Helper()
	return h.Docker(fmt.Sprintf(`inspect -f '{{(index .NetworkSettings.Networks %q).GlobalIPv6Address}}' %s`, network,
		container))
}

// RemoveAll removes all containers, also those of containerd, and all networks that are not Docker's own.
func (h *Host) RemoveAll() {
	t := h.report.TB()
	t.Helper()
	err := h.removeCtr()
	if !h.noEngine {
		err = errors.Join(err, h.remove("ps -aq", "rm -fv"))
	}
	if err == nil && !h.noEngine {
		err = h.remove("network ls -q --filter type=custom", "network rm")
	}
	if err == nil {
		err = h.removeOwn()
	}
	if err != nil {
		t.Fatalf("remove everything from %s: %v", h.Name, err)
	}
}

// RemoveContainers removes every container.
func (h *Host) RemoveContainers() {
	t := h.report.TB()
	t.Helper()
	if err := h.remove("ps -aq", "rm -fv"); err != nil {
		t.Fatalf("remove every container from %s: %v", h.Name, err)
	}
}

// remove runs verb on what list prints.
func (h *Host) remove(list, verb string) error {
	out, err := h.TryDocker(list)
	if err != nil || out == "" {
		return err
	}
	cmd := []string{verb, strings.ReplaceAll(out, "\n", " ")}
	_, err = h.TryDocker(cmd...)
	if isLeaving(err) {
		_, err = h.retryRemove(cmd...)
	}
	return err
}
