// Package lab makes hosts of namespaces, each with a Docker engine, a netyard daemon and a network around it, so that a
// test reads like the commands that a user types:
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
// To the engine and the daemon a host looks like a real machine: they see the network, the processes and /run of a
// machine that runs nothing else, the disk survives a power loss, and each boot has its own ID. Several hosts can share
// a LAN (NewLAN, On). Whatever a test starts ends with it, even if the test is killed.
//
// When a test fails, its commands and the logs of its services are printed. NETYARD_LAB_HOLD=10m keeps the hosts of a
// failed test for that long, and prints how to enter them.
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
	// LAN is the LAN of its eth0, and Outside that LAN's outside node, which is the host's gateway.
	LAN     *LAN
	Outside *Node
	// Dockerd is the engine. It runs when New returns, unless the host has none, see NoEngine.
	Dockerd *Service
	// Netyard is the daemon, which the test starts.
	Netyard *Daemon
	// Containerd is a containerd beside the engine; nil until StartContainerd.
	Containerd *Service

	noEngine bool
	base     *Snapshot // the state of the host before the test did anything
	stopped  []*Service
}

// An Option changes how New makes a host.
type Option func(*options)

type options struct {
	name     string
	lan      *LAN
	args     []string
	noEngine bool
}

// On puts the host on an existing LAN, so that several hosts reach each other.
func On(l *LAN) Option { return func(o *options) { o.lan = l } }

// Name gives the host another name than "host".
func Name(name string) Option { return func(o *options) { o.name = name } }

// DockerdArgs adds arguments such as "--live-restore" to the command line of dockerd. They can be changed later in
// Host.Dockerd.Args.
func DockerdArgs(args ...string) Option {
	return func(o *options) { o.args = append(o.args, args...) }
}

// NoEngine makes a host without an engine, and configures netyard accordingly, for tests of other clients of netyard.
// The host still has the root of the engine's release, with its containerd and tools.
func NoEngine() Option { return func(o *options) { o.noEngine = true } }

// New boots a host with an engine. The test is skipped if the engine is not on this machine. At the end of the test,
// CheckLeftovers looks for what the daemon left behind, and the host is removed.
func New(t testing.TB, e Engine, opts ...Option) *Host {
	t.Helper()
	NeedRoot(t)
	e.need(t)
	if !hostLimit.addHost(t) {
		t.Fatal("lab: the test has more hosts than slots; call lab.Hosts before the first host")
	}
	t.Cleanup(func() { hostLimit.removeHost(t) })
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
		Engine: e, noEngine: o.noEngine, LAN: o.lan, Outside: o.lan.Outside,
		Node: newNode(r, nodeConfig{
			name: o.name, root: e.root(), dns: o.lan.Outside.IP, bridgeNF: true,
			forward: e.Nftables(), // such an engine does not start without, and does not enable it
		}),
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "daemon.json"), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.LAN.Plug(h.Node)
	h.Dockerd, h.Netyard = dockerd(h.Node, e, o.args), netyard(h.Node)
	h.Netyard.onReady = h.takeBase
	t.Cleanup(h.end)
	if h.noEngine {
		h.Netyard.Args = append(h.Netyard.Args, "--docker-host", "")
		h.Sh("sysctl -qw net.ipv4.ip_forward=1") // as the engine would; otherwise netyard does, with rules that stay
		t.Logf("%s is up after %v: no engine, root of docker %s", h.Name, time.Since(began).Round(10*time.Millisecond),
			e)
		return h
	}
	h.Dockerd.Start()
	if err := loadImage(h); err != nil {
		t.Fatalf("lab: load the image: %v", err)
	}
	h.Dockerd.onReady = h.takeBase
	t.Logf("%s is up after %v: docker %s", h.Name, time.Since(began).Round(10*time.Millisecond), e)
	return h
}

// Use makes the host report failures to a subtest until the subtest ends. A subtest that uses its parent's host must
// call it: otherwise it would fail its parent from the wrong goroutine. Subtests of one host cannot be parallel.
func (h *Host) Use(t testing.TB) {
	t.Helper()
	h.report.redirect(t)
	if lan := h.Outside.report; lan != h.report {
		lan.redirect(t)
	}
}

// PowerLoss powers the host off: all processes end at once, and with them the network and /run. Its disk stays. Boot
// brings it back.
func (h *Host) PowerLoss() {
	h.report.TB().Helper()
	h.stopped = nil
	for _, s := range []*Service{h.Netyard.Service, h.Dockerd, h.Containerd} {
		if s != nil && s.Running() {
			h.stopped = append(h.stopped, s)
		}
	}
	h.powerOff()
}

// Boot powers the host on, and then starts what was running at the power loss: netyard, the engine and containerd, in
// this order.
func (h *Host) Boot() {
	h.report.TB().Helper()
	h.PowerOn()
	for _, s := range h.stopped {
		s.Start()
	}
}

// PowerOn powers the host on, with a new boot ID, and starts no services.
func (h *Host) PowerOn() {
	t := h.report.TB()
	t.Helper()
	if h.On() {
		t.Fatalf("lab: %s is on", h.Name)
	}
	h.powerOn(t)
}

// takeBase takes a snapshot of the host before the test does anything: when both daemons answer for the first time.
func (h *Host) takeBase() {
	if h.base == nil && (h.Dockerd.Running() || h.noEngine) && h.Netyard.Running() {
		h.base = h.Snapshot()
	}
}

// CheckLeftovers removes all containers and networks, and fails the test unless the host is then as it was before there
// were any. New calls it at the end of each test, if both daemons are running then.
func (h *Host) CheckLeftovers() {
	t := h.report.TB()
	t.Helper()
	if h.base == nil {
		t.Fatalf("lab: %s has never had both daemons running", h.Name)
	}
	h.RemoveAll()
	h.SameAs(h.base)
}

// end checks the host at the end of the test, before it is powered off.
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
	h.Netyard.Stop() // its exit code reports data races
}

// hold keeps the host of a failed test for NETYARD_LAB_HOLD, for a developer to look at.
func (h *Host) hold(t testing.TB) {
	t.Helper()
	wait, err := time.ParseDuration(os.Getenv("NETYARD_LAB_HOLD"))
	if err != nil || !t.Failed() || !h.On() {
		return
	}
	// t.Log would print only after the test has ended.
	fmt.Fprintf(os.Stderr, "lab: %s failed; its host is kept for %v:\n  nsenter -t %d -a env PATH=%s/bin:$PATH sh\n"+
		"  docker -H unix://%[4]s/docker.sock ps\n", t.Name(), wait, h.initPID(), h.Dir)
	time.Sleep(wait) // for the developer
}
