// Package lab makes hosts out of namespaces, each with a Docker engine of its own, a netyard daemon and a network
// around it, so that a test reads like the commands that a user types:
//
//	h := lab.New(t, lab.Engine285)
//	h.Netyard.Start()
//	h.Docker("network create -d netyard-bridge web")
//	h.Run("c1", "--network web")
//	h.Run("c2", "--network web -p 8080:80")
//	h.Ping("c1", "c2")
//	h.In("c2").Listen("tcp", ":80")
//	h.Outside.Dial("tcp", h.IP+":8080")
//
// A host is real as far as the engine and the daemon can tell: they have the network, the processes and /run of a
// machine that runs nothing else, the disk outlives a power loss, and each boot has its own id. Several hosts can
// share a LAN (NewLAN, On). Whatever a test starts ends with it, even if the test is killed.
//
// A test that cannot go on fails; what it typed and the logs of its services are printed then. NETYARD_LAB_HOLD=10m
// keeps the hosts of a failed test for that long, and says how to get into them.
package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A Host is a node with a Docker engine, and the netyard daemon for the test to start.
type Host struct {
	*Node
	// Engine is the version of Docker that it runs.
	Engine Engine
	// LAN is what its eth0 is connected to, and Outside the machine on the other side, which is also its gateway.
	LAN     *LAN
	Outside *Node
	// Dockerd is the engine. It is running when New returns, unless the host has none, see NoEngine.
	Dockerd *Service
	// Netyard is the daemon. It is not running until the test starts it.
	Netyard *Daemon
	// Containerd is one beside the engine; nil until StartContainerd.
	Containerd *Service

	noEngine bool
	base     *Snapshot // the host before the test did anything
	back     []*Service
}

// An Option changes how New makes a host.
type Option func(*options)

type options struct {
	name string
	lan  *LAN
	args []string
	bare bool
}

// On puts the host on a LAN that is there already, so that several hosts see each other.
func On(l *LAN) Option { return func(o *options) { o.lan = l } }

// Name gives the host another name than "host".
func Name(name string) Option { return func(o *options) { o.name = name } }

// DockerdArgs adds arguments to the command line of dockerd: "--live-restore". They can be changed later in
// Host.Dockerd.Args.
func DockerdArgs(args ...string) Option {
	return func(o *options) { o.args = append(o.args, args...) }
}

// NoEngine leaves out the engine, and netyard is told that there is none: for a test of what others ask netyard for.
// The host is that of the engine all the same, with the containerd and the tools that it has.
func NoEngine() Option { return func(o *options) { o.bare = true } }

// New boots a host with the engine. The test is skipped if the engine is not on this machine. When the test ends, what
// the daemon left behind is looked for (see CheckLeftovers), and the host is removed.
func New(t testing.TB, e Engine, opts ...Option) *Host {
	t.Helper()
	needRoot(t)
	e.need(t)
	if !machine.host(t) {
		t.Fatal("lab: the test has more hosts than it asked for places: say lab.Hosts before the first")
	}
	t.Cleanup(func() { machine.leave(t) })
	began := time.Now()
	o := options{name: "host"}
	for _, opt := range opts {
		opt(&o)
	}
	r := &reporter{tb: t}
	if o.lan == nil {
		o.lan = newLAN(r)
	}
	h := &Host{
		Engine: e, noEngine: o.bare, LAN: o.lan, Outside: o.lan.Outside,
		Node: newNode(r, nodeConfig{
			name: o.name, root: e.root(), dns: o.lan.Outside.IP, bridgeNF: true,
			forward: e.Nftables(), // such an engine does not start without, and leaves it to the admin
		}),
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "daemon.json"), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.LAN.Plug(h.Node)
	h.Dockerd, h.Netyard = dockerd(h.Node, e, o.args), netyard(h.Node)
	h.Netyard.onReady = h.remember
	t.Cleanup(h.end)
	if h.noEngine {
		h.Netyard.Args = append(h.Netyard.Args, "--docker-host", "")
		h.Sh("sysctl -qw net.ipv4.ip_forward=1") // as the engine would; else netyard does, with rules that stay
		t.Logf("%s is up: no engine, and the system of docker %s, %v", h.Name, e, time.Since(began).Round(10*time.Millisecond))
		return h
	}
	h.Dockerd.Start()
	if err := loadImage(h); err != nil {
		t.Fatalf("lab: load the image: %v", err)
	}
	h.Dockerd.onReady = h.remember
	t.Logf("%s is up: docker %s, %v", h.Name, e, time.Since(began).Round(10*time.Millisecond))
	return h
}

// Use makes a subtest the one that the host reports to, until the subtest ends. A subtest that works on its parent's
// host must say so: it would fail its parent otherwise, in the wrong goroutine. The subtests of one host cannot be
// parallel.
func (h *Host) Use(t testing.TB) {
	t.Helper()
	h.report.lend(t)
	if lan := h.Outside.report; lan != h.report {
		lan.lend(t)
	}
}

// PowerLoss takes the power from the host: every process is gone at once, and with them the network and /run. What is
// on its disk stays. Boot brings it back.
func (h *Host) PowerLoss() {
	h.report.TB().Helper()
	h.back = nil
	for _, s := range []*Service{h.Netyard.Service, h.Dockerd, h.Containerd} {
		if s != nil && s.Running() {
			h.back = append(h.back, s)
		}
	}
	h.powerOff()
}

// Boot is PowerOn, and then starts what was running when the power went: netyard and then the engine, and containerd.
func (h *Host) Boot() {
	h.report.TB().Helper()
	h.PowerOn()
	for _, s := range h.back {
		s.Start()
	}
}

// PowerOn gives the host its power back, with a new boot id, and starts nothing yet.
func (h *Host) PowerOn() {
	t := h.report.TB()
	t.Helper()
	if h.On() {
		t.Fatalf("lab: %s is on", h.Name)
	}
	h.powerOn(t)
}

// remember keeps what the host was like before the test did anything: when both daemons answered for the first time.
func (h *Host) remember() {
	if h.base == nil && (h.Dockerd.Running() || h.noEngine) && h.Netyard.Running() {
		h.base = h.Snapshot()
	}
}

// CheckLeftovers removes all containers and networks, and fails the test if the host is then not as it was before
// there were any. New does this at the end of each test that has both daemons running then.
func (h *Host) CheckLeftovers() {
	t := h.report.TB()
	t.Helper()
	if h.base == nil {
		t.Fatalf("lab: %s has never had both daemons running", h.Name)
	}
	h.RemoveAll()
	h.SameAs(h.base)
}

// end is the last thing on a host before its power goes.
func (h *Host) end() {
	t := h.report.TB()
	t.Helper()
	h.hold(t)
	if t.Failed() || !h.Netyard.Running() {
		return
	}
	if h.Dockerd.Running() || h.noEngine {
		h.CheckLeftovers()
	}
	h.Netyard.Stop() // its exit code tells of data races
}

// hold keeps the host of a failed test for somebody to look at.
func (h *Host) hold(t testing.TB) {
	t.Helper()
	wait, err := time.ParseDuration(os.Getenv("NETYARD_LAB_HOLD"))
	if err != nil || !t.Failed() || !h.On() {
		return
	}
	// Not t.Log: it shows nothing before the test has ended.
	fmt.Fprintf(os.Stderr, "lab: %s failed; for %v there is:\n  nsenter -t %d -a env PATH=%s/bin:$PATH sh\n"+
		"  docker -H unix://%[4]s/docker.sock ps\n", t.Name(), wait, h.initPID(), h.Dir)
	time.Sleep(wait)
}
