package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/policy"
)

func guard() []core.Object {
	return bridge.PortGuard{
		Port: "nyv-a", MAC: net.HardwareAddr{2, 0x42, 10, 1, 0, 2}, Open: true, LAN: true,
		Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")},
	}.Objects()
}

func subjects() []policy.Subject {
	passage := func(first, last string, proto, lastProto uint8, port, lastPort uint16) policy.Allowance {
		return policy.Allowance{
			First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last),
			FirstProto: proto, LastProto: lastProto, FirstPort: port, LastPort: lastPort,
		}
	}
	return []policy.Subject{
		{
			Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr("10.1.0.2"),
			In: &policy.Access{Allow: []policy.Allowance{
				passage("10.1.0.9", "10.1.0.9", 6, 6, 80, 80),
				passage("10.1.0.9", "10.1.0.9", 17, 17, 8000, 8010),
				passage("10.2.0.0", "10.2.255.255", 0, 255, 0, 65535),
			}},
			Out: &policy.Access{},
		},
		{
			Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr("fd00:1::2"),
			Out: &policy.Access{Allow: []policy.Allowance{
				passage("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 58, 58, 0, 65535),
			}},
		},
	}
}

// policed returns a host whose ruleset has elements of every kind.
func policed(t *testing.T) (*kerneltest.Host, []core.Object) {
	t.Helper()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add nyb-a type bridge && ip link set nyb-a alias netyard:a")
	all := append(guard(), policy.Objects(h.Handle, subjects())...)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), guard()...); err != nil {
		t.Fatal(err)
	}
	if err := h.Enforce(t.Context(), policy.Objects(h.Handle, subjects())); err != nil {
		t.Fatal(err)
	}
	return h, all
}

func audited(t *testing.T, h *kerneltest.Host, all []core.Object) (texts []string) {
	t.Helper()
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range snap.Faults(all) {
		texts = append(texts, f.Text)
	}
	for _, s := range snap.Strays(all) {
		if s.Text != "link nyb-a" {
			texts = append(texts, "stray "+s.Text)
		}
	}
	return texts
}

// TestPolicyElements: each kind of element is added, compared, adopted, restored and removed correctly.
func TestPolicyElements(t *testing.T) {
	t.Parallel()
	h, all := policed(t)
	full := h.Sh(t, "nft list ruleset")
	for _, want := range []string{
		"10.1.0.2 . 10.1.0.9 . tcp . 80", "10.1.0.2 . 10.1.0.9 . udp . 8000-8010",
		"10.1.0.2 . 10.2.0.0/16 . 0-255 . 0-65535",
		`"nyv-a" . 02:42:0a:01:00:02`, `"nyv-a" . 10.1.0.2`, `"nyv-a" . fe80::42:aff:fe01:2`,
	} {
		if !strings.Contains(full, want) {
			t.Errorf("%s is not in the ruleset:\n%s", want, full)
		}
	}
	if got := audited(t, h, all); len(got) > 0 {
		t.Errorf("audit of a correct ruleset: %q", got)
	}
	for element, text := range map[string]string{
		"inet netyard allow_in4 '{ 10.1.0.2 . 10.1.0.9 . udp . 8000-8010 }'": "element { 10.1.0.2 . 10.1.0.9 . udp . 8000-8010 } of set allow_in4 is missing",
		"inet netyard closed_out4 '{ 10.1.0.2 }'":                            "element { 10.1.0.2 } of set closed_out4 is missing",
		"bridge netyard quiet '{ nyv-a }'":                                   "element { nyv-a } of set quiet is missing",
		"bridge netyard macs '{ nyv-a . 02:42:0a:01:00:02 }'":                "element { nyv-a . 02:42:0a:01:00:02 } of set macs is missing",
	} {
		h.Sh(t, "nft delete element "+element)
		if got := audited(t, h, all); len(got) != 1 || got[0] != text {
			t.Errorf("doctor says %q, want %q", got, text)
		}
		h.Sh(t, "nft add element "+element)
	}
	h.Sh(t, "nft add element inet netyard allow_in4 '{ 10.1.0.3 . 10.3.0.0/16 . tcp . 1-9 }'")
	want := "stray element { 10.1.0.3 . 10.3.0.0-10.3.255.255 . tcp . 1-9 } of set allow_in4 belongs"
	if got := audited(t, h, all); len(got) != 1 || !strings.HasPrefix(want, got[0]) {
		t.Errorf("audit of an added element: %q", got)
	}
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range snap.Strays(all) {
		if s.Text != "link nyb-a" {
			if err := s.Remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
	same(t, "removing a stray", full, h.Sh(t, "nft list ruleset"))

	// A new process collects the same elements and loads them at once; one without records adopts those in the kernel.
	h.Reopen(t)
	if err := h.Ensure(t.Context(), guard()...); err != nil {
		t.Fatal(err)
	}
	if err := h.Enforce(t.Context(), policy.Objects(h.Handle, subjects())); err != nil {
		t.Fatal(err)
	}
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	same(t, "loading it all at once", full, h.Sh(t, "nft list ruleset"))
	h.Reopen(t)
	h.LeaveTablesOpen()
	if err := h.AdoptFirewall(); err != nil {
		t.Fatal(err)
	}
	same(t, "adopting it", full, h.Sh(t, "nft list ruleset"))
}

func same(t *testing.T, act, want, got string) {
	t.Helper()
	parts := func(s string) []string { // sorted: the kernel lists elements in any order
		all := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(",{}\n", r) })
		for i := range all {
			all[i] = strings.TrimSpace(all[i])
		}
		return slices.Sorted(slices.Values(all))
	}
	if d := cmp.Diff(parts(want), parts(got)); d != "" {
		t.Errorf("%s changed the ruleset:\n%s", act, d)
	}
}

