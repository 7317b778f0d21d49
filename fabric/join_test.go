package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/kernel/core"
)

// joinBlue runs all hosts and puts a network on them, with spare addresses.
func joinBlue(t *testing.T, all []*host) (blue record.Network) {
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

// countFrames counts, from now on, VXLAN packets of a host whose inner IPv4 source is a: it is 42 bytes after the start
// of UDP, behind the headers of UDP (8), VXLAN (8), Ethernet (14) and 12 bytes of IP.
func (h *host) countFrames(a netip.Addr) (count func() int) {
	b := a.As4()
	name := fmt.Sprintf("frames%d", h.n)
	h.lan.Sh(h.t, fmt.Sprintf("nft delete table bridge %s 2>/dev/null; "+
		"nft 'table bridge %[1]s { counter c { } ; chain c { type filter hook forward priority 0 ; "+
		"ip saddr 192.0.2.%d udp dport %d @th,336,32 0x%02x%02x%02x%02x counter name c ; } ; }'",
		name, h.n, port, b[0], b[1], b[2], b[3]))
	return func() (n int) {
		out := h.lan.Sh(h.t, "nft list counter bridge "+name+" c")
		_, number, _ := strings.Cut(out, "packets ")
		if _, err := fmt.Sscan(number, &n); err != nil {
			h.t.Fatalf("%s: %v", out, err)
		}
		return n
	}
}

// keepSending sends pings from a container until the test ends.
func keepSending(t *testing.T, c *container, to netip.Addr) {
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

// TestForgotten: a host that is removed from the cluster is fenced, and another host gets one of its addresses. When it
// rejoins, the endpoint with that address stays fenced, until the other host releases it.
func TestForgotten(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := joinBlue(t, all)
	const id = "b2eeeeeeeeee"
	one, two := all[0].start(blue, "b1eeeeeeeeee"), all[1].start(blue, id)
	all[0].knows(blue, two.v4)
	all[1].knows(blue, one.v4)
	keepSending(t, two, one.v4)
	frames := all[1].countFrames(two.v4)
	clustertest.Eventually(t, "this test does not see frames", func() bool { return frames() > 0 })

	must(t, all[0].c.Client.Forget(t.Context(), all[1].self, "h1"))
	const removed = "removed from the cluster"
	clustertest.Eventually(t, "a removed host is not fenced", func() bool {
		_, x := all[1].links(blue)
		return strings.Contains(all[1].status().Reason, removed) &&
			!strings.Contains(all[1].Sh(t, "bridge fdb show dev "+x), "dst")
	})
	clustertest.Eventually(t, "another host still has peers on the removed one", func() bool {
		_, x := all[0].links(blue)
		return !strings.Contains(all[0].Sh(t, "bridge fdb show dev "+x), "dst 192.0.2.2")
	})
	_, err := all[1].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "new"})
	if err == nil || !strings.Contains(err.Error(), removed) {
		t.Errorf("a removed host grants addresses: %v", err)
	}
	frames = all[1].countFrames(two.v4)
	heir := all[2].start(blue, "b3eeeeeeeeee", two.v4)
	all[0].knows(blue, heir.v4)
	must(t, all[1].Rejoin(t.Context()))
	all[1].member()
	clustertest.Eventually(t, "an endpoint whose address is another host's now is not fenced", func() bool {
		return all[1].isFenced(id) == fmt.Sprintf("address %s is host h3's now", two.v4)
	})
	clustertest.Eventually(t, "the network stays blocked on its host", func() bool {
		s := all[1].status().Networks[blue.ID]
		return s.Waiting == 0 && !s.Shut
	})
	reach(t, one.Host, heir.v4, true)
	other := all[1].start(blue, "b4eeeeeeeeee")
	all[1].knows(blue, heir.v4)
	reach(t, other.Host, heir.v4, true) // also from the host with the fenced endpoint
	if n := frames(); n != 0 {
		t.Errorf("%d frames have another host's address as source", n)
	}
	if s := all[1].status().Networks[blue.ID]; s.Lost != 1 || len(s.Fenced) != 1 {
		t.Errorf("status: %+v", s)
	}
	_, err = all[1].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "new", Addr: two.v4})
	if err == nil || !strings.Contains(err.Error(), "by another host") {
		t.Errorf("a lost address is granted: %v", err)
	}

	must(t, all[2].Withdraw(blue.ID, "b3eeeeeeeeee"))
	all[2].release(blue, "b3eeeeeeeeee")
	clustertest.Eventually(t, "a lost address that is free is not claimed again",
		func() bool { return all[1].isFenced(id) == "" })
	all[0].knows(blue, two.v4, two.v6)
	reach(t, one.Host, two.v4, true)
	reach(t, one.Host, two.v6, true)
	reach(t, two.Host, other.v4, true)
}

