package cluster_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/record"
)

// TestExchange shows that hosts which exchange their addresses or names all become members again, whichever is first,
// and that each has its own claims then and no others; that what a host has does not give way, also while it is silent;
// and that claims of hosts that are no longer in the cluster do.
func TestExchange(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	clients := map[int]*cluster.Client{}
	now := map[int]record.Host{}
	for n := 1; n <= 3; n++ {
		clients[n], now[n] = hosttest.Member(t, e, n), *hosttest.Host(n)
	}
	claims := func() (all []string) {
		for _, kind := range []string{record.ClaimHostname, record.ClaimVTEP} {
			rs, err := clients[1].List(t.Context(), kind+"/")
			must(t, err)
			for _, r := range rs {
				cl := r.(*record.Claim)
				all = append(all, cl.String()+" of "+cl.ID)
			}
		}
		slices.Sort(all)
		return all
	}
	want := func() (all []string) {
		for _, h := range now {
			for _, cl := range h.Claims() {
				all = append(all, cl.String()+" of "+cl.ID)
			}
		}
		slices.Sort(all)
		return all
	}
	addr := func(n int) netip.Addr { return hosttest.Host(n).VTEP }
	for what, next := range map[string]map[int]record.Host{
		"two addresses":   {1: {Name: "h1", VTEP: addr(2)}, 2: {Name: "h2", VTEP: addr(1)}, 3: *hosttest.Host(3)},
		"two names":       {1: {Name: "h2", VTEP: addr(1)}, 2: {Name: "h1", VTEP: addr(2)}, 3: *hosttest.Host(3)},
		"both":            {1: {Name: "h3", VTEP: addr(3)}, 2: *hosttest.Host(2), 3: {Name: "h1", VTEP: addr(1)}},
		"three addresses": {1: {Name: "h1", VTEP: addr(2)}, 2: {Name: "h2", VTEP: addr(3)}, 3: {Name: "h3", VTEP: addr(1)}},
	} {
		for n, h := range next {
			h.ID, h.MTU = hosttest.ID(n), 1500
			now[n] = h
		}
		joined := map[int]bool{}
		for range 6 { // StayAlive tries again
			for n, h := range now {
				err := clients[n].Join(t.Context(), h)
				if err != nil && !errors.Is(err, cluster.ErrTaken) {
					t.Fatal(err)
				}
				joined[n] = err == nil
			}
		}
		if !joined[1] || !joined[2] || !joined[3] || !slices.Equal(claims(), want()) {
			t.Errorf("%s are exchanged: joined %v, with the claims\n%q\nwant\n%q", what, joined, claims(), want())
		}
	}

	four := hosttest.Client(t, e)
	hosttest.Enter(t, four)
	thief := *hosttest.Host(4)
	thief.VTEP = now[1].VTEP
	for range 2 {
		if err := four.Join(t.Context(), thief); !errors.Is(err, cluster.ErrTaken) {
			t.Errorf("a new host with the address of a silent one: %v", err)
		}
	}
	// Forget was interrupted, and the host's claims are left.
	must(t, clients[2].Change(t.Context(), "test", []string{now[1].Key()},
		func(etcd.Found) (d etcd.Decision, err error) { d.Delete = []string{now[1].Key()}; return d, nil }))
	must(t, four.Join(t.Context(), thief))
	must(t, clients[2].Forget(t.Context(), hosttest.ID(3), "h2"))
	if err := clients[3].Join(t.Context(), now[3]); !errors.Is(err, cluster.ErrForgotten) {
		t.Errorf("a host that was removed: %v", err)
	}
}