// TestEnforceMovesOnlyChanges: Enforce changes only the elements that differ, and a larger element replaces the smaller
// one.
func TestEnforceMovesOnlyChanges(t *testing.T) {
	t.Parallel()
	h, _ := policed(t)
	s := subjects()
	s[0].In.Allow[0].LastPort = 90
	s[1].In = &policy.Access{}
	if err := h.Enforce(t.Context(), policy.Objects(h.Handle, s)); err != nil {
		t.Fatal(err)
	}
	out := h.Sh(t, "nft list ruleset")
	if !strings.Contains(out, "10.1.0.2 . 10.1.0.9 . tcp . 80-90") || strings.Contains(out, "tcp . 80,") {
		t.Errorf("after the change there is\n%s", out)
	}
	h.Sh(t, "nft flush ruleset")
	if err := h.Enforce(t.Context(), nil); err != nil { // the ruleset is restored, without policy
		t.Fatal(err)
	}
	out = h.Sh(t, "nft list ruleset")
	if strings.Contains(out, "10.1.0.9") || !strings.Contains(out, `"nyv-a" . 10.1.0.2`) {
		t.Errorf("after the flush there is\n%s", out)
	}
}

// TestManyElements: more elements than a netlink message holds are added and removed at once.
func TestManyElements(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add nyb-a type bridge")
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	access := &policy.Access{}
	for i := range 1000 {
		a := netip.MustParseAddr(fmt.Sprintf("fd00::%x", 2*i))
		access.Allow = append(access.Allow, policy.Allowance{
			First: a, Last: a, FirstProto: 6, LastProto: 6, FirstPort: 80, LastPort: 90,
		})
	}
	subject := policy.Subject{Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr("fd00::1:1"), In: access}
	if err := h.Enforce(t.Context(), policy.Objects(h.Handle, []policy.Subject{subject})); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(h.Sh(t, "nft list set inet netyard allow_in6"), "80-90"); n != 1000 {
		t.Errorf("%d elements, want 1000", n)
	}
	if err := h.Enforce(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if out := h.Sh(t, "nft list set inet netyard allow_in6"); strings.Contains(out, "elements") {
		t.Errorf("left: %.200s", out)
	}
}

// TestAdoptPolicy: the policy in the kernel for addresses in no record survives each change of policy, until the
// records know the address. Then it is as they say, even where elements would overlap.
func TestAdoptPolicy(t *testing.T) {
	t.Parallel()
	h, _ := policed(t)
	const other = "10.1.0.7"
	h.Sh(t, "nft add element inet netyard closed_in4 '{ "+other+" }'; "+
		"nft add element inet netyard allow_in4 '{ "+other+" . 10.3.0.0/16 . tcp . 1-9 }'")
	for name, adopt := range map[string]func(*kernel.Kernel) error{
		"the ruleset": (*kernel.Kernel).AdoptFirewall, "policy alone": (*kernel.Kernel).AdoptPolicy,
	} {
		h.Reopen(t)
		h.LeaveTablesOpen()
		if err := adopt(h.Kernel); err != nil {
			t.Fatal(err)
		}
		if policed, err := h.HasPolicy(); err != nil || !policed {
			t.Errorf("%s: no policy: %v", name, err)
		}
		if err := h.Enforce(t.Context(), policy.Objects(h.Handle, subjects())); err != nil {
			t.Fatal(err)
		}
		out := h.Sh(t, "nft list ruleset")
		if strings.Count(out, other) != 2 {
			t.Errorf("%s: of an address in no record there is\n%s", name, out)
		}
	}
	in := &policy.Access{Allow: []policy.Allowance{{
		First: netip.MustParseAddr("10.3.0.0"), Last: netip.MustParseAddr("10.3.0.255"),
		FirstProto: 6, LastProto: 6, FirstPort: 5, LastPort: 5,
	}}}
	mine := policy.Subject{Port: "nyv-a", Bridge: "nyb-a", Addr: netip.MustParseAddr(other), In: in}
	if err := h.Enforce(t.Context(), policy.Objects(h.Handle, []policy.Subject{mine})); err != nil {
		t.Fatal(err)
	}
	out := h.Sh(t, "nft list set inet netyard allow_in4")
	if strings.Count(out, other) != 1 || !strings.Contains(out, "tcp . 5") {
		t.Errorf("the records do not win:\n%s", out)
	}
	h.Sh(t, "nft add element inet netyard closed_in4 '{ 10.1.0.8 }'")
	h.Reopen(t)
	h.LeaveTablesOpen()
	if err := h.AdoptPolicy(); err != nil {
		t.Fatal(err)
	}
	// The records know the address, and no policy applies to it.
	if err := h.Enforce(t.Context(), nil, netip.MustParseAddr(other)); err != nil {
		t.Fatal(err)
	}
	if out := h.Sh(t, "nft list ruleset"); strings.Contains(out, other) || !strings.Contains(out, "10.1.0.8") {
		t.Errorf("an address without policy:\n%s", out)
	}
}
