package kernel_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel"
	"netyard/kernel/kerneltest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a ruleset with a file of testdata. What is only there where the kernel follows connections on bridges has a file of
// its own.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if strings.Contains(got, "@closed_in4_bridged") {
		more, err := os.ReadFile(filepath.Join("testdata", "bridge-conntrack.nft"))
		if err != nil {
			t.Fatal(err)
		}
		without := strings.Replace(got, string(more), "", 1)
		if without == got {
			t.Errorf("the rules of bridge-conntrack.nft are not in\n%s", got)
		}
		got = without
	}
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got+"\n"); d != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, d)
	}
}

func elements() []kernel.Object {
	return []kernel.Object{
		kernel.InterfaceIn(kernel.Bridges, "nyb-a"), kernel.InterfaceIn(kernel.Bridges, "nyb-b"),
		kernel.InterfaceIn(kernel.Internal, "nyb-b"), kernel.InterfaceIn(kernel.Talk, "nyb-a", "nyb-a"),
		kernel.SubnetIn(kernel.NAT4, netip.MustParsePrefix("10.1.0.0/24")),
		kernel.SubnetIn(kernel.NAT4, netip.MustParsePrefix("10.1.1.0/24")),
		kernel.SubnetIn(kernel.NAT6, netip.MustParsePrefix("fd00:1::/64")),
	}
}

func TestRuleset(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	empty := h.Sh(t, "nft list ruleset")
	golden(t, "ruleset-empty.nft", empty)

	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	full := h.Sh(t, "nft list ruleset")
	golden(t, "ruleset.nft", full)

	// One by one or all at once, before the load or after it: the same table.
	h.Reopen(t)
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list ruleset"); got != full {
		t.Errorf("collecting before the load changed the table:\n%s", cmp.Diff(full, got))
	}
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list ruleset"); got != full {
		t.Errorf("a fresh load differs from the sum of changes:\n%s", cmp.Diff(full, got))
	}
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if faults, strays := snap.Faults(elements()), snap.Strays(elements()); len(faults)+len(strays) > 0 {
		t.Errorf("audit of what is as wanted: %v %v", faults, strays)
	}

	if err := h.Remove(elements()...); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list ruleset"); got != empty {
		t.Errorf("removing everything left something:\n%s", cmp.Diff(empty, got))
	}
	if err := h.UnloadFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list ruleset"); got != "" {
		t.Errorf("unload left %s", got)
	}
}