// TestOldBackup: after etcd is restored from an old backup, hosts restore what it lacks, and traffic goes on; of two
// hosts that have an address, the one with the older claim keeps it.
func TestOldBackup(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 3)
	blue := joinBlue(t, all)
	stale := all[0].start(blue, "b1eeeeeeeeee")
	contested := all[2].start(blue, "b9eeeeeeeeee")
	for _, h := range all[1:] {
		h.knows(blue, stale.v4)
	}
	e.Kill(t)
	backup := filepath.Join(t.TempDir(), "backup")
	clustertest.Backup(t, e.Dir, backup)
	e.Run(t)
	// The backup lacks a network, an endpoint on each host, and that an address was released and claimed by another
	// host.
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
	clustertest.Eventually(t, "a released address is not free", func() bool {
		_, err := all[1].Grant(t.Context(), address.Wish{Network: blue.ID, Endpoint: "b4eeeeeeeeee", Addr: stale.v4})
		return err == nil
	})
	moved = all[1].start(blue, "b4eeeeeeeeee", stale.v4)
	all[0].knows(blue, there.v4, moved.v4)
	all[1].knows(blue, fresh.v4)
	all[2].knows(blue, moved.v4, fresh.v4)

	e.Kill(t)
	clustertest.Backup(t, backup, e.Dir)
	e.Run(t)
	clustertest.Eventually(t, "etcd still lacks what it lost", func() bool {
		var n int
		for _, a := range []netip.Addr{fresh.v4, fresh.v6, there.v4, there.v6, moved.v4, moved.v6, contested.v4} {
			recs, err := all[0].c.Client.List(t.Context(), record.Address{Network: blue.ID, Addr: a}.Key())
			if err == nil && len(recs) == 1 && recs[0].(*record.Address).Use == record.Endpoint {
				n++
			}
		}
		return n == 7
	})
	clustertest.Eventually(t, "an endpoint stays fenced although no other host has its address",
		func() bool { return all[1].isFenced("b4eeeeeeeeee") == "" })
	for _, h := range all {
		h.wantNoDrift(blue)
	}
	reach(t, fresh.Host, there.v4, true)
	reach(t, contested.Host, moved.v4, true)
	// A network that the backup lacks is still on its hosts.
	if n := all[0].status().Networks[green.ID]; n.Name != "green" {
		t.Errorf("networks: %+v", all[0].status().Networks)
	}
}

// TestLeftStaysClosed: until a host has left a network in etcd, the other hosts take it for a member. Until then the
// network stays closed on it, also over a restart: otherwise the other hosts would accept what a container sends as
// frames of the network.
func TestLeftStaysClosed(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	blue := joinBlue(t, all)
	h := all[0]
	closed := func() bool {
		number := fmt.Sprintf("%#x", blue.VNI)
		return strings.Contains(h.Sh(t, "nft list set inet netyard vnis"), number) &&
			strings.Contains(h.Sh(t, "nft list set bridge netyard vnis_bridged"), number)
	}
	parting := func() []core.Object {
		objects, err := h.LeavingObjects()
		must(t, err)
		return objects
	}
	if !closed() || len(parting()) != 0 {
		t.Fatalf("while the host is on the network: closed %v, parting %v", closed(), parting())
	}
	e.Cut()
	must(t, h.Unbind(blue.ID))
	if !closed() || len(parting()) == 0 {
		t.Errorf("after the host has left: closed %v, parting %v", closed(), parting())
	}
	if out := h.Sh(t, "nft list set inet netyard vteps4"); strings.Contains(out, "192.0.2.2") {
		t.Errorf("the network is open to its hosts: %s", out)
	}
	h.stop()
	h.Reopen(t)
	h.LeaveTablesOpen()
	h.boot(1)
	must(t, h.LoadFirewall())
	if !closed() {
		t.Error("the network is open after a restart")
	}
	h.up(blue) // the network comes back before etcd does
	e.Mend()
	h.run()
	clustertest.Eventually(t, "the network is not left in etcd", func() bool { return len(parting()) == 0 })
	if !closed() {
		t.Error("the network is open although the host is on it again")
	}
	must(t, h.Unbind(blue.ID))
	clustertest.Eventually(t, "the elements that kept it closed stay",
		func() bool { return len(parting()) == 0 && !closed() })
}
