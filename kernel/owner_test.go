package kernel_test

import (
	"strings"
	"testing"

	"netyard/kernel/beside"
	"netyard/kernel/kerneltest"
)

// TestOwnedTables shows that, where the kernel has table owners, nobody can change or delete netyard's tables at any
// time, that the tables outlive the daemon, and that the next daemon owns them.
func TestOwnedTables(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	list := func() string { return listing(t, h, "nft") }
	full := list()
	if !strings.Contains(full, "flags owner") {
		// The kernel is older than 6.9. TestFlushRuleset shows what netyard does there instead.
		if err := h.UnloadFirewall(); err != nil {
			t.Fatal(err)
		}
		return
	}
	h.Sh(t, "nft flush ruleset")
	for _, cmd := range []string{
		"nft delete table inet netyard", "nft flush chain inet netyard forward",
		"nft insert rule inet netyard forward accept", "nft delete element inet netyard bridges { nyb-a }",
		"nft delete table bridge netyard",
	} {
		if out, err := h.TrySh(cmd); err == nil {
			t.Errorf("%s: succeeded: %s", cmd, out)
		}
	}
	if got := list(); got != full {
		t.Errorf("somebody changed the tables:\n%s", got)
	}

	h.Reopen(t) // closes the socket, as kill -9 of the daemon does
	// Not at once: a child that another test is forking has a copy of the socket until its exec.
	eventually(t, "the tables have no owner", func() bool { return !strings.Contains(list(), "flags owner") })
	if got := list(); !strings.Contains(got, "drop traffic between networks") {
		t.Errorf("the tables were deleted with the daemon:\n%s", got)
	}
	h.Sh(t, "nft insert rule inet netyard forward accept && nft add set inet netyard theirs '{ type ipv4_addr; }'")
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := list(); got != full {
		t.Errorf("the next daemon's tables differ:\n%s", got)
	}

	second := *h // a second daemon in the same namespace must fail
	second.Kernel = nil
	second.Reopen(t)
	if err := second.LoadFirewall(); err == nil || !strings.Contains(err.Error(), "another process owns it") {
		t.Errorf("a second daemon loaded its ruleset: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if got := list(); got != full {
		t.Errorf("the second daemon changed the tables:\n%s", got)
	}

	// A daemon that shares its tables takes over those that another one owned, and vice versa.
	h.Reopen(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Sh(t, "nft delete element inet netyard foreign { x } 2>/dev/null; nft add element inet netyard foreign { x }")
	h.Reopen(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := list(); strings.Contains(got, `"x"`) {
		t.Errorf("an element that is not netyard's stayed:\n%s", got)
	}
	if err := h.UnloadFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := list(); got != "" {
		t.Errorf("unload left %s", got)
	}
}

// TestForeignRulesInDockerUser shows that a rule of the admin's whose comment begins with netyard's name is not taken
// for netyard's.
func TestForeignRulesInDockerUser(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	const theirs = `-A DOCKER-USER -s 192.0.2.1/32 -i eth9 -m comment --comment "netyard lets him in" -j ACCEPT`
	h.Sh(t, "iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && iptables "+theirs)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), beside.Bypass{In: "web0", Network: "aaaaaaaaaaaa"}); err != nil {
		t.Fatal(err)
	}
	got := h.Sh(t, "iptables -S DOCKER-USER")
	if !strings.Contains(got, theirs) || strings.Count(got, "-j ACCEPT") != 4 {
		t.Errorf("the chain is\n%s", got)
	}
}
