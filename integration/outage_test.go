package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/kernel/core"
)

// plug starts a container on a host and moves its link into a namespace, as an engine does.
func (c *chaos) plug(h *chaosHost, at int) *chaosContainer {
	c.t.Helper()
	c.start(h, operation{At: at, Named: 1000})
	is := h.slots[0][at]
	if is == nil {
		c.t.Fatalf("%s: the container did not start: %v", h.Name, c.why)
	}
	h.Sh(fmt.Sprintf("ip netns add n%d && ip link set %s netns n%[1]d name eth0 && "+
		"ip -n n%[1]d addr add %[3]s dev eth0 && ip -n n%[1]d link set eth0 up",
		at, core.Name(core.PeerPrefix, is.id), is.addr))
	return is
}

// knows waits until a host has a neighbour entry for a container elsewhere, or none, and returns how long that took.
func (c *chaos) knows(h *chaosHost, is *chaosContainer, should bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	eventually(c.t, fmt.Sprintf("%s has a neighbour entry for %s: %t", h.Name, is.addr, should), func() bool {
		out := h.Sh("ip neigh show nud permanent; true")
		return strings.Contains(out, is.addr.Addr().String()+" ") == should
	})
	return time.Since(began).Round(time.Millisecond)
}

// spent returns the CPU time of a host's daemon, in hundredths of a second (proc(5), /proc/pid/stat).
func (h *chaosHost) spent(t *testing.T) (ticks int) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.netyard.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	var user, system int
	const before = 11 // fields after the name
	if _, err := fmt.Sscan(strings.Join(strings.Fields(rest)[before:before+2], " "), &user, &system); err != nil {
		t.Fatal(err)
	}
	return user + system
}

// TestOutage: etcd is down for two minutes. Running containers are not affected; new ones get spare addresses, and then
// an error that says why; and afterwards the other hosts learn of everything. The same when a host is cut off from
// etcd, and when it is frozen for longer than etcd keeps history.
func TestOutage(t *testing.T) {
	t.Parallel()
	const outage, parts = 2 * time.Minute, 2 // the lab limits the time of a command
	const pings = int(outage / parts / (20 * time.Millisecond))
	c := newChaos(t)
	a, b := c.hosts[0], c.hosts[1]
	for _, h := range c.hosts {
		c.createNetwork(h, 0)
	}
	one, two := c.plug(a, 0), c.plug(b, 0)
	c.knows(a, two, true)
	c.knows(b, one, true)
	eventually(t, "there are spare addresses", func() bool { return c.status(a).Networks[0].Warm >= 4 })
	pinged := make(chan string, parts)
	go func() {
		for range parts {
			out, _ := a.TrySh(fmt.Sprintf("ip netns exec n0 ping -q -i 0.02 -c %d -W 2 %s", pings, two.addr.Addr()))
			pinged <- out
		}
	}()
	c.store.Kill()
	spent, began := a.spent(t), time.Now()
	eventually(t, "the outage is noticed", func() bool { return !c.status(a).Down.IsZero() })
	store := c.status(a).Networks[0].Warm
	var late []*chaosContainer
	for at := 1; at <= store; at++ {
		late = append(late, c.plug(a, at))
	}
	_, err := c.request(a, 0, "")
	if err == nil || !strings.Contains(err.Error(), "no address can be claimed on network net0") ||
		!strings.Contains(err.Error(), "etcd is unreachable since") {
		t.Errorf("after the last spare address: %v", err)
	}
	for range parts {
		out := <-pinged
		want := fmt.Sprintf("%d packets transmitted, %[1]d received, 0%% packet loss", pings)
		if !strings.Contains(out, want) {
			t.Errorf("ping during an outage of etcd: %s", out)
		}
	}
	t.Logf("in %s without etcd netyard used %.2f %% of a CPU (built with the race detector)",
		time.Since(began).Round(time.Second), float64(a.spent(t)-spent)/time.Since(began).Seconds())
	c.store.Launch()
	for _, is := range late {
		t.Logf("after etcd was back, the other host knew %s after %s", is.addr, c.knows(b, is, true))
	}

	// Packets to etcd are dropped, without any error.
	undo := c.happen(operation{Kind: "cut", Host: 0})
	began = time.Now()
	eventually(t, "a dead router is noticed", func() bool { return !c.status(a).Down.IsZero() })
	t.Logf("a dead router is noticed after %s", time.Since(began).Round(time.Millisecond))
	c.remove(a, 0, 1)
	undo()
	t.Logf("after the router was back, the other host was up to date after %s", c.knows(b, late[0], false))

	// A host is frozen, and etcd compacts the history meanwhile.
	undo = c.happen(operation{Kind: "freeze", Host: 1})
	c.remove(a, 0, 2)
	c.knows(c.hosts[2], late[1], false)
	fresh := c.plug(a, 2+chaosSlots/2)
	c.knows(c.hosts[2], fresh, true)
	p, err := c.look()
	if err != nil {
		t.Fatal(err)
	}
	compact := map[string]any{"revision": p.revision, "physical": true}
	if err := c.gateway("compaction", compact, &struct{}{}); err != nil {
		t.Fatal(err)
	}
	undo()
	c.knows(b, fresh, true)
	c.knows(b, late[1], false)
	c.rest()
}

// status returns what netyard cluster status shows on a host.
func (c *chaos) status(h *chaosHost) api.ClusterStatus {
	c.t.Helper()
	return parse[api.ClusterStatus](c.t, h.Sh("netyard cluster status --json"))
}
