package address

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fake is etcd and a mirror of it at once. It is used by one goroutine.
type fake struct {
	claimed map[netip.Addr]record.Address
	away    bool
	// missing says that this host has not joined the network.
	missing bool
	writes  int
	// unbound says that the network is not on this host any more.
	unbound bool
	// after is called after each write; nil: nothing.
	after func()
}

func (f *fake) wrote() {
	if f.after != nil {
		f.after()
	}
}

func (f *fake) ClaimAddresses(_ context.Context, m record.Member, want ...record.Address) error {
	switch f.writes++; {
	case f.away:
		return etcd.ErrUnreachable
	case f.missing:
		return cluster.ErrNotFound
	}
	for _, a := range want {
		if has, ok := f.claimed[a.Addr]; ok && has.Host != m.Host {
			return &cluster.TakenError{Addrs: []netip.Addr{a.Addr}}
		}
	}
	for _, a := range want {
		a.Network, a.Host = m.Network, m.Host
		f.claimed[a.Addr] = a
	}
	f.wrote()
	return nil
}

func (f *fake) Release(_ context.Context, m record.Member, addrs ...netip.Addr) error {
	if f.writes++; f.away {
		return etcd.ErrUnreachable
	}
	for _, a := range addrs {
		if f.claimed[a].Host == m.Host {
			delete(f.claimed, a)
		}
	}
	f.wrote()
	return nil
}

func (f *fake) Health() (h etcd.Health) {
	if f.away {
		h.Down = time.Now()
	}
	return h
}

func (f *fake) Get(key string) record.Record {
	for _, a := range f.claimed {
		if a.Key() == key {
			return &a
		}
	}
	return nil
}

func (f *fake) Has(key string) bool { return f.Get(key) != nil }

func (f *fake) Each(call func(record.Record)) {
	for _, a := range f.claimed {
		call(&a)
	}
}

// blue returns the addresses of host 1 on the network of hosttest.Blue, with an etcd.
func blue(t *testing.T) (*Network, *fake) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	f := &fake{claimed: map[netip.Addr]record.Address{}}
	r, err := Open(Config{
		Log: slog.New(slog.DiscardHandler), Store: st, Etcd: f, Host: hosttest.ID(1), Cooldown: time.Hour,
		Held: func(string, netip.Addr) bool { return false }, Reason: func() error { return nil },
		Bound:   func(store.Tx, string) bool { return !f.unbound },
		Changed: func(string) {}, Wake: func() {},
	})
	must(t, err)
	n, err := r.Network(hosttest.Blue(), NetworkConfig{
		Claims: f, Join: func(context.Context) error { f.missing = false; return nil }, HostChanged: func() {},
	})
	must(t, err)
	return n, f
}

const mac record.MAC = "02:42:0a:14:00:0a"

// count counts the host's addresses that match.
func (n *Network) count(t *testing.T, match func(Own) bool) (count int) {
	t.Helper()
	own, err := n.r.List(n.ID)
	must(t, err)
	for _, o := range own {
		if match(o) {
			count++
		}
	}
	return count
}

// TestWarm: a host claims an address of its own and spare ones in each subnet; while etcd is away it grants these and
// writes what became of them when etcd is back.
func TestWarm(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	must(t, n.Fill(t.Context(), mac))
	must(t, n.Fill(t.Context(), mac)) // nothing is missing
	if idle, host := n.count(t, Own.Idle), n.count(t, Own.OfHost); idle != 2*MaxWarm || host != 2 {
		t.Fatalf("%d spare addresses and %d of the host", idle, host)
	}
	prefixes, err := n.HostAddrs()
	if err != nil || len(prefixes) != 2 {
		t.Errorf("the host's addresses are %v, %v", prefixes, err)
	}
	f.away = true
	for i := range MaxWarm {
		endpoint := fmt.Sprint("e", i)
		a, err := n.Grant(t.Context(), Wish{Endpoint: endpoint})
		must(t, err)
		if again, err := n.Grant(t.Context(), Wish{Endpoint: endpoint}); err != nil || again != a {
			t.Errorf("granted %s, and then %s, %v", a, again, err)
		}
		must(t, n.r.Publish(n.ID, []netip.Addr{a}, endpoint, mac, "web", nil))
	}
	if err := n.Room(false); !errors.Is(err, ErrNone) {
		t.Errorf("room without a spare address: %v", err)
	}
	if err := n.Room(true); err != nil {
		t.Errorf("room with spare addresses: %v", err)
	}
	if _, err := n.Grant(t.Context(), Wish{Endpoint: "more"}); !errors.Is(err, ErrNone) ||
		!errors.Is(err, etcd.ErrUnreachable) {
		t.Errorf("without a spare address: %v", err)
	}
	if got, err := n.Grant(t.Context(), Wish{Endpoint: "more"}); !errors.Is(err, ErrNone) {
		t.Errorf("an address that etcd was asked for in vain is granted: %s, %v", got, err)
	}
	f.away, f.writes = false, 0
	must(t, n.Sync(t.Context()))
	published := 0
	for _, a := range f.claimed {
		if a.Use == record.Endpoint && a.Name == "web" {
			published++
		}
	}
	if published != MaxWarm || f.writes > 2 {
		t.Errorf("etcd has %d of %d endpoints after %d transactions", published, MaxWarm, f.writes)
	}
}

