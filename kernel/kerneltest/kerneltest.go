// Package kerneltest gives each test a network namespace of its own: a real kernel, with only lo, that ends with the
// test. It also crafts, sends and captures packets.
package kerneltest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"netyard/kernel"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/kernel/sandbox"
)

// A Host is a network namespace, and a Kernel for it.
type Host struct {
	*kernel.Kernel
	ns netns.NsHandle
}

// New makes a namespace. It skips the test unless that runs as root, or in a user namespace (unshare -rn).
func New(t testing.TB) *Host {
	t.Helper()
	ns := newNS(t)
	h := &Host{ns: ns}
	h.Sh(t, "ip link set lo up")
	h.Reopen(t)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close kernel: %v", err)
		}
	})
	return h
}

// Reopen opens a new Kernel for the namespace, which remembers nothing, as after a restart of the daemon. It closes the
// old one.
func (h *Host) Reopen(t testing.TB) {
	t.Helper()
	k, err := kernel.OpenAt(slog.New(slog.NewTextHandler(testWriter{t}, nil)), int(h.ns))
	if err != nil {
		t.Fatal(err)
	}
	if h.Kernel != nil {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		waitForForks()
	}
	h.Kernel = k
}

// waitForForks waits until the children that other tests are starting run their own programs. Until then they have
// copies of all files of this process, including those that it has closed. The kernel closes the copies a moment after
// it lets the parent continue (begin_new_exec, fs/exec.c), so one may be open a little longer; for sockets see
// Released.
func waitForForks() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
}

// Released waits until no socket has any of the ports, after a test has closed them: a child that another test is
// starting may have copies until it runs its own program. list is that of a Kernel or a Sandbox.
func Released(t testing.TB, list func() ([]sandbox.Listener, error), ports ...uint16) {
	t.Helper()
	var left []sandbox.Listener
	const limit, pause = time.Minute, time.Millisecond
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(pause) {
		all, err := list()
		if err != nil {
			t.Fatal(err)
		}
		left = slices.DeleteFunc(all, func(l sandbox.Listener) bool { return !slices.Contains(ports, l.Port) })
		if len(left) == 0 {
			return
		}
	}
	t.Fatalf("closed sockets are still open: %+v", left)
}

