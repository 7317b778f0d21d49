package fabric

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/address"
)

// TestCooldown: an address that a container had is the last one that another gets, on any host, also after a restart of
// the daemon; a request that names it gets it at once.
func TestCooldown(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	all := hosts(t, e, 2)
	for _, h := range all {
		h.cooldown = time.Hour
		h.boot(h.n)
		h.run()
		h.member()
	}
	pool, gateway := netip.MustParsePrefix("10.40.0.0/28"), netip.MustParseAddr("10.40.0.1")
	small := all[0].network("small", record.Subnet{Pool: pool, Gateway: gateway})
	settled := func(h *host) {
		t.Helper()
		clustertest.Eventually(t, "a host has not synced", func() bool {
			s := h.status().Networks[small.ID]
			return s.Warm == 1 && s.Waiting == 0 && !s.Unsure
		})
	}
	for _, h := range all {
		h.up(small)
		settled(h)
	}
	free := func(h *host, a netip.Addr) {
		t.Helper()
		clustertest.Eventually(t, "an address is not free and in cooldown",
			func() bool { return h.on(small).addrs.Cooling(a) })
	}
	use := func(h *host, endpoint string, want netip.Addr) netip.Addr {
		t.Helper()
		a, err := h.Grant(t.Context(), address.Wish{Network: small.ID, Endpoint: endpoint, Addr: want})
		must(t, err)
		must(t, h.Publish(small.ID, []netip.Addr{a}, endpoint, "02:42:0a:28:00:99", "", nil))
		clustertest.Eventually(t, "the other host does not see the endpoint", func() bool {
			rec, _ := all[1].on(small).claims.Get(record.Address{Network: small.ID, Addr: a}.Key()).(*record.Address)
			return rec != nil && rec.Use == record.Endpoint
		})
		return a
	}
	drop := func(h *host, endpoint string) {
		t.Helper()
		must(t, h.Withdraw(small.ID, endpoint))
		h.release(small, endpoint)
	}
	a := use(all[0], "one", netip.Addr{})
	drop(all[0], "one")
	free(all[0], a)
	free(all[1], a)
	if b := use(all[1], "two", a); b != a {
		t.Errorf("%s was requested, and %s granted", a, b)
	}
	if all[1].on(small).addrs.Cooling(a) {
		t.Error("an address that a container has is in cooldown")
	}
	drop(all[1], "two")
	free(all[0], a)
	free(all[1], a)
	all[1].stop()
	all[1].boot(2)
	all[1].run()
	all[1].member()
	all[1].up(small)
	settled(all[1])
	settled(all[0])
	var got []netip.Addr
	for {
		w := address.Wish{Network: small.ID, Endpoint: "many" + string(rune('a'+len(got)))}
		b, err := all[1].Grant(t.Context(), w)
		if errors.Is(err, address.ErrNone) {
			break
		}
		must(t, err)
		if slices.Contains(got, b) {
			t.Fatalf("%s was granted twice: %v", b, got)
		}
		got = append(got, b)
	}
	if at := slices.Index(got, a); len(got) < 9 || at < len(got)-2 { // one may just be claimed as a spare one
		t.Errorf("%s was in cooldown, and was granted as number %d: %v", a, at, got)
	}
}