// TestGrantBeforeJoin: a request for an address of a network that the host has not joined in etcd yet joins it.
func TestGrantBeforeJoin(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	f.missing = true
	want := netip.MustParseAddr("10.20.7.7")
	if got, err := n.Grant(t.Context(), Wish{Endpoint: "one", Addr: want}); err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
}

// TestRecordWarm: an address that a request was granted meanwhile is not recorded as spare, and not released as
// unknown.
func TestRecordWarm(t *testing.T) {
	t.Parallel()
	n, _ := blue(t)
	before, err := n.r.List(n.ID)
	must(t, err)
	want := netip.MustParseAddr("10.20.7.7")
	if _, err := n.Grant(t.Context(), Wish{Endpoint: "one", Addr: want}); err != nil {
		t.Fatal(err)
	}
	must(t, n.recordWarm([]record.Address{{Addr: want, Use: record.Warm}}))
	got, err := n.Grant(t.Context(), Wish{Endpoint: "two", Addr: want})
	if !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("another container: %s, %v", got, err)
	}
	after, err := n.compareWithEtcd(before)
	must(t, err)
	for _, o := range after {
		if o.Addr == want {
			t.Errorf("an address that was granted is to be released: %+v", o)
		}
	}
}

// TestUnused: an address that is granted and never published is released, unless it is held.
func TestUnused(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	a, err := n.Grant(t.Context(), Wish{Endpoint: "unused"})
	must(t, err)
	must(t, n.Sync(t.Context()))
	if _, ok := f.claimed[a]; !ok {
		t.Error("an address that was just granted is released")
	}
	n.r.useTimeout = 0
	n.r.c.Held = func(string, netip.Addr) bool { return true }
	must(t, n.Sync(t.Context()))
	if _, ok := f.claimed[a]; !ok {
		t.Error("an address that is held is released")
	}
	n.r.c.Held = func(string, netip.Addr) bool { return false }
	must(t, n.Sync(t.Context()))
	if _, ok := f.claimed[a]; ok {
		t.Error("an unused address is not released")
	}
}

// TestUnsure: an address that was claimed when etcd did not answer is claimed again for who requests it.
func TestUnsure(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	w := Wish{Endpoint: "one", Addr: netip.MustParseAddr("10.20.7.7")}
	f.away = true
	if _, err := n.Grant(t.Context(), w); !errors.Is(err, etcd.ErrUnreachable) {
		t.Errorf("while etcd is away: %v", err)
	}
	f.away = false
	f.claimed[w.Addr] = record.Address{Network: n.ID, Addr: w.Addr, Host: hosttest.ID(2), Use: record.Warm}
	if got, err := n.Grant(t.Context(), w); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("another host's address: %s, %v", got, err)
	}
	delete(f.claimed, w.Addr)
	if got, err := n.Grant(t.Context(), w); err != nil || got != w.Addr || f.claimed[got].Host != hosttest.ID(1) {
		t.Errorf("a free address: %s, %v; claimed is %+v", got, err, f.claimed[got])
	}
}

