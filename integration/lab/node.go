package lab

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// busybox is a static program: it runs in every root and every container.
const busybox = "/usr/bin/busybox"

//go:embed node.sh
var nodeScript string

// A Node is a machine made of namespaces: network, mount, PID, UTS and IPC. It has this machine's kernel, a
// configurable root, an empty /run and /tmp, and private /etc, /opt and /var/lib.
type Node struct {
	*Net
	// Name is its host name.
	Name string
	// Dir is its disk: a directory that has the same path inside and outside, and survives a power loss.
	Dir string
	// IP and IP6 are its addresses on the first LAN it was plugged into.
	IP, IP6 string

	config   nodeConfig
	mu       sync.Mutex
	init     *exec.Cmd // nil when the power is off
	hold     io.Closer // the pipe that keeps the node alive
	pidfd    *os.File
	services []*Service
	servers  []*Server
	plugs    []plug
	lock     *os.File
}

// nodeConfig configures a node.
type nodeConfig struct {
	name     string
	root     string // the system it runs
	dns      string // its name server; empty: none
	bridgeNF bool   // bridged packets pass iptables, as by the kernel's default
	forward  bool   // forwarding is enabled
	net      *Node  // the node whose network namespace it shares; nil: it has its own
}

// newNode makes a node and powers it on. It is removed at the end of the test.
func newNode(r *reporter, c nodeConfig) *Node {
	t := r.TB()
	t.Helper()
	dir, lock, err := newDir(c.name)
	if err != nil {
		t.Fatalf("lab: make a directory for %s: %v", c.name, err)
	}
	n := &Node{Name: c.name, Dir: dir, config: c, lock: lock}
	n.Net = &Net{report: r, name: c.name, node: n, space: func() (space, error) { return n.space(unix.CLONE_NEWNET) }}
	t.Cleanup(n.destroy)
	if err := n.fill(); err != nil {
		t.Fatalf("lab: fill the directory of %s: %v", c.name, err)
	}
	n.powerOn(t)
	return n
}

// fill creates what the first boot needs in the node's directory.
func (n *Node) fill() error {
	for _, d := range []string{"root", "disk", "log", "bin", "tools"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := install(busybox, filepath.Join(n.Dir, "tools", "busybox")); err != nil {
		return err
	}
	for _, tool := range []string{"ping", "ping6", "nc", "wget", "arping", "traceroute", "telnet", "udhcpc"} {
		if err := os.Symlink("busybox", filepath.Join(n.Dir, "tools", tool)); err != nil {
			return err
		}
	}
	return nil
}

// powerOn makes the namespaces as a boot would: a new boot ID, an empty /run, and only the interfaces that are plugged
// in.
func (n *Node) powerOn(t testing.TB) {
	t.Helper()
	if err := n.boot(); err != nil {
		t.Fatalf("lab: power on %s: %v", n.Name, err)
	}
	for _, p := range n.plugs {
		p.connect(t, n)
	}
}

// boot starts the node's first process and waits until it has set the node up.
func (n *Node) boot() error {
	if err := os.WriteFile(filepath.Join(n.Dir, "boot_id"), []byte(newBootID()+"\n"), 0o644); err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	defer tell.Close()
	flag := map[bool]string{true: "1", false: "0"}
	var stderr bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", nodeScript)
	cmd.Env = append(n.environ(), "ROOT="+n.config.root, "DIR="+n.Dir, "NAME="+n.Name, "DNS="+n.config.dns,
		"BRIDGE_NF="+flag[n.config.bridgeNF], "FORWARD="+flag[n.config.forward])
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Stderr = &stderr
	spaces, start := uintptr(allSpaces), startHere
	if n.config.net != nil {
		spaces, start = spaces&^unix.CLONE_NEWNET, n.config.net.start
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: spaces}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := start(cmd); err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	tell.Close()
	status, _ := io.ReadAll(ready)
	if err != nil || string(status) != "ready\n" {
		cmd.Process.Kill()
		err = errors.Join(err, cmd.Wait(), errors.New(stderr.String()))
		unix.Close(fd)
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.init, n.hold, n.pidfd = cmd, hold, os.NewFile(uintptr(fd), "pidfd")
	return nil
}

// powerOff kills all processes of the node at once. When it returns they are gone: the kernel lets the init of a PID
// namespace end only after all other processes in it.
func (n *Node) powerOff() {
	t := n.report.TB()
	t.Helper()
	if err := n.recordTimes(); err != nil {
		t.Errorf("lab: record the CPU time of %s: %v", n.Name, err)
	}
	n.mu.Lock()
	init, servers := n.init, n.servers
	n.init, n.servers = nil, nil
	n.mu.Unlock()
	if init == nil {
		return
	}
	for _, s := range n.services {
		s.expectEnd()
	}
	for _, s := range servers {
		s.Close() // a socket would keep the network namespace alive
	}
	init.Process.Kill()
	init.Wait()
	n.hold.Close()
	n.pidfd.Close()
	for _, s := range n.services {
		if _, ended := s.process(); ended != nil {
			<-ended
		}
	}
	// A real machine has no former cgroups after a boot either.
	if err := removeCgroups(filepath.Base(n.Dir)); err != nil {
		t.Errorf("lab: %s left cgroups: %v", n.Name, err)
	}
}

// On says whether the node is powered on.
func (n *Node) On() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.init != nil
}

// Inside returns the path of a running node's file on this machine: Inside("/run/x").
func (n *Node) Inside(path string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.init == nil {
		return "/proc/0/root" // it does not exist
	}
	return fmt.Sprintf("/proc/%d/root%s", n.init.Process.Pid, path)
}

// BootID returns the boot ID that the node's processes read in /proc/sys/kernel/random/boot_id.
func (n *Node) BootID() string {
	return n.Sh("cat /proc/sys/kernel/random/boot_id")
}

// Sh runs a shell command in the node and returns its output; the test fails if the command does. The words of cmd are
// joined by spaces.
func (n *Node) Sh(cmd ...string) string {
	t := n.report.TB()
	t.Helper()
	out, err := n.TrySh(cmd...)
	if err != nil {
		t.Fatalf("%s# %s\n%v", n.Name, strings.Join(cmd, " "), err)
	}
	return out
}

// ShErr runs a shell command in the node that must fail, and returns its error output.
func (n *Node) ShErr(cmd ...string) string {
	t := n.report.TB()
	t.Helper()
	out, err := n.TrySh(cmd...)
	if err == nil {
		t.Fatalf("%s# %s\nmust fail, but succeeded: %s", n.Name, strings.Join(cmd, " "), out)
	}
	return err.Error()
}

// TrySh runs a shell command in the node; the error has its error output.
func (n *Node) TrySh(cmd ...string) (string, error) {
	prepare := func(c *exec.Cmd) { c.Env = n.environ() }
	return run("/bin/sh", []string{"-c", strings.Join(cmd, " ")}, prepare, n.startInside)
}

// startInside starts a command in all of the node's namespaces.
func (n *Node) startInside(c *exec.Cmd) error {
	s, err := n.space(allSpaces)
	if err != nil {
		return err
	}
	return s.start(c)
}

// environ returns the node's environment. In PATH the test's programs come first, and busybox last, for tools that the
// root lacks.
func (n *Node) environ() []string {
	return []string{
		"PATH=" + n.Dir + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:" + n.Dir + "/tools",
		"HOME=/root", "LANG=C.UTF-8",
	}
}

// initPID returns the PID, on this machine, of the node's first process; 0 if the node is off.
func (n *Node) initPID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.init == nil {
		return 0
	}
	return n.init.Process.Pid
}
