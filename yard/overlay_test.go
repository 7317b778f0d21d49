package yard_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	cetcd "netyard/cluster/etcd"
	"netyard/cluster/record"
	"netyard/fabric"
	"netyard/ipam"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/overlay"
	"netyard/store"
	"netyard/yard"
	yattach "netyard/yard/attach"
	"netyard/yard/book"
	yoverlay "netyard/yard/overlay"
	yown "netyard/yard/own"
	"netyard/yard/plan"
	"netyard/yard/reconcile"
	"netyard/yard/source"
)

// A member is a host of a cluster, with a yard on it.
type member struct {
	*kerneltest.Host
	*yard.Yard
	agent  *fabric.Agent
	client *cluster.Client
}

// members makes hosts of one cluster.
func members(t *testing.T, etcd *clustertest.Etcd, many int) (all []*member) {
	t.Helper()
	lan := kerneltest.New(t)
	lan.Sh(t, "ip link add br0 type bridge && ip link set br0 up")
	log := slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= many; n++ {
		m := &member{Host: lan.Peer(t, fmt.Sprint("p", n))}
		lan.Sh(t, fmt.Sprintf("ip link set p%d master br0", n))
		m.Sh(t, fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth0", n))
		st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
		must(err)
		m.client, err = cluster.Open(cetcd.Config{Endpoints: []string{etcd.URL}, Insecure: true})
		must(err)
		m.agent, err = fabric.New(fabric.Config{
			Log: log, Client: m.client, Store: st, Kernel: m.Kernel, Port: 4789, BootID: fmt.Sprint("boot", n),
			Host: record.Host{Name: fmt.Sprint("h", n), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), MTU: 1500},
			Held: func(network string, a netip.Addr) bool { return yoverlay.HasAddress(m.Book, network, a) },
		})
		must(err)
		f := fabric.Modes{A: m.agent}
		m.Yard = yard.New(book.Config{
			Log: log, Store: st, Kernel: plan.Host{Kernel: m.Kernel}, Handle: m.Handle,
			BootID: "boot-1", IPAM: ipam.New(ipam.Config{}), Fabric: f,
			Modes:      map[string]modes.Mode{"overlay": overlay.New(modes.Env{Fabric: f})},
			Background: func(f func()) { f() },
		})
		must(reconcile.Restore(t.Context(), m.Yard, false))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.agent.Run(ctx)
		}()
		t.Cleanup(func() {
			cancel()
			<-done
			_, _ = m.client.Close(), st.Close()
		})
		clustertest.Eventually(t, "the host is no member", func() bool {
			s, err := m.agent.Status()
			return err == nil && s.Reason == ""
		})
		all = append(all, m)
	}
	return all
}

func blue(subnets ...string) book.NetworkRequest {
	r := book.NetworkRequest{Name: "blue", Mode: "overlay"}
	for _, s := range subnets {
		r.Subnets = append(r.Subnets, book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix(s)}})
	}
	return r
}

// settled waits until the host has addresses in store for the network, and etcd has all of its records.
func (m *member) settled(t *testing.T) {
	t.Helper()
	clustertest.Eventually(t, "the host does not settle", func() bool {
		s, err := m.agent.Status()
		for _, n := range s.Networks {
			if n.Waiting > 0 || n.Warm < 16 || n.Unsure {
				return false
			}
		}
		return err == nil
	})
}

func (m *member) healthy(t *testing.T, when string) {
	t.Helper()
	m.settled(t)
	var said string
	// The watcher mends meanwhile.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		found, err := reconcile.Audit(t.Context(), m.Yard, nil)
		if err == nil && len(found) == 0 {
			return
		}
		said = fmt.Sprint(found, err)
	}
	t.Errorf("%s: %s", when, said)
}

// records returns the addresses of containers in etcd.
func (m *member) records(t *testing.T) (all []*record.Address) {
	t.Helper()
	rs, err := m.client.List(t.Context(), "addr/")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		if a := r.(*record.Address); a.Use == record.Endpoint {
			all = append(all, a)
		}
	}
	return all
}