// Watched lets the Kernel watch its namespace until the test ends, and waits for the end of Watch before the Kernel is
// closed: another test may get the file descriptors of a closed Kernel.
func (h *Host) Watched(t testing.TB) {
	t.Helper()
	k := h.Kernel
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = k.Watch(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
}

// NeedsRoot skips the test where no namespaces can be made. New does, too; a test that calls New in subtests, and looks
// at how they end, has to be skipped as a whole.
func NeedsRoot(t testing.TB) {
	t.Helper()
	newNS(t)
}

// Needs skips the test if the kernel lacks one of these kinds of links that need a parent: vlan, ipvlan, macvlan. Then
// scripts/test requires that the test runs in the guest kernel.
func Needs(t testing.TB, kinds ...string) {
	t.Helper()
	h := New(t)
	for _, kind := range kinds {
		if !h.HasKind(kind) {
			t.Skipf("this kernel has no %s", kind)
		}
	}
}

// Path returns a path that refers to the namespace, like the path of a sandbox that an engine gives.
func (h *Host) Path() string { return fmt.Sprintf("/proc/self/fd/%d", int(h.ns)) }

// Pings reports whether an address answers. If it should, it gets several tries, since neighbours have to be resolved.
func (h *Host) Pings(addr string, should bool) bool {
	cmd := "ping -c 1 -W 1 " + addr
	if should {
		cmd = "for i in 1 2 3 4 5 6; do " + cmd + " && exit; done; exit 1"
	}
	_, err := h.TrySh(cmd)
	return err == nil
}

// WireGuardPeer returns the only peer of the tunnel between hosts. It fails the test if there is not exactly one.
func (h *Host) WireGuardPeer(t testing.TB) (p wgtypes.Peer) {
	t.Helper()
	err := h.Do(func() error {
		c, err := wgctrl.New()
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // nothing is written
		dev, err := c.Device(core.TunnelName)
		if err == nil && len(dev.Peers) != 1 {
			err = fmt.Errorf("it has %d peers", len(dev.Peers))
		}
		if err == nil {
			p = dev.Peers[0]
		}
		return err
	})
	if err != nil {
		t.Fatalf("look at %s: %v", core.TunnelName, err)
	}
	return p
}

func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	runtime.LockOSThread() // netns.Get opens a path with the thread's ID, and that thread must still exist
	self, err := netns.Get()
	runtime.UnlockOSThread()
	if err == nil {
		err = core.Inside(int(self), func() (err error) { // netns.New moves the thread; Inside moves it back
			ns, err = netns.New()
			return err
		})
		_ = self.Close()
	}
	if err != nil && os.Geteuid() != 0 {
		t.Skipf("needs root, or a user namespace (unshare -rn): make a network namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Peer makes another namespace, connected to this one by a veth pair: link name on this side, eth0 on the other.
func (h *Host) Peer(t testing.TB, name string) *Host {
	t.Helper()
	p := New(t)
	h.Sh(t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns /proc/%d/fd/%d && ip link set %s up",
		name, os.Getpid(), int(p.ns), name))
	p.Sh(t, "ip link set eth0 up")
	// The kernel reports the carrier a while later.
	h.Sh(t, "for i in $(seq 500); do ip link show "+name+" | grep -q 'state UP' && exit; sleep 0.02; done; exit 1")
	return p
}

// Take moves a link of another namespace into this one and renames it eth0, as an engine does for a sandbox. Then it
// runs cmds inside.
func (h *Host) Take(t testing.TB, from *Host, link string, cmds ...string) {
	t.Helper()
	from.Sh(t, fmt.Sprintf("ip link set %s netns /proc/%d/fd/%d", link, os.Getpid(), int(h.ns)))
	h.Sh(t, "ip link set "+link+" name eth0 && ip link set eth0 up")
	for _, c := range cmds {
		h.Sh(t, c)
	}
}

// Give moves a link of this namespace to another one, without renaming it.
func (h *Host) Give(t testing.TB, to *Host, link string) {
	t.Helper()
	h.Sh(t, fmt.Sprintf("ip link set %s netns /proc/%d/fd/%d", link, os.Getpid(), int(to.ns)))
}

// Sh runs a shell command inside and returns its output. If the command fails, the test ends.
func (h *Host) Sh(t testing.TB, cmd string) string {
	t.Helper()
	out, err := h.TrySh(cmd)
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return out
}

// TrySh runs a command as Sh does, and returns its error.
func (h *Host) TrySh(cmd string) (string, error) {
	var out bytes.Buffer
	err := core.Inside(int(h.ns), func() error {
		c := exec.Command("sh", "-c", cmd)
		c.Stdout, c.Stderr = &out, &out
		return c.Run()
	})
	return strings.TrimSpace(out.String()), err
}

// Dump returns everything that a test could leave behind: links, addresses, routes, rules, NDP proxies and nftables. It
// leaves out what changes on its own: the states of links and bridge ports that follow the carrier, which the kernel
// updates with a delay (net/core/link_watch.c), and the kernel's routes to its own IPv6 addresses, which it adds with a
// delay (addrconf_dad_work, net/ipv6/addrconf.c).
func (h *Host) Dump(t testing.TB) string {
	t.Helper()
	return Normal(h.Sh(t, strings.Join([]string{
		"ip -d -o link",
		"ip -o addr",
		"ip -4 route show table all",
		"ip -6 route show table all | grep -v 'table local proto kernel'",
		"ip rule",
		"ip -6 neigh show proxy",
		"nft list ruleset",
		"bridge fdb show | grep -v permanent || true",
	}, "; ")))
}

// volatile matches the parts of a line that differ between two dumps of the same state. Most begin with a literal,
// which is found fast: one expression of all alternatives would take most of the time of a dump.
//
//nolint:gochecknoglobals // compiled once, as one expression would be
var volatile = []*regexp.Regexp{
	regexp.MustCompile(`valid_lft \S+`), regexp.MustCompile(`preferred_lft \S+`),
	regexp.MustCompile(`packets \d+ bytes \d+`), regexp.MustCompile(`@if\d+`), regexp.MustCompile(`^\d+: `),
	regexp.MustCompile(`link-netnsid \d+`), regexp.MustCompile(`linkdown`), regexp.MustCompile(`tentative`),
	regexp.MustCompile(`NO-CARRIER,`), regexp.MustCompile(`,LOWER_UP`),
	regexp.MustCompile(`state (UNKNOWN|UP|DOWN|LOWERLAYERDOWN|disabled|forwarding) `),
	regexp.MustCompile(`tso_max_(size|segs) \d+`),
}

// timers matches the timers of bridges.
var timers = regexp.MustCompile(`(gc|hello|tcn|topology_change|forward_delay)_timer\s+\S+`)

// kernelRoute matches the routes that the kernel adds for each address; for IPv6 it does so with a delay.
var kernelRoute = regexp.MustCompile(`^(local|anycast|broadcast|multicast) .*proto kernel`)

// Normal removes from a dump what differs between two dumps of the same state: indexes of links, counters, timers.
func Normal(dump string) string {
	lines := strings.Split(dump, "\n")
	for i, l := range lines {
		for _, v := range volatile {
			l = v.ReplaceAllString(l, "")
		}
		if strings.Contains(l, "_timer") {
			l = timers.ReplaceAllString(l, "")
		}
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" || kernelRoute.MatchString(l) })
	return strings.Join(lines, "\n")
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// Do runs f on a thread inside the namespace.
func (h *Host) Do(f func() error) error { return core.Inside(int(h.ns), f) }

// NS returns an open file descriptor of the namespace.
func (h *Host) NS() int { return int(h.ns) }

// NeedsWireGuard skips the test if the kernel has no WireGuard. Then scripts/test requires that the test runs in the
// guest kernel.
func NeedsWireGuard(t testing.TB) {
	t.Helper()
	if err := overlay.CheckWireGuard(New(t).Handle); err != nil {
		t.Skip(err)
	}
}

// Sleep starts a process that does nothing, in a host's namespace, or in that of the test if in is nil. The process is
// killed when the test ends.
func Sleep(t testing.TB, in *Host) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "1d")
	start := c.Start
	if in != nil {
		start = func() error { return in.Do(c.Start) }
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}
