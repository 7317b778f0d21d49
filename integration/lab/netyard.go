package lab

import (
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Programs are built once per test program.
var (
	build       = sync.OnceValues(buildNetyard)
	buildPlugin = sync.OnceValues(func() (string,
		error,
	) {
		return buildSmall("netyard-cni", "netyard/cni/netyard-cni")
	})
	buildShipped = sync.OnceValues(func() (string, error) { return buildSmall("netyard-shipped", "netyard") })
	buildCNITool = sync.OnceValues(func() (string, error) {
		return buildSmall("cnitool", "github.com/containernetworking/cni/cnitool")
	})
)

// BuildShipped returns the netyard program as it is shipped, for benchmarks.
func BuildShipped(t testing.TB) string {
	t.Helper()
	return built(t, "netyard", buildShipped)
}

// BuildPlugin returns netyard's CNI plugin as it is shipped.
func BuildPlugin(t testing.TB) string {
	t.Helper()
	return built(t, "netyard-cni", buildPlugin)
}

// BuildCNITool returns cnitool, the CNI project's tool that calls plugins as a runtime does.
func BuildCNITool(t testing.TB) string {
	t.Helper()
	return built(t, "cnitool", buildCNITool)
}

func built(t testing.TB, name string, build func() (string, error)) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return path
}

// buildSmall builds a program without cgo, which runs in any root.
func buildSmall(name, pkg string) (string, error) {
	return compile(name, []string{"CGO_ENABLED=0"}, "-trimpath", "-ldflags", "-s -w", pkg)
}

// Build returns the netyard program under test, with the race detector and failpoints. It is built once per run, from
// the test's module, unless NETYARD_BIN names one.
func Build(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("build netyard: %v", err)
	}
	return path
}

func buildNetyard() (string, error) {
	if path := os.Getenv("NETYARD_BIN"); path != "" {
		return filepath.Abs(path)
	}
	args := []string{"-race", "-tags", "failpoint", "netyard"}
	if os.Geteuid() != 0 { // no daemon will run, and go test has compiled the rest without the race detector
		args = args[1:]
	}
	return compile("netyard", nil, args...)
}

// compile runs go build in the module under test.
func compile(name string, env []string, args ...string) (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	dir := filepath.Join(cacheDir(), "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages run at the same time.
	lock, err := os.Create(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	// Several checkouts on one machine must not use each other's programs.
	path := filepath.Join(dir, fmt.Sprintf("%s-%08x", name, crc32.ChecksumIEEE(mod)))
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", path}, args...)...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
}

// A Daemon is the netyard daemon of a host.
type Daemon struct {
	*Service
	// Program is the binary that Start runs; empty: the one of Build.
	Program string
}

// Start starts the daemon and waits until it answers. The arguments are added to its command line, also for later
// starts.
func (d *Daemon) Start(args ...string) {
	t := d.node.report.TB()
	t.Helper()
	d.Launch(args...)
	d.WaitReady()
}

// Launch starts the daemon without waiting until it answers.
func (d *Daemon) Launch(args ...string) {
	t := d.node.report.TB()
	t.Helper()
	program := d.Program
	if program == "" {
		program = Build(t)
	}
	if err := install(program, filepath.Join(d.node.Dir, "bin", "netyard")); err != nil {
		t.Fatalf("install netyard on %s: %v", d.node.Name, err)
	}
	d.Args = append(d.Args, args...)
	d.Service.Launch()
}

// Restart is Stop and Start.
func (d *Daemon) Restart() {
	t := d.node.report.TB()
	t.Helper()
	d.Stop()
	d.Start()
}

// netyard declares the daemon of a node as a service.
func netyard(n *Node) *Daemon {
	s := n.Service("netyard",
		"netyard", "serve", "--state-dir", filepath.Join(n.Dir, "state"), "--run-dir", "/run/netyard",
		"--plugin-dir", "/run/docker/plugins", "--docker-host", "unix://"+filepath.Join(n.Dir, "docker.sock"))
	s.ready = func() error { return answers(n.Inside("/run/netyard/netyard.sock"), "/") }
	return &Daemon{Service: s}
}

// Netyard declares a daemon on a node without an engine, for the test to call directly. The test starts it; it is
// stopped at the end of the test.
func (n *Node) Netyard() *Daemon {
	t := n.report.TB()
	t.Helper()
	d := netyard(n)
	d.Args = append(d.Args, "--docker-host", "", "--containerd-address", "")
	t.Cleanup(func() {
		if !t.Failed() && d.Running() {
			d.Stop() // its exit code reports data races
		}
	})
	return d
}
