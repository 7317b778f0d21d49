package kernel_test

import (
	"strings"
	"testing"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
)

const (
	limitedLink = "nyv-eeeeeeeeeee"
	shaperLink  = "nyi-eeeeeeeeeee"
)

// limited makes an endpoint's link without a container at its other end, and returns it with its limits.
func limited(t *testing.T, h *kerneltest.Host) (bridge.Veth, bridge.Limits) {
	t.Helper()
	h.Sh(t, "ip link add name lan0 type bridge && ip link set lan0 up")
	v := bridge.Veth{Name: limitedLink, Peer: "nyp-eeeeeeeeeee", Alias: "netyard:n:e", Master: "lan0", MTU: 1500}
	if err := h.Ensure(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return v, bridge.Limits{Link: limitedLink, Shaper: shaperLink, Alias: v.Alias, MTU: 1500}
}

// trafficControl lists the traffic trafficControl of a host, and its shapers.
func trafficControl(t *testing.T, h *kerneltest.Host) string {
	t.Helper()
	return h.Sh(t, "tc qdisc show | grep -v noqueue; tc filter show dev "+limitedLink+" ingress; "+
		"ip -o link show type ifb | cut -d: -f2")
}

func compare(t *testing.T, h *kerneltest.Host, objects ...core.Object) (said []string) {
	t.Helper()
	snap, err := h.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range snap.Faults(objects) {
		if f.Object >= 0 { // no ruleset is loaded
			said = append(said, f.Text)
		}
	}
	for _, s := range snap.Strays(objects) {
		said = append(said, "stray "+s.Text)
	}
	return said
}

// TestLimits: Ensure alone changes any set of limits into any other, and limits of 0 leave nothing.
func TestLimits(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	v, l := limited(t, h)
	clean := trafficControl(t, h)
	rates := [][2]bridge.Rate{{0, 0}, {10e6, 0}, {0, 10e6}, {10e6, 20e6}, {50e6, 1e9}, {8000, 8000}, {1e12, 1e12}}
	for _, from := range rates {
		for _, to := range rates {
			for _, r := range [][2]bridge.Rate{from, to, to} {
				l.Ingress, l.Egress = r[0], r[1]
				if err := h.Ensure(t.Context(), l); err != nil {
					t.Fatalf("%v: %v", r, err)
				}
			}
			if said := compare(t, h, v, l); len(said) > 0 {
				t.Errorf("from %v to %v: %v", from, to, said)
			}
			if got := trafficControl(t, h); l.None() && got != clean {
				t.Errorf("unlimited after %v leaves:\n%s", from, got)
			}
		}
	}
	for range 2 {
		if err := h.Remove(l); err != nil {
			t.Fatal(err)
		}
	}
	if got := trafficControl(t, h); got != clean {
		t.Errorf("Remove leaves:\n%s", got)
	}
}

// TestLimitsWithoutLink: a link that went with its sandbox leaves a shaper behind, and Remove deletes it.
func TestLimitsWithoutLink(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	v, l := limited(t, h)
	l.Ingress, l.Egress = 10e6, 10e6
	if err := h.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	h.Sh(t, "ip link del "+limitedLink)
	if has, err := h.Has(); err != nil || has[v.Alias] {
		t.Errorf("a shaper alone counts as the endpoint's link: %v", err)
	}
	if err := h.Ensure(t.Context(), l); err == nil {
		t.Error("limits were set on a missing link")
	}
	if said := strings.Join(compare(t, h), "; "); said != "stray link "+shaperLink {
		t.Errorf("the audit says %q", said)
	}
	if err := h.Remove(l, v); err != nil {
		t.Fatal(err)
	}
	if links := h.Sh(t, "ip -o link show type ifb"); links != "" {
		t.Errorf("Remove leaves %s", links)
	}
}

// TestLimitsDrift: every part of the limits that is missing or different is reported, and Ensure repairs it.
func TestLimitsDrift(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	v, l := limited(t, h)
	l.Ingress, l.Egress = 10e6, 20e6
	for cmd, want := range map[string]string{
		"tc qdisc del dev " + limitedLink + " root":                                                       "the limit to the container (10mbit) is missing",
		"tc qdisc del dev " + limitedLink + " ingress":                                                    "is not redirected to " + shaperLink,
		"tc filter del dev " + limitedLink + " ingress":                                                   "is not redirected to " + shaperLink,
		"tc qdisc del dev " + shaperLink + " root":                                                        "the limit from the container (20mbit) is missing",
		"tc qdisc change dev " + shaperLink + " root handle 6e79: tbf rate 5mbit burst 20kb limit 40kb":   "the limit from the container is 5mbit instead of 20mbit",
		"tc qdisc change dev " + limitedLink + " root handle 6e79: tbf rate 10mbit burst 20kb limit 40kb": "has another queue size",
		"ip link set " + shaperLink + " down":                                                             "link " + shaperLink + " is down",
		"sysctl -qw net.ipv6.conf." + shaperLink + ".disable_ipv6=0":                                      "disable_ipv6",
		"ip link del " + shaperLink:                                                                       "link " + shaperLink + " is missing",
		"tc qdisc replace dev " + limitedLink + " root handle 7: tbf rate 1mbit burst 20kb limit 40kb":    "the limit to the container (10mbit) is missing",
	} {
		if err := h.Ensure(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if said := compare(t, h, v, l); len(said) > 0 {
			t.Errorf("before %s: %v", cmd, said)
		}
		h.Sh(t, cmd)
		if said := strings.Join(compare(t, h, v, l), "; "); !strings.Contains(said, want) {
			t.Errorf("after %s the audit says %q, not %q", cmd, said, want)
		}
	}
	if err := h.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	l.Ingress, l.Egress = 0, 0
	said := strings.Join(compare(t, h, v, l), "; ")
	for _, want := range []string{
		"the limit to the container is set, but not wanted", "the limit from the container is set",
		"stray link " + shaperLink,
	} {
		if !strings.Contains(said, want) {
			t.Errorf("of unwanted limits the audit says %q, not %q", said, want)
		}
	}
}

// TestLimitsLeaveOthersAlone: queues and filters of the admin on a link of netyard's stay.
func TestLimitsLeaveOthersAlone(t *testing.T) {
	t.Parallel()
	for _, hook := range []string{"ingress", "clsact"} {
		t.Run(hook, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			_, l := limited(t, h)
			h.Sh(t, "tc qdisc add dev "+limitedLink+" root handle 1: tbf rate 1mbit burst 20kb limit 40kb")
			h.Sh(t, "tc qdisc add dev "+limitedLink+" "+hook)
			h.Sh(t, "tc filter add dev "+limitedLink+
				" ingress pref 7 protocol ip u32 match ip dst 192.0.2.1/32 flowid 1:1")
			before := trafficControl(t, h)
			l.Egress = 10e6
			for _, r := range []bridge.Rate{10e6, 0} {
				l.Egress = r
				if err := h.Ensure(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			if got := trafficControl(t, h); got != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, got)
			}
			h.Sh(t, "ip link add name "+shaperLink+" type bridge")
			l.Egress = 10e6
			if err := h.Ensure(t.Context(), l); err == nil || !strings.Contains(err.Error(), "is not netyard's") {
				t.Errorf("a link of somebody else's with the shaper's name: %v", err)
			}
		})
	}
}

// TestLimitedTraffic: delayed packets arrive, on the link that they were redirected from.
func TestLimitedTraffic(t *testing.T) {
	t.Parallel()
	h := kerneltest.New(t)
	_, l := limited(t, h)
	c := kerneltest.New(t)
	c.Take(t, h, "nyp-eeeeeeeeeee", "ip addr add 10.9.0.2/24 dev eth0")
	h.Sh(t, "ip addr add 10.9.0.1/24 dev lan0")
	l.Ingress, l.Egress = 8000, 8000 // the lowest rate carries the largest frame
	if err := h.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	c.Sh(t, "ping -c1 -W10 -s 1472 10.9.0.1")
	if out := h.Sh(t, "tc -s qdisc show dev "+shaperLink); strings.Contains(out, " Sent 0 bytes") {
		t.Errorf("nothing went through the shaper: %s", out)
	}
	l.Egress = 0
	if err := h.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	c.Sh(t, "ping -c1 -W10 10.9.0.1")
}

func TestRateString(t *testing.T) {
	t.Parallel()
	for r, want := range map[bridge.Rate]string{
		0: "unlimited", 1: "1bit", 8000: "8kbit", 1500e3: "1500kbit", 10e6: "10mbit", 1e12: "1tbit", 1e15: "1000tbit",
	} {
		if got := r.String(); got != want {
			t.Errorf("%d reads %s, not %s", uint64(r), got, want)
		}
	}
}
