package kernel_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/kernel/beside"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/nft"
	"netyard/kernel/ports"
)

// eventually waits for a condition that the watcher brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

const ownRules = `-A DOCKER-USER -i nyb-+ -m comment --comment netyard -j ACCEPT
-A DOCKER-USER -o nyb-+ -m comment --comment netyard -j ACCEPT`

// TestDockerUser shows that the bypasses are added when Docker makes its chain, by either iptables interface, that they
// stand before its final RETURN and after the admin's rules, return after a flush, and are removed with their network.
func TestDockerUser(t *testing.T) {
	t.Parallel()
	for _, iptables := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		t.Run(iptables, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			if err := h.LoadFirewall(); err != nil {
				t.Fatal(err)
			}
			rules := func() string {
				out, _ := h.TrySh(iptables + " -S DOCKER-USER | grep -v ^-N")
				return out
			}
			count := func(text string) int { return strings.Count(rules(), text) }
			saveAndRestore := iptables + "-save | " + iptables + "-restore"
			client := "192.0.2.1"
			if strings.HasPrefix(iptables, "ip6") {
				client = "2001:db8::1"
			}
			iptables += " -w 30" // the old interface has one lock for all namespaces
			sorted := func() string { return h.Sh(t, iptables+" -S DOCKER-USER | grep nyb- | sort") }
			for _, args := range []string{
				"-N DOCKER-USER", "-A DOCKER-USER -s " + client + " -j DROP", "-A DOCKER-USER -j RETURN",
				"-A FORWARD -j DOCKER-USER",
			} {
				h.Sh(t, iptables+" "+args)
			}
			h.Watched(t)
			// The old interface reports no changes: making an object is what makes the watcher look.
			web := beside.Bypass{In: "web0", Network: "aaaaaaaaaaaa"}
			if err := h.Ensure(t.Context(), web); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the rules are there", func() bool { return count("ACCEPT") == 3 })
			lines := strings.Split(rules(), "\n")
			if !strings.Contains(lines[0], "DROP") || lines[len(lines)-1] != "-A DOCKER-USER -j RETURN" {
				t.Errorf("the rules are not between the admin's rule and the end:\n%s", rules())
			}
			if got := sorted(); got != ownRules {
				t.Errorf("got\n%s\nwant\n%s", got, ownRules)
			}
			if err := h.Remove(web); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the network's rule is gone", func() bool { return count("web0") == 0 })
			if strings.Contains(iptables, "nft") {
				h.Sh(t, iptables+" -F DOCKER-USER")
				eventually(t, "the rules are back after a flush", func() bool { return count("ACCEPT") == 2 })
				// A restored rule has its comment in another form; netyard must still recognize it.
				h.Sh(t, saveAndRestore)
				if err := h.Ensure(t.Context(), web); err != nil {
					t.Fatal(err)
				}
				eventually(t, "no rule is there twice", func() bool {
					return sorted() == ownRules && count("web0") == 1
				})
				h.Sh(t, saveAndRestore)
				if err := h.Remove(web); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the network's restored rule is gone", func() bool { return count("web0") == 0 })
			}
		})
	}
}

// TestFlushRuleset shows that tables, rules and elements which somebody deletes are restored at once.
func TestFlushRuleset(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	before := listing(t, h, "nft")
	h.Watched(t)
	for _, cmd := range []string{
		"nft flush ruleset", "nft delete table inet netyard", "nft delete table bridge netyard",
		"nft flush chain inet netyard forward", "nft delete element inet netyard bridges { nyb-a }",
	} {
		h.Sh(t, cmd)
		eventually(t, "the ruleset is back after "+cmd, func() bool { return listing(t, h, "nft") == before })
	}
	h.Sh(t, "nft flush ruleset")
	more := nft.InterfaceIn(bridge.Bridges, "nyb-c")
	if err := h.Ensure(t.Context(), more); err != nil { // before the watcher has noticed
		t.Errorf("an element could not be added to a table that is gone: %v", err)
	}
	if err := h.Remove(more); err != nil {
		t.Error(err)
	}
	eventually(t, "the ruleset is back", func() bool { return listing(t, h, "nft") == before })
}