// TestOverlayMade shows that a network made on one host exists for the others until the last one removes it.
func TestOverlayMade(t *testing.T) {
	t.Parallel()
	hosts := members(t, clustertest.Start(t, ""), 2)
	one, two := hosts[0], hosts[1]
	refused := func(m *member, want string, r book.NetworkRequest) {
		t.Helper()
		if _, err := yown.CreateNetwork(t.Context(), m.Yard, r); err == nil || !strings.Contains(err.Error(), want) ||
			!errors.Is(err, modes.ErrOption) {
			t.Errorf("%v, want %q", err, want)
		}
		if ns, _ := m.Networks(); len(ns) > 0 {
			t.Errorf("a refusal left %v", ns)
		}
	}
	v6 := blue("10.20.0.0/16")
	v6.IPv6 = true
	ranged := blue("10.20.0.0/16")
	ranged.Subnets[0].Pool.Range = netip.MustParsePrefix("10.20.1.0/24")
	refused(one, "give its --subnet on the first host", blue())
	refused(one, "ipv6: give an IPv6 subnet too", v6)
	refused(one, "the hosts allocate addresses from the whole subnet", ranged)
	kept := blue("10.20.0.0/16")
	kept.Subnets[0].Aux = map[string]netip.Addr{"printer": netip.MustParseAddr("10.20.0.9")}
	refused(one, "aux-address: the other hosts would give it to their containers", kept)
	first := blue("10.20.0.0/16", "fd20::/64")
	first.Internal = true
	first.Subnets[0].Gateway = netip.MustParseAddr("10.20.0.7")
	n, err := yown.CreateNetwork(t.Context(), one.Yard, first)
	if err != nil {
		t.Fatal(err)
	}
	refused(two, "subnet 10.21.0.0/16 differs from the cluster's 10.20.0.0/16, fd20::/64", blue("10.21.0.0/16"))
	gateway := blue("10.20.0.0/16")
	gateway.Subnets[0].Gateway = netip.MustParseAddr("10.20.0.1")
	refused(two, "gateway 10.20.0.1 differs from the cluster's 10.20.0.7", gateway)
	there, err := yown.CreateNetwork(t.Context(), two.Yard, blue())
	if err != nil {
		t.Fatal(err)
	}
	if !there.Internal || !there.IPv6 || !slices.EqualFunc(there.Subnets, n.Subnets,
		func(a, b modes.Subnet) bool { return a.Pool == b.Pool && a.Gateway == b.Gateway }) {
		t.Errorf("%+v is not %+v", there, n)
	}
	one.healthy(t, "one")
	two.healthy(t, "two")
	if err := one.client.RemoveOverlay(t.Context(), "blue"); err == nil ||
		!strings.Contains(err.Error(), "is in use on h1, h2") {
		t.Errorf("taken from under its hosts: %v", err)
	}
	remove := func(m *member) {
		t.Helper()
		if _, err := yown.RemoveNetwork(t.Context(), m.Yard, "blue"); err != nil {
			t.Fatal(err)
		}
	}
	left := func(want int) func() bool {
		return func() bool {
			all, err := one.client.Overlays(t.Context())
			return err == nil && (want == 0 && len(all) == 0 || len(all) == 1 && len(all[0].Hosts) == want)
		}
	}
	remove(one)
	clustertest.Eventually(t, "one host keeps it", left(1))
	remove(two)
	if _, err := yown.CreateNetwork(t.Context(), two.Yard, blue("10.99.0.0/16")); err != nil {
		t.Errorf("made anew at once: %v", err)
	}
	remove(two)
	clustertest.Eventually(t, "the last host did not take it along", left(0))
	for _, kind := range []string{"addr/", "netname/", "vni/", "member/"} {
		if rest, err := one.client.List(t.Context(), kind); err != nil || len(rest) > 0 {
			t.Errorf("left in etcd: %v %v", rest, err)
		}
	}
}

