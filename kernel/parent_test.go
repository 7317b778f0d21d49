package kernel_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/lan"
)

// faults returns what is wrong with objects, in words.
func faults(t testing.TB, h *kerneltest.Host, objects ...core.Object) string {
	t.Helper()
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, f := range snap.Faults(objects) {
		said = append(said, f.Text)
	}
	alike(t, h, objects)
	return strings.Join(said, "; ")
}

// alike checks that a narrow view says the same about objects as one of all links.
func alike(t testing.TB, h *kerneltest.Host, objects []core.Object) {
	t.Helper()
	all, err := h.LinkSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	narrow, _, err := h.FaultsOf(objects)
	if want := all.Faults(objects); err != nil || !slices.Equal(narrow, want) {
		t.Errorf("a narrow view says %v %v, a view of all %v", narrow, err, want)
	}
}

// TestVLANShared: a VLAN link exists as long as any network wants it, even when a restarted daemon first removes a
// network.
func TestVLANShared(t *testing.T) {
	t.Parallel()
	kerneltest.Needs(t, "vlan")
	h := kerneltest.New(t)
	h.Peer(t, "eth0")
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	vlan := func(owner string) lan.VLAN {
		return lan.VLAN{Name: "eth0.50", Parent: lan.Parent{Name: "eth0"}, ID: 50, Owner: owner}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.Ensure(t.Context(), vlan("a"), vlan("b")))
	must(h.Remove(vlan("a")))
	must(h.Remove(vlan("a")))
	h.Sh(t, "ip link show eth0.50")
	h.Reopen(t)
	h.AddOwners(vlan("b"), vlan("c"))
	must(h.Remove(vlan("b")))
	h.Sh(t, "ip link show eth0.50")
	must(h.Remove(vlan("c")))
	if out, err := h.TrySh("ip link show eth0.50"); err == nil {
		t.Errorf("no network wants the link, and it exists: %s", out)
	}
	h.Sh(t, "ip link add link eth0 name eth0.50 type vlan id 50")
	must(h.Ensure(t.Context(), vlan("a")))
	must(h.Remove(vlan("a")))
	h.Sh(t, "ip link show eth0.50") // the admin's
}

// TestChildInSandbox: a link in a sandbox is found there: it is neither reported missing nor made again, and Remove
// deletes it there.
func TestChildInSandbox(t *testing.T) {
	t.Parallel()
	h, sandbox := kerneltest.New(t), kerneltest.New(t)
	h.Peer(t, "eth0")
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	c := lan.Child{
		Name: "nyp-eeeeeeeeeee", Alias: "netyard:n:e",
		Parent: lan.Parent{Name: "eth0"}, Kind: "macvlan", Mode: "bridge",
		Sandbox: sandbox.Path(),
	}
	plugged := func(want bool) {
		t.Helper()
		if got, err := h.Plugged(c); got != want || err != nil {
			t.Errorf("plugged: %v %v, want %v", got, err, want)
		}
	}
	if err := h.Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	plugged(false)
	sandbox.Take(t, h, c.Name)
	plugged(true)
	for range 2 {
		if err := h.Ensure(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := h.TrySh("ip link show " + c.Name); err == nil {
		t.Errorf("a link that a sandbox has was made again: %s", out)
	}
	if said := faults(t, h, c); said != "" {
		t.Errorf("a fault without a cause: %s", said)
	}
	sandbox.Sh(t, "ip link del eth0")
	if said := faults(t, h, c); said != "link nyp-eeeeeeeeeee is missing from its sandbox" {
		t.Errorf("for a missing link the fault is %q", said)
	}
	if err := h.Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	sandbox.Take(t, h, c.Name)
	for range 2 {
		if err := h.Remove(c); err != nil {
			t.Fatal(err)
		}
	}
	plugged(false)
	c.Sandbox = filepath.Join(t.TempDir(), "gone")
	if said := faults(t, h, c); said != "" {
		t.Errorf("of a sandbox that does not exist: %s", said)
	}
	if err := h.Remove(c); err != nil {
		t.Error(err)
	}
}

// TestWirelessLink: sysfs tells a wireless link; netlink does not.
func TestWirelessLink(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add wlan0 type veth peer name eth0")
	dir := t.TempDir()
	h.LookAt(dir)
	if err := os.MkdirAll(filepath.Join(dir, "wlan0", "phy80211"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"wlan0": true, "eth0": false} {
		if link, ok, err := h.FindLink(name); !ok || err != nil || link.Wireless != want {
			t.Errorf("%s: %v %v %v", name, link, ok, err)
		}
	}
}
