package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/kernel/core"
)

// onBlue has all hosts on a network, with addresses in store.
func onBlue(t *testing.T, all []*host) (blue cluster.Network) {
	t.Helper()
	for i, h := range all {
		h.run()
		h.member()
		if i == 0 {
			blue = h.network("blue", subnets(20)...)
		}
		h.up(blue)
		h.warm(blue)
	}
	return blue
}

// spoken counts frames that a host sends to the others in which an IPv4 address speaks, from now on: 42 bytes behind
// the beginning of UDP, after its header (8), that of VXLAN (8), Ethernet's (14) and 12 bytes of IP's.
func (h *host) spoken(a netip.Addr) (count func() int) {
	b := a.As4()
	name := fmt.Sprintf("spoken%d", h.n)
	h.lan.Sh(h.t, fmt.Sprintf("nft delete table bridge %s 2>/dev/null; nft 'table bridge %[1]s { counter c { } ; chain c { type filter hook forward priority 0 ; "+
		"ip saddr 192.0.2.%d udp dport %d @th,336,32 0x%02x%02x%02x%02x counter name c ; } ; }'", name, h.n, port, b[0], b[1], b[2], b[3]))
	return func() (n int) {
		out := h.lan.Sh(h.t, "nft list counter bridge "+name+" c")
		_, number, _ := strings.Cut(out, "packets ")
		if _, err := fmt.Sscan(number, &n); err != nil {
			h.t.Fatalf("%s: %v", out, err)
		}
		return n
	}
}

// chatter sends from a container all the time, until the test ends.
func chatter(t *testing.T, c *container, to netip.Addr) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_, _ = c.TrySh("ping -q -i 0.01 -c 20 -W 1 " + to.String())
		}
	}()
	t.Cleanup(func() { stop(); <-done })
}

// TestForgotten: a host is taken out, which fences it; what it had is given to another; and when it is back, the
// address is on the wire once. When nobody else has it any more, it is its own again.
func TestForgotten(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := onBlue(t, all)
	const id = "b2eeeeeeeeee"
	one, two := all[0].start(blue, "b1eeeeeeeeee"), all[1].start(blue, id)
	all[0].knows(blue, two.v4)
	all[1].knows(blue, one.v4)
	chatter(t, two, one.v4)
	said := all[1].spoken(two.v4)
	clustertest.Eventually(t, "this test does not see frames", func() bool { return said() > 0 })

	must(t, all[0].c.Client.Forget(t.Context(), all[1].self, "h1"))
	clustertest.Eventually(t, "who was taken out is not fenced", func() bool {
		_, x := all[1].links(blue)
		return strings.Contains(all[1].status().Reason, "removed from the cluster") && !strings.Contains(all[1].Sh(t, "bridge fdb show dev "+x), "dst")
	})
	clustertest.Eventually(t, "the others still know who was taken out", func() bool {
		_, x := all[0].links(blue)
		return !strings.Contains(all[0].Sh(t, "bridge fdb show dev "+x), "dst 192.0.2.2")
	})
	if _, err := all[1].Grant(t.Context(), Wish{Network: blue.ID, Endpoint: "new"}); err == nil || !strings.Contains(err.Error(), "removed from the cluster") {
		t.Errorf("who was taken out gives addresses: %v", err)
	}
	said = all[1].spoken(two.v4)
	heir := all[2].start(blue, "b3eeeeeeeeee", two.v4)
	all[0].knows(blue, heir.v4)
	must(t, all[1].Rejoin(t.Context()))
	all[1].member()
	clustertest.Eventually(t, "an endpoint is not fenced whose address is another's now", func() bool {
		return all[1].isFenced(id) == fmt.Sprintf("address %s is host h3's now", two.v4)
	})
	clustertest.Eventually(t, "its host is not heard again", func() bool { s := all[1].status().Networks[blue.ID]; return s.Waiting == 0 && !s.Shut })
	reach(t, one.Host, heir.v4, true)
	other := all[1].start(blue, "b4eeeeeeeeee")
	all[1].knows(blue, heir.v4)
	reach(t, other.Host, heir.v4, true) // also from beside the one that is fenced
	if n := said(); n != 0 {
		t.Errorf("%d frames in which an address speaks that is another host's", n)
	}
	if s := all[1].status().Networks[blue.ID]; s.Lost != 1 || len(s.Fenced) != 1 {
		t.Errorf("status: %+v", s)
	}
	if _, err := all[1].Grant(t.Context(), Wish{Network: blue.ID, Endpoint: "new", Addr: two.v4}); err == nil || !strings.Contains(err.Error(), "by another host") {
		t.Errorf("an address that was lost is given: %v", err)
	}

	must(t, all[2].Withdraw(blue.ID, "b3eeeeeeeeee"))
	all[2].release(blue, "b3eeeeeeeeee")
	clustertest.Eventually(t, "an address that is nobody's is not claimed again", func() bool { return all[1].isFenced(id) == "" })
	all[0].knows(blue, two.v4, two.v6)
	reach(t, one.Host, two.v4, true)
	reach(t, one.Host, two.v6, true)
	reach(t, two.Host, other.v4, true)
}

