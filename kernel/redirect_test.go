package kernel_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/ports"
)

// pathOf returns a path that stands for a namespace, for other processes too.
func pathOf(h *kerneltest.Host) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.NS()) }

func redirect(sandbox *kerneltest.Host) ports.Redirect {
	own, own6 := netip.MustParseAddr("192.168.7.9"), netip.MustParseAddr("2001:db8:7::9")
	return ports.Redirect{Endpoint: "eeeeeeeeeeee1111", Sandbox: pathOf(sandbox), Ports: []ports.Publication{
		{Proto: "tcp", Host: own, Port: 443, Count: 1, To: own, ToPort: 8080},
		{Proto: "sctp", Host: own6, Port: 7000, Count: 600, To: own6, ToPort: 8000},
	}}
}

func faultsOf(t *testing.T, h *kerneltest.Host, o core.Object) string {
	t.Helper()
	snap, err := h.LinkSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(snap.Faults([]core.Object{o}))
}

// TestRedirect shows that the table in a sandbox is made, checked, read back and removed, without affecting the table
// of another endpoint.
func TestRedirect(t *testing.T) {
	t.Parallel()
	h, sandbox := kerneltest.New(t), kerneltest.New(t)
	before := sandbox.Dump(t)
	r := redirect(sandbox)
	other := ports.Redirect{Endpoint: "ffffffffffff1111", Sandbox: pathOf(sandbox), Ports: r.Ports[:1]}
	missing := "redirect of 192.168.7.9:443 to 8080/tcp, [2001:db8:7::9]:7000 to 8000/sctp in sandbox " +
		pathOf(sandbox) + " is missing"
	if got := faultsOf(t, h, r); !strings.Contains(got, missing) {
		t.Errorf("before it is made: %s", got)
	}
	var handle string
	for range 2 {
		if err := h.Ensure(t.Context(), other, r); err != nil {
			t.Fatal(err)
		}
		now := sandbox.Sh(t, "nft -a list table inet netyard-eeeeeeeeeeee | head -1")
		if handle != "" && now != handle {
			t.Errorf("a table without faults was made again: %s, %s", handle, now)
		}
		handle = now
	}
	if got := faultsOf(t, h, r); got != "[]" {
		t.Errorf("after it was made: %s", got)
	}
	got, err := ports.Redirected(pathOf(sandbox), r.Endpoint)
	last := ports.Publication{
		Proto: "sctp", Host: r.Ports[1].Host, Port: 7599, Count: 1, To: r.Ports[1].To, ToPort: 8599,
	}
	if err != nil || len(got) != 601 || !slices.Contains(got, r.Ports[0]) || !slices.Contains(got, last) {
		t.Errorf("read back: %d, %v, %v", len(got), got[:min(len(got), 3)], err)
	}
	for range 2 {
		if err := h.Remove(r); err != nil {
			t.Fatal(err)
		}
	}
	if left := sandbox.Sh(t, "nft list tables"); left != "table inet netyard-ffffffffffff" {
		t.Errorf("after one endpoint was removed: %s", left)
	}
	if err := h.Remove(other); err != nil {
		t.Fatal(err)
	}
	if after := sandbox.Dump(t); after != before {
		t.Errorf("something is left: %s", after)
	}
	gone := r
	gone.Sandbox = t.TempDir() + "/gone" // not made, and not reported as missing
	if err := h.Ensure(t.Context(), gone); err != nil {
		t.Error(err)
	}
	if err := h.Remove(gone); err != nil {
		t.Error(err)
	}
}

// TestRedirectRestored shows that whatever is deleted in a sandbox is reported as missing, and made again.
func TestRedirectRestored(t *testing.T) {
	t.Parallel()
	h, sandbox := kerneltest.New(t), kerneltest.New(t)
	r := redirect(sandbox)
	if err := h.Ensure(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	for what, cmd := range map[string]string{
		"element": "nft delete element inet netyard-eeeeeeeeeeee to_one4 '{ 192.168.7.9 . tcp . 443 }'",
		"rule":    "nft flush chain inet netyard-eeeeeeeeeeee prerouting",
		"table":   "nft delete table inet netyard-eeeeeeeeeeee",
	} {
		sandbox.Sh(t, cmd)
		if got := faultsOf(t, h, r); !strings.Contains(got, "is missing") {
			t.Errorf("%s deleted: %s", what, got)
		}
		if err := h.Ensure(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if got := faultsOf(t, h, r); got != "[]" {
			t.Errorf("%s restored: %s", what, got)
		}
	}
}
