// Package modetest is the contract of a mode as one test that every mode passes.
package modetest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// A Case is one network and an endpoint of it, in a mode.
type Case struct {
	New      modes.New
	Network  modes.Network
	Endpoint modes.Endpoint
	// Fabric is the cluster that the host is in; nil: it is in none.
	Fabric func(h *kerneltest.Host) modes.Fabric
	// Setup prepares the host; nil for nothing.
	Setup func(t *testing.T, h *kerneltest.Host)
}

// Run checks the contract on a kernel of its own.
func Run(t *testing.T, c Case) {
	t.Helper()
	h := kerneltest.New(t)
	// What stays for good when a network first needs it is not the mode's to take back.
	h.Sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	if c.Setup != nil {
		c.Setup(t, h)
	}
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	var fabric modes.Fabric
	if c.Fabric != nil {
		fabric = c.Fabric(h)
	}
	m := On(h.Kernel, c.New, fabric)
	n, e := c.Network, c.Endpoint
	before := Settled(t, h)
	var err error
	n.Settled, err = m.Settle(t.Context(), n)
	must(t, "Settle", err)
	same(t, "Settle touched the kernel", before, Settled(t, h))
	n.Phase = modes.Ready
	again, err := m.Settle(t.Context(), n)
	must(t, "Settle of what is on record", err)
	if d := cmp.Diff(n.Settled, again); d != "" {
		t.Errorf("Settle decided a second time:\n%s", d)
	}

	must(t, "Detach of what is not there", m.Detach(n, e))
	must(t, "Down of what is not there", m.Down(n))
	same(t, "undoing what is not there changed something", before, Settled(t, h))

	must(t, "Up", m.Up(t.Context(), n))
	up := Settled(t, h)
	audit(t, h, m, n)
	must(t, "Up again", m.Up(t.Context(), n))
	same(t, "Up twice is not once", up, Settled(t, h))

	link, err := m.Attach(t.Context(), n, e)
	must(t, "Attach", err)
	attached := Settled(t, h)
	audit(t, h, m, n, e)
	twice, err := m.Attach(t.Context(), n, e)
	must(t, "Attach again", err)
	if d := cmp.Diff(link, twice, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("Attach twice gives two links:\n%s", d)
	}
	same(t, "Attach twice is not once", attached, Settled(t, h))

	must(t, "Detach", m.Detach(n, e))
	must(t, "Detach again", m.Detach(n, e))
	same(t, "Detach left something", up, Settled(t, h))
	must(t, "Down", m.Down(n))
	must(t, "Down again", m.Down(n))
	same(t, "Down left something", before, Settled(t, h))
}

// Settled returns the host's dump once it stays the same: the kernel gives a new link its IPv6 address some time later.
func Settled(t *testing.T, h *kerneltest.Host) string {
	t.Helper()
	const looks, pause = 100, 50 * time.Millisecond
	addrs := ""
	for range looks {
		now := h.Sh(t, "ip -o -6 addr")
		if now == addrs && !strings.Contains(now, " tentative") {
			break
		}
		addrs = now
		time.Sleep(pause)
	}
	return h.Dump(t)
}

// audit checks that the mode's objects exist, and no others of netyard's.
func audit(t *testing.T, h *kerneltest.Host, m Live, n modes.Network, es ...modes.Endpoint) {
	t.Helper()
	snap, err := h.Snapshot()
	must(t, "Snapshot", err)
	for _, f := range snap.Faults(m.Objects(n, es...)) {
		t.Errorf("a fault where all is well: %s", f.Text)
	}
	for _, s := range snap.Strays(m.Objects(n, es...)) {
		t.Errorf("a stray where all is wanted: %s", s.Text)
	}
}

func must(t *testing.T, act string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", act, err)
	}
}

func same(t *testing.T, complaint, want, got string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s:\n%s", complaint, d)
	}
}