// TestOldBackup: what etcd has not any more is put back before anybody misses it; and of two who have an address the
// one keeps it whose claim is older.
func TestOldBackup(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := onBlue(t, all)
	stale := all[0].start(blue, "b1eeeeeeeeee")
	contested := all[2].start(blue, "b9eeeeeeeeee")
	for _, h := range all[1:] {
		h.knows(blue, stale.v4)
	}
	e.Kill(t)
	backup := filepath.Join(t.TempDir(), "backup")
	clustertest.Backup(t, e.Dir, backup)
	e.Run(t)
	// What the backup does not know: a network, an endpoint of each kind, and that an address was given up and is
	// another host's.
	green := all[0].network("green", subnets(30)...)
	all[0].up(green)
	all[1].up(green)
	all[0].warm(green)
	all[1].warm(green)
	fresh, there := all[0].start(blue, "b2eeeeeeeeee"), all[1].start(blue, "b3eeeeeeeeee")
	must(t, all[0].Withdraw(blue.ID, "b1eeeeeeeeee"))
	all[0].release(blue, "b1eeeeeeeeee")
	all[0].Sh(t, "ip link del nyv-b1eeeeeeeee")
	var moved *container
	clustertest.Eventually(t, "an address that was given up is not free", func() bool {
		_, err := all[1].Grant(t.Context(), Wish{Network: blue.ID, Endpoint: "b4eeeeeeeeee", Addr: stale.v4})
		return err == nil
	})
	moved = all[1].start(blue, "b4eeeeeeeeee", stale.v4)
	all[0].knows(blue, there.v4, moved.v4)
	all[1].knows(blue, fresh.v4)
	all[2].knows(blue, moved.v4, fresh.v4)

	e.Kill(t)
	clustertest.Backup(t, backup, e.Dir)
	e.Run(t)
	clustertest.Eventually(t, "etcd has not all that it lost", func() bool {
		var n int
		for _, a := range []netip.Addr{fresh.v4, fresh.v6, there.v4, there.v6, moved.v4, moved.v6, contested.v4} {
			recs, err := all[0].c.Client.List(t.Context(), cluster.Address{Network: blue.ID, Addr: a}.Key())
			if err == nil && len(recs) == 1 && recs[0].(*cluster.Address).Use == cluster.Endpoint {
				n++
			}
		}
		return n == 7
	})
	clustertest.Eventually(t, "an endpoint stays fenced whose address nobody else has", func() bool { return all[1].isFenced("b4eeeeeeeeee") == "" })
	for _, h := range all {
		h.audited(blue)
	}
	reach(t, fresh.Host, there.v4, true)
	reach(t, contested.Host, moved.v4, true)
	// A network that etcd does not know any more is still on its hosts.
	if n := all[0].status().Networks[green.ID]; n.Name != "green" {
		t.Errorf("networks: %+v", all[0].status().Networks)
	}
}

// TestLeftStaysClosed: until etcd has heard that a host left a network, the other hosts take it for a member. So long
// the network is closed there, over a restart too: else what a container sends would be a frame of it, as its host is a
// member.
func TestLeftStaysClosed(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := onBlue(t, all)
	h := all[0]
	closed := func() bool {
		number := fmt.Sprintf("0x%08x", blue.VNI)
		return strings.Contains(h.Sh(t, "nft list set inet netyard vnis"), number) &&
			strings.Contains(h.Sh(t, "nft list set bridge netyard vnis_bridged"), number)
	}
	parting := func() []core.Object {
		objects, err := h.Parting()
		must(t, err)
		return objects
	}
	if !closed() || len(parting()) != 0 {
		t.Fatalf("while the host is on it: closed %v, parting %v", closed(), parting())
	}
	e.Cut()
	must(t, h.Unbind(blue.ID))
	if !closed() || len(parting()) == 0 {
		t.Errorf("when the host has left it: closed %v, parting %v", closed(), parting())
	}
	if out := h.Sh(t, "nft list set inet netyard vteps4"); strings.Contains(out, "192.0.2.2") {
		t.Errorf("the network is open to its hosts: %s", out)
	}
	h.stop()
	h.Reopen(t)
	h.ShareTables()
	h.boot(1)
	must(t, h.LoadFirewall())
	if !closed() {
		t.Error("it is open after a restart")
	}
	h.up(blue) // and it comes back before etcd does
	e.Mend()
	h.run()
	clustertest.Eventually(t, "etcd does not hear", func() bool { return len(parting()) == 0 })
	if !closed() {
		t.Error("it is open although the host is on it again")
	}
	must(t, h.Unbind(blue.ID))
	clustertest.Eventually(t, "what kept it closed stays", func() bool { return len(parting()) == 0 && !closed() })
}
