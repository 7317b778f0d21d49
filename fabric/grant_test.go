package fabric

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/record"
	"netyard/fabric/address"
)

// grantAtOnce grants addresses to many endpoints at the same time.
func (h *host) grantAtOnce(n record.Network, round string, many int, want netip.Addr) (
	got []netip.Addr, errs []error,
) {
	h.t.Helper()
	got, errs = make([]netip.Addr, many), make([]error, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			w := address.Wish{Network: n.ID, Endpoint: fmt.Sprint(round, i), Addr: want}
			got[i], errs[i] = h.Grant(h.t.Context(), w)
		})
	}
	all.Wait()
	return got, errs
}

// waitSynced waits until etcd has all that the host has.
func (h *host) waitSynced(n record.Network) {
	h.t.Helper()
	clustertest.Eventually(h.t, "etcd lacks addresses of the host", func() bool {
		s := h.status().Networks[n.ID]
		return s.Waiting == 0 && !s.Unsure
	})
}

// idle waits until the only addresses in use are the host's own, the gateway and the spare ones.
func (h *host) idle(n record.Network) {
	h.t.Helper()
	clustertest.Eventually(h.t, "released addresses are not free", func() bool {
		s := h.status().Networks[n.ID]
		return s.Waiting == 0 && !s.Unsure && s.Addresses.Records == 2+s.Warm
	})
}

// TestGrantAtOnce: containers of one host that start at the same time get different addresses, also addresses in
// cooldown, and while spare ones are claimed; and of several that request one address only one gets it.
func TestGrantAtOnce(t *testing.T) {
	t.Parallel()
	h := hosts(t, clustertest.Start(t, ""), 1)[0]
	h.cooldown = time.Hour
	h.boot(1)
	h.run()
	h.member()
	pool := netip.MustParsePrefix("10.50.0.0/27")
	small := h.network("small", record.Subnet{Pool: pool, Gateway: netip.MustParseAddr("10.50.0.1")})
	h.up(small)
	const many = 24 // of 29; the host has one, and one is spare
	for round := range 4 {
		h.idle(small)
		got, errs := h.grantAtOnce(small, fmt.Sprint("r", round, "e"), many, netip.Addr{})
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		seen := map[netip.Addr]bool{}
		for i, a := range got {
			if seen[a] {
				t.Fatalf("round %d: %s was granted twice: %v", round, a, got)
			}
			seen[a] = true
			must(t, h.Publish(small.ID, []netip.Addr{a}, fmt.Sprint("r", round, "e", i), "02:42:0a:32:00:99", "", nil))
		}
		h.waitSynced(small)
		for i := range got {
			must(t, h.Withdraw(small.ID, fmt.Sprint("r", round, "e", i)))
			h.release(small, fmt.Sprint("r", round, "e", i))
		}
	}
	h.idle(small)
	isFree := func(a netip.Addr) bool {
		return h.on(small).claims.Get(record.Address{Network: small.ID, Addr: a}.Key()) == nil
	}
	for n := range 4 {
		var want netip.Addr
		for a := pool.Addr().Next().Next(); pool.Contains(a) && !want.IsValid(); a = a.Next() {
			if isFree(a) {
				want = a
			}
		}
		got, errs := h.grantAtOnce(small, fmt.Sprint("n", n, "e"), 4, want)
		count := 0
		for i := range got {
			switch {
			case errs[i] == nil && got[i] == want:
				count++
			case !errors.Is(errs[i], cluster.ErrTaken):
				t.Errorf("request for %s: %s, %v", want, got[i], errs[i])
			}
		}
		if count != 1 {
			t.Errorf("%s was requested by 4, and %d got it", want, count)
		}
		clustertest.Eventually(t, want.String()+" is still free", func() bool { return !isFree(want) })
	}
}