// TestForwardingRestricted shows that, where netyard turned forwarding on, the host routes for its containers only,
// also after a restart of the daemon.
func TestForwardingRestricted(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	left, right := h.Peer(t, "left"), h.Peer(t, "right")
	h.Sh(t, "ip addr add 10.1.0.1/24 dev left && ip addr add 10.2.0.1/24 dev right")
	left.Sh(t, "ip addr add 10.1.0.2/24 dev eth0 && ip route add default via 10.1.0.1")
	right.Sh(t, "ip addr add 10.2.0.2/24 dev eth0 && ip route add default via 10.2.0.1")
	h.Sh(t, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []beside.Forwarding{{}, {IPv6: true}} {
		if err := h.Ensure(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.Sh(t, "sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding"); got != "1\n1" {
		t.Errorf("forwarding is %q", got)
	}
	passes := func() bool {
		_, err := left.TrySh("ping -c1 -W1 10.2.0.2")
		return err == nil
	}
	if passes() {
		t.Error("the host has become a router for everybody")
	}
	h.Reopen(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if passes() {
		t.Error("after a restart the host is a router for everybody")
	}
	// Where the admin turned forwarding on, netyard does not restrict it.
	if err := h.UnloadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Reopen(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), beside.Forwarding{}); err != nil {
		t.Fatal(err)
	}
	if !passes() {
		t.Error("netyard stopped the admin's own routing")
	}
}

// TestForwardingWithinBridges shows that traffic within a bridge of the host's owner passes where forwarding is
// restricted, although br_netfilter shows it to the rules as if it were forwarded.
func TestForwardingWithinBridges(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.Sh(t, "ip link add lan0 type bridge && ip link set lan0 up")
	h.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.ipv4.ip_forward=0")
	a, b := h.Peer(t, "pa"), h.Peer(t, "pb")
	h.Sh(t, "ip link set pa master lan0 && ip link set pb master lan0")
	a.Sh(t, "ip addr add 10.1.0.1/24 dev eth0")
	b.Sh(t, "ip addr add 10.1.0.2/24 dev eth0")
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), beside.Forwarding{}); err != nil {
		t.Fatal(err)
	}
	a.Sh(t, "ping -c2 -W2 10.1.0.2")
	if !strings.Contains(h.Sh(t, "nft list ruleset"), "this host routes IPv4 for containers only") {
		t.Error("forwarding is not restricted")
	}
}

// TestAdoptFirewall shows that the ruleset in the kernel stays as it is when the records are lost, and that a port that
// it has for nobody on record gives way to an endpoint that gets the port.
func TestAdoptFirewall(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	h.LeaveTablesOpen()
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	if err := h.Ensure(t.Context(), elements()...); err != nil {
		t.Fatal(err)
	}
	before := h.Sh(t, "nft list ruleset")
	h.Reopen(t)
	h.LeaveTablesOpen()
	if err := h.AdoptFirewall(); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list ruleset"); got != before {
		t.Errorf("adopting changed the ruleset:\n%s\n%s", before, got)
	}
	next := ports.Publication{
		Proto: "tcp", Host: netip.IPv4Unspecified(), Port: 8080, Count: 1,
		To: netip.MustParseAddr("10.1.0.9"), ToPort: 80,
	}
	var nexts []core.Object
	for _, e := range next.Elements() {
		nexts = append(nexts, e.For("next"))
	}
	if err := h.Ensure(t.Context(), nexts...); err != nil {
		t.Fatal(err)
	}
	if got := h.Sh(t, "nft list map inet netyard to_any4"); !strings.Contains(got, "10.1.0.9") {
		t.Errorf("the port leads to the former endpoint: %s", got)
	}
	if err := h.Remove(nexts...); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(elements()...); err != nil {
		t.Fatal(err)
	}
	golden(t, "ruleset-empty.nft", h.Sh(t, "nft list ruleset"))
}

// TestForwardPolicyWithoutDockerUser shows that the bypasses are at the end of FORWARD where its policy is DROP and no
// rule leads to DOCKER-USER, and that they are removed from there once a rule does again.
func TestForwardPolicyWithoutDockerUser(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	h.Watched(t)
	count := func(chain string) int { return strings.Count(h.Sh(t, "iptables -S "+chain), "nyb-") }
	const flush = "for i in 1 2 3 4 5 6 7 8 9; do iptables -F; iptables -X && break; done"
	h.Sh(t, "iptables -A FORWARD -s 192.0.2.1 -j DROP && iptables -N DOCKER-USER")
	h.Sh(t, "iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP")
	eventually(t, "the rules are in DOCKER-USER", func() bool { return count("DOCKER-USER") == 2 })
	eventually(t, "the rules are not in FORWARD", func() bool { return count("FORWARD") == 0 })
	h.Sh(t, flush)
	eventually(t, "the rules are in FORWARD", func() bool { return count("FORWARD") == 2 })
	h.Sh(t, "iptables -N DOCKER-USER && iptables -I FORWARD -j DOCKER-USER")
	eventually(t, "the rules are back in DOCKER-USER", func() bool {
		return count("FORWARD") == 0 && count("DOCKER-USER") == 2
	})
	h.Sh(t, flush+"; iptables -P FORWARD ACCEPT")
	eventually(t, "no rule is left that nobody needs", func() bool { return count("FORWARD") == 0 })
}
