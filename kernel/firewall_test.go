package kernel_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	klan "netyard/kernel/lan"
	"netyard/kernel/nft"
	"netyard/kernel/overlay"
	"netyard/kernel/ports"
)

// sealed matches the rule whose comment changes with the ruleset.
var sealed = regexp.MustCompile(`accept comment "[0-9a-f]{16}"`)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a ruleset with a file in testdata. Rules that exist only where the kernel tracks connections on
// bridges are in a file of their own, and are compared with that.
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
	got = sealed.ReplaceAllString(got, `accept comment "…"`)
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

func elements() []core.Object {
	web, web6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	var published []core.Object
	for _, p := range []ports.Publication{
		{Proto: "tcp", Host: netip.IPv4Unspecified(), Port: 8080, Count: 1, To: web, ToPort: 80},
		{Proto: "tcp", Host: netip.IPv6Unspecified(), Port: 8080, Count: 1, To: web6, ToPort: 80},
		{Proto: "udp", Host: netip.MustParseAddr("127.0.0.1"), Port: 53, Count: 1, To: web, ToPort: 53},
		{Proto: "tcp", Host: netip.IPv6Loopback(), Port: 443, Count: 1, To: web6, ToPort: 443},
		{Proto: "sctp", Host: netip.MustParseAddr("192.0.2.1"), Port: 7000, Count: 2, To: web, ToPort: 8000},
		{Proto: "udp", Host: netip.IPv4Unspecified(), Port: 10000, Count: 10000, To: web, ToPort: 10000},
		{Proto: "udp", Host: netip.MustParseAddr("2001:db8::1"), Port: 10000, Count: 10000, To: web6, ToPort: 10000},
	} {
		for _, e := range p.Elements() {
			published = append(published, e)
		}
	}
	for _, e := range ports.RestrictClients("nyb-a", []netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32"),
	}, []string{"eth1"}) {
		published = append(published, e)
	}
	for _, p := range []ports.OpenPort{
		{Proto: "tcp", Addr: netip.MustParseAddr("10.1.2.2"), Port: 80, Count: 1},
		{Proto: "udp", Addr: netip.MustParseAddr("10.1.2.2"), Port: 10000, Count: 10000},
		{Proto: "tcp", Addr: netip.MustParseAddr("fd00:2::2"), Port: 80, Count: 1},
		{Proto: "udp", Addr: netip.MustParseAddr("fd00:2::2"), Port: 10000, Count: 10000},
	} {
		for _, e := range p.Elements() {
			published = append(published, e)
		}
	}
	published = append(published,
		ports.OpenPort{Proto: "tcp", Addr: web, Port: 80, Count: 1}.From("eth1"),
		ports.OpenPort{Proto: "udp", Addr: web6, Port: 10000, Count: 10000}.From("eth1"))
	lan := netip.MustParseAddr("192.168.1.9")
	https := ports.Publication{Proto: "tcp", Host: lan, Port: 443, To: lan, ToPort: 8080}
	for _, e := range (ports.Redirect{Ports: []ports.Publication{https}}).OnHost() {
		published = append(published, e)
	}
	published = append(published, nft.InterfaceIn(klan.Shims, "nys-a"))
	gateways := []netip.Addr{netip.MustParseAddr("10.1.0.53"), netip.MustParseAddr("fd00:1::53")}
	for _, e := range ports.GatewayContainer("nyb-a", gateways) {
		published = append(published, e)
	}
	members := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	for _, e := range overlay.VTEPElements(4789, 0x1234, members) {
		published = append(published, e)
	}
	for _, e := range overlay.EncryptElements(4789, 0x5678) {
		published = append(published, e)
	}
	return append(published,
		ports.Routed("nyb-c", false), ports.Routed("nyb-c", true),
		ports.Isolated("nyb-b", false), ports.Isolated("nyb-b", true),
		ports.Egress(netip.MustParsePrefix("10.1.3.0/24"), netip.MustParseAddr("192.0.2.7")),
		ports.Egress(netip.MustParsePrefix("10.1.4.0/24"), netip.MustParseAddr("192.0.2.8")),
		ports.Egress(netip.MustParsePrefix("fd00:3::/64"), netip.MustParseAddr("2001:db8::7")),
		nft.InterfaceIn(bridge.Bridges, "nyb-a"), nft.InterfaceIn(bridge.Bridges, "nyb-b"),
		nft.InterfaceIn(bridge.Own, "nyb-a", "nyb-a"), nft.InterfaceIn(bridge.Own, "nyb-b", "nyb-b"),
		nft.InterfaceIn(bridge.Internal, "nyb-b"), nft.InterfaceIn(bridge.Reachable, "nyb-a", "nyb-a"),
		nft.SubnetIn(bridge.NAT4, netip.MustParsePrefix("10.1.0.0/24")),
		nft.SubnetIn(bridge.NAT4, netip.MustParsePrefix("10.1.1.0/24")),
		nft.SubnetIn(bridge.NAT6, netip.MustParsePrefix("fd00:1::/64")),
	)
}

func TestRuleset(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen() // or the listing would depend on the kernel's version
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

	// Elements added one by one or all at once, before the load or after it, lead to the same table.
	h.Reopen(t)
	h.LeaveTablesOpen()
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
		t.Errorf("audit without differences: %v %v", faults, strays)
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

// TestTakeOver shows that a daemon which finds exactly the wanted ruleset changes nothing, and that one which does not
// loads its own.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	load := func() string {
		t.Helper()
		h.Reopen(t)
		h.LeaveTablesOpen()
		if err := h.Ensure(t.Context(), elements()...); err != nil {
			t.Fatal(err)
		}
		if err := h.LoadFirewall(); err != nil {
			t.Fatal(err)
		}
		return h.Sh(t, "nft -a list ruleset") // with handles, which are new after each load
	}
	first := load()
	if again := load(); again != first {
		t.Errorf("the same ruleset was loaded again:\n%s", cmp.Diff(first, again))
	}
	for _, cmd := range []string{
		"nft add element inet netyard bridges { lost }", "nft delete element inet netyard bridges { nyb-a }",
		"nft add rule inet netyard forward accept", "nft flush chain bridge netyard guard", "nft flush ruleset",
		"nft delete rule inet netyard seal handle " +
			"$(nft -a list chain inet netyard seal | sed -n 's/.*comment.*handle //p')",
	} {
		h.Sh(t, cmd)
		load()
		snap, err := h.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if faults, strays := snap.Faults(elements()), snap.Strays(elements()); len(faults)+len(strays) > 0 {
			t.Errorf("after %s: %v %v", cmd, faults, strays)
		}
	}
}