// TestOverlayAttached shows that attachments have addresses of the cluster as long as they exist or are held.
func TestOverlayAttached(t *testing.T) {
	t.Parallel()
	etcd := clustertest.Start(t, "")
	hosts := members(t, etcd, 2)
	ids := map[*member]string{}
	for i, m := range hosts {
		r := blue()
		if i == 0 {
			r = blue("10.20.0.0/16", "fd20::/64")
		}
		n, err := yown.CreateNetwork(t.Context(), m.Yard, r)
		if err != nil {
			t.Fatal(err)
		}
		ids[m] = n.ID
		m.settled(t)
	}
	one, two := hosts[0], hosts[1]
	attach := func(m *member, p place, name string, change ...func(*book.AttachRequest)) (book.Attached, error) {
		n, err := m.Network(ids[m])
		if err != nil {
			return book.Attached{}, err
		}
		r := p.request(n, name)
		for _, f := range change {
			f(&r)
		}
		return yattach.Attach(t.Context(), m.Yard, r)
	}
	must := func(a book.Attached, err error) book.Attached {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	p, q, s := newPlace(t), newPlace(t), newPlace(t)
	c1, c2 := must(attach(one, p, "c1")), must(attach(two, q, "c2"))
	third := func(r *book.AttachRequest) {
		r.Addrs = []netip.Addr{netip.MustParseAddr("10.20.3.3")}
		r.Container = modes.Container{Engine: book.Containerd, ID: "c3", Name: "web"}
		r.Aliases = []string{"db"}
	}
	c3 := must(attach(one, s, "c3", third))
	if c3.Endpoint.Addrs[0].Addr() != netip.MustParseAddr("10.20.3.3") || len(c3.Endpoint.Addrs) != 2 {
		t.Errorf("c3 has %v", c3.Endpoint.Addrs)
	}
	for _, from := range []place{p, q, s} {
		for _, to := range []book.Attached{c1, c2, c3} {
			for _, a := range to.Endpoint.Addrs {
				if !from.Pings(a.Addr().String(), true) {
					t.Errorf("%s is not reached", a)
				}
			}
		}
	}
	if again := must(attach(one, p, "c1")); !slices.Equal(again.Endpoint.Addrs, c1.Endpoint.Addrs) {
		t.Errorf("asked again it has %v, and had %v", again.Endpoint.Addrs, c1.Endpoint.Addrs)
	}
	if _, err := attach(two, newPlace(t), "thief", third); err == nil || !strings.Contains(err.Error(), "is taken") {
		t.Errorf("an address was allotted twice: %v", err)
	}
	named := func(name string, aliases ...string) func() bool {
		return func() bool {
			return slices.ContainsFunc(two.agent.Endpoints(two.overlayID(t)), func(r fabric.RemoteEndpoint) bool {
				return r.Addr == c3.Endpoint.Addrs[0].Addr() && r.Name == name && slices.Equal(r.Aliases, aliases) &&
					r.HostName == "h1"
			})
		}
	}
	clustertest.Eventually(t, "the other host does not know its names", named("web", "db"))
	if err := reconcile.Identify(t.Context(), one.Yard, c3.Endpoint,
		modes.Container{Name: "shop", Labels: map[string]string{"com.docker.compose.service": "front"}}); err != nil {
		t.Fatal(err)
	}
	clustertest.Eventually(t, "the other host does not hear of its new name", named("shop", "db", "front"))

	detach := func(p place, name string) {
		t.Helper()
		if err := yattach.Detach(t.Context(), one.Yard, p.end(modes.Network{ID: ids[one]}, name)); err != nil {
			t.Fatal(err)
		}
	}
	detach(s, "c3") // held: its engine will tell of its end
	one.healthy(t, "a held address")
	if _, err := attach(two, newPlace(t), "thief", third); err == nil {
		t.Error("a held address was allotted to another container")
	}
	detach(p, "c1")
	clustertest.Eventually(t, "an address was not given back", func() bool {
		all := one.records(t)
		return len(all) == 2 && all[0].Endpoint == c2.Endpoint.ID
	})
	if c3b := must(attach(one, s, "c3")); !slices.Equal(c3b.Endpoint.Addrs, c3.Endpoint.Addrs) {
		t.Errorf("it was stopped with %v, and started with %v", c3.Endpoint.Addrs, c3b.Endpoint.Addrs)
	}
	detach(s, "c3")
	if err := yattach.ContainerGone(t.Context(), one.Yard, "c3"); err != nil {
		t.Fatal(err)
	}
	clustertest.Eventually(t, "the address is not free", func() bool {
		_, err := attach(two, newPlace(t), "heir", third)
		return err == nil
	})
	one.settled(t)

	withoutEtcd(t, etcd, one, ids[one])
	if !q.Pings(c2.Endpoint.Addrs[0].Addr().String(), true) {
		t.Error("running containers are interrupted")
	}
}

// withoutEtcd: containers start while there are addresses in store.
func withoutEtcd(t *testing.T, etcd *clustertest.Etcd, one *member, id string) {
	t.Helper()
	etcd.Kill(t)
	clustertest.Eventually(t, "etcd is there", func() bool {
		s, _ := one.agent.Status()
		return !s.Health.Down.IsZero()
	})
	if err := source.Room(t.Context(), one.Book, id); err != nil {
		t.Errorf("with addresses in store: %v", err)
	}
	n, last := one.Network(id)
	for i := 0; last == nil && i < 20; i++ {
		_, last = yattach.Attach(t.Context(), one.Yard, newPlace(t).request(n, fmt.Sprint("late", i)))
	}
	if last == nil || !strings.Contains(last.Error(), "etcd is unreachable since") {
		t.Errorf("with an empty store: %v", last)
	}
	err := source.Room(t.Context(), one.Book, id)
	if err == nil || !strings.Contains(err.Error(), "no address can be claimed") {
		t.Errorf("with an empty store: %v", err)
	}
}

func (m *member) overlayID(t *testing.T) string {
	t.Helper()
	ids, err := yoverlay.Overlays(m.Book)
	if err != nil || len(ids) != 1 {
		t.Fatalf("%v %v", ids, err)
	}
	return ids[0]
}