// TestLost: an endpoint whose address is another host's is fenced with all of its addresses, until the address is free
// again.
func TestLost(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	var addrs []netip.Addr
	for _, v6 := range []bool{false, true} {
		a, err := n.Grant(t.Context(), Wish{Endpoint: "e1", V6: v6})
		must(t, err)
		addrs = append(addrs, a)
	}
	must(t, n.r.Publish(n.ID, addrs, "e1", mac, "web", nil))
	must(t, n.Sync(t.Context()))
	mine := f.claimed[addrs[0]]
	other := mine
	other.Host = hosttest.ID(2)
	f.claimed[addrs[0]] = other
	if err := n.Sync(t.Context()); !errors.Is(err, errTaken) {
		t.Errorf("an address that was lost: %v", err)
	}
	must(t, n.Sync(t.Context()))
	fenced, err := n.Fenced()
	if err != nil || fenced["e1"] != addrs[0] || len(fenced) != 1 {
		t.Errorf("fenced are %v, %v", fenced, err)
	}
	if use := f.claimed[addrs[1]].Use; use != record.Warm {
		t.Errorf("the other address of a fenced endpoint is published: %s", use)
	}
	if _, err := n.Grant(t.Context(), Wish{Endpoint: "e2", Addr: addrs[0]}); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("a lost address is granted: %v", err)
	}
	delete(f.claimed, addrs[0])
	must(t, n.Sync(t.Context()))
	if fenced, err := n.Fenced(); err != nil || len(fenced) != 0 {
		t.Errorf("after the address is free, fenced are %v, %v", fenced, err)
	}
	must(t, n.Sync(t.Context()))
	for _, a := range addrs {
		if now := f.claimed[a]; now.Host != hosttest.ID(1) || now.Use != record.Endpoint {
			t.Errorf("address %s is claimed as %+v", a, now)
		}
	}
}

// TestInterrupted: an address that was being claimed when the daemon died is released by the next one.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	o := Own{Network: n.ID, Addr: netip.MustParseAddr("10.20.7.7"), Use: record.Warm, Endpoint: "e1", Trying: true}
	must(t, n.r.c.Store.Update(func(tx store.Tx) error { return owns.Put(tx, o.key(), o) }))
	f.claimed[o.Addr] = *o.record(hosttest.ID(1))
	_, err := Open(n.r.c)
	must(t, err)
	must(t, n.Sync(t.Context()))
	if _, ok := f.claimed[o.Addr]; ok || n.count(t, func(Own) bool { return true }) != 0 {
		t.Errorf("the address stays: %v", f.claimed)
	}
}

// TestReleasedAndClaimed: an address that was claimed again while it was being released is claimed once more.
func TestReleasedAndClaimed(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	want := netip.MustParseAddr("10.20.7.7")
	o := Own{Network: n.ID, Addr: want, Use: record.Warm, Gone: true}
	put := func() {
		must(t, n.r.c.Store.Update(func(tx store.Tx) error { return owns.Put(tx, o.key(), o) }))
	}
	put()
	f.after = func() {
		f.after = nil
		o.Gone, o.Synced, o.Endpoint = false, true, "one"
		put()
	}
	must(t, n.Sync(t.Context()))
	if n.count(t, func(o Own) bool { return o.Endpoint == "one" && !o.Synced }) != 1 {
		t.Error("an address that etcd may not have any more is recorded as claimed")
	}
	must(t, n.Sync(t.Context()))
	if f.claimed[want].Host != hosttest.ID(1) {
		t.Errorf("claimed is %+v", f.claimed[want])
	}
}

// TestUnbound: of a network that is unbound while its addresses are claimed, none is recorded: they would be granted
// after the network is back, although they may be other hosts' by then.
func TestUnbound(t *testing.T) {
	t.Parallel()
	n, f := blue(t)
	unbind := func() {
		f.after, f.unbound = nil, true
		must(t, n.r.c.Store.Update(func(tx store.Tx) error { return Forget(tx, n.ID) }))
	}
	check := func(what string) {
		t.Helper()
		if left := n.count(t, func(Own) bool { return true }); left != 0 {
			t.Errorf("%s: %d addresses are recorded", what, left)
		}
		f.unbound = false
	}
	f.after = unbind
	must(t, n.Fill(t.Context(), mac))
	check("warm addresses")

	w := Wish{Endpoint: "one", Addr: netip.MustParseAddr("10.20.7.7")}
	f.after = unbind
	if got, err := n.Grant(t.Context(), w); err == nil {
		t.Errorf("granted is %s", got)
	}
	check("a grant")

	f.unbound, f.writes = true, 0
	if got, err := n.Grant(t.Context(), w); err == nil || f.writes != 0 {
		t.Errorf("granted is %s after %d writes", got, f.writes)
	}
	check("a grant of an unbound network")

	f.unbound = true
	if own, err := n.compareWithEtcd(nil); err != nil || len(own) != 0 {
		t.Errorf("to be released are %v, %v", own, err)
	}
	check("unknown claims")

	f.after = func() { unbind(); f.unbound = false } // it is back at once
	if got, err := n.Grant(t.Context(), Wish{Endpoint: "one", V6: true}); err == nil {
		t.Errorf("granted is %s", got)
	}
	check("a grant of a network that is back")
}
