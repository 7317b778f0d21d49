package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/clustertest"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/store"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const macA, macB record.MAC = "02:42:0a:14:00:0a", "02:42:0a:14:00:0b"

// TestClaims: when hosts ask at the same time, each name, VNI and address has one owner.
func TestClaims(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	const hosts, each = 4, 8
	var mu sync.Mutex
	nets, owners, refused := map[string]bool{}, map[netip.Addr]string{}, 0
	var all sync.WaitGroup
	for n := 1; n <= hosts; n++ {
		c := hosttest.Member(t, e, n)
		all.Add(1)
		go func() {
			defer all.Done()
			net, m := hosttest.JoinBlue(t, c, n)
			mu.Lock()
			nets[fmt.Sprint(net.ID, net.VNI)] = true
			mu.Unlock()
			for i := range each {
				a := netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + i)}) // the same on all hosts
				b := netip.AddrFrom4([4]byte{10, 20, byte(n), byte(10 + i)})
				err := hosttest.Retry(func() error {
					return c.ClaimAddresses(t.Context(), m,
						record.Address{Addr: a, Use: record.Warm}, record.Address{Addr: b, Use: record.Warm})
				})
				mu.Lock()
				switch {
				case err == nil && owners[a] != "":
					t.Errorf("%s belongs to %s and to %s", a, owners[a], m.Host)
				case err == nil:
					owners[a] = m.Host
				case errors.Is(err, cluster.ErrTaken) && strings.Contains(err.Error(), a.String()):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		}()
	}
	all.Wait()
	if len(nets) != 1 || len(owners) != each || refused != (hosts-1)*each {
		t.Errorf("networks %v, %d addresses, refused %d times", nets, len(owners), refused)
	}
	c := hosttest.Member(t, e, 1)
	recs, err := c.List(t.Context(), "addr/")
	must(t, err)
	if len(recs) != 2*each+2 { // 2 gateways are among them
		t.Errorf("%d addresses, want %d: a refused claim of two must claim neither", len(recs), 2*each+2)
	}
	t.Log(e.Version(t))
}

// TestRefusals: a refused call names what and whose it is, and changes nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := hosttest.Member(t, e, 1), hosttest.Client(t, e)
	if _, err := two.Enter(t.Context(), record.Meta{Port: 4790}); err == nil ||
		!strings.Contains(err.Error(), "VXLAN port 4789") {
		t.Errorf("another port: %v", err)
	}
	if _, err := two.Enter(t.Context(), record.Meta{Port: 4789, IPv6: true}); err == nil ||
		!strings.Contains(err.Error(), "use IPv4") {
		t.Errorf("another family: %v", err)
	}
	other := record.Meta{Port: 4789, Cluster: hosttest.ID(77)}
	if _, err := two.Enter(t.Context(), other); !errors.Is(err, etcd.ErrOther) {
		t.Errorf("another cluster: %v", err)
	}
	if err := two.Join(t.Context(), *hosttest.Host(2)); !errors.Is(err, etcd.ErrNotYet) {
		t.Errorf("join before Enter: %v", err)
	}
	_, err := two.Enter(t.Context(), record.Meta{Port: 4789})
	must(t, err)
	for what, h := range map[string]record.Host{
		"host name h1 is taken by 000000000000": {ID: hosttest.ID(2), Name: "h1", VTEP: hosttest.Host(2).VTEP, MTU: 1500},
		"address 192.0.2.1 is taken":            {ID: hosttest.ID(2), Name: "h2", VTEP: hosttest.Host(1).VTEP, MTU: 1500},
		"mtu 100":                               {ID: hosttest.ID(2), Name: "h2", VTEP: hosttest.Host(2).VTEP, MTU: 100},
	} {
		if err := two.Join(t.Context(), h); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	must(t, two.Join(t.Context(), *hosttest.Host(2)))
	net, m1 := hosttest.JoinBlue(t, one, 1)
	for what, n := range map[string]record.Network{
		"10.21.0.0/16 (gateway 10.21.0.1) differ from the cluster's 10.20.0.0/16 (gateway 10.20.0.1), fd20::/64": {
			Name: "blue", Subnets: []record.Subnet{
				{Pool: netip.MustParsePrefix("10.21.0.0/16"), Gateway: netip.MustParseAddr("10.21.0.1")},
			},
		},
		"MTU 1400 differs from the cluster's 1450": {Name: "blue", MTU: 1400},
		"internal is false":                        {Name: "blue", Internal: true},
		"network green is not in the cluster":      {Name: "green"},
		"letters and digits":                       {Name: "../green"},
	} {
		if _, err := two.CreateNetwork(t.Context(), n); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	same, err := two.CreateNetwork(t.Context(), record.Network{Name: "blue"})
	if err != nil || same.ID != net.ID || same.VNI != net.VNI {
		t.Errorf("without subnets: %+v, %v", same, err)
	}
	m2 := record.Member{Network: net.ID, Host: hosttest.ID(2)}
	a := record.Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: record.Warm}
	if err := two.ClaimAddresses(t.Context(), m2, a); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("an address for a host that is not on the network: %v", err)
	}
	gateway := record.Address{Addr: netip.MustParseAddr("10.20.0.1"), Use: record.Warm}
	if err := one.ClaimAddresses(t.Context(), m1, gateway); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("the gateway's address: %v", err)
	}
	must(t, one.ClaimAddresses(t.Context(), m1, a))
	hosttest.Put(t, e, record.Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.0.6")}.Key(), "{garbage")
	invalid := record.Address{Addr: netip.MustParseAddr("10.20.0.6"), Use: record.Warm}
	if err := one.ClaimAddresses(t.Context(), m1, invalid); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("an address with an invalid record: %v", err)
	}
	if err := one.DeleteNetwork(t.Context(), net); !errors.Is(err, etcd.ErrInUse) {
		t.Errorf("a network that is on a host: %v", err)
	}
}

// TestAddressLifecycle: an address is spare, then an endpoint's, then spare again; a host never releases another
// host's.
func TestAddressLifecycle(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := hosttest.Member(t, e, 1), hosttest.Member(t, e, 2)
	net, m1 := hosttest.JoinBlue(t, one, 1)
	_, m2 := hosttest.JoinBlue(t, two, 2)
	a := netip.MustParseAddr("10.20.0.5")
	key := record.Address{Network: net.ID, Addr: a}.Key()
	for _, as := range []record.Address{
		{Addr: a, Use: record.Warm},
		{Addr: a, Use: record.Endpoint, Endpoint: "e1", MAC: macA, Name: "web"},
		{Addr: a, Use: record.Endpoint, Endpoint: "e1", MAC: macA, Name: "web"}, // a second claim changes nothing
		{Addr: a, Use: record.Warm},
	} {
		must(t, one.ClaimAddresses(t.Context(), m1, as))
		found, err := one.Read(t.Context(), "look", []string{key})
		must(t, err)
		got := found[key].Record.(*record.Address)
		if got.Use != as.Use || got.MAC != as.MAC || got.Host != hosttest.ID(1) {
			t.Errorf("%+v became %+v", as, got)
		}
	}
	must(t, two.Release(t.Context(), m2, a))
	warm := record.Address{Addr: a, Use: record.Warm}
	if err := two.ClaimAddresses(t.Context(), m2, warm); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("released by a host that does not have it: %v", err)
	}
	must(t, one.Release(t.Context(), m1, a, netip.MustParseAddr("10.20.0.77")))
	must(t, two.ClaimAddresses(t.Context(), m2, record.Address{Addr: a, Use: record.Warm}))
	must(t, one.LeaveNetwork(t.Context(), m1))
	must(t, one.LeaveNetwork(t.Context(), m1))
	must(t, one.DeleteUnusedNetwork(t.Context(), net.ID))
	if _, err := one.FindNetwork(t.Context(), "blue"); err != nil {
		t.Errorf("deleted while it was on a host: %v", err)
	}
	must(t, two.LeaveNetwork(t.Context(), m2))
	must(t, two.DeleteUnusedNetwork(t.Context(), net.ID))
	must(t, two.DeleteUnusedNetwork(t.Context(), net.ID))
	checkRestoreNetwork(t, two, net, m2)
	left, err := two.List(t.Context(), "")
	must(t, err)
	var keys []string
	for _, r := range left {
		if _, ok := r.(*record.Host); !ok {
			keys = append(keys, r.Key())
		}
	}
	slices.Sort(keys)
	want := []string{
		"hostname/h1", "hostname/h2", "meta", hosttest.Host(1).Claims()[1].Key(), hosttest.Host(2).Claims()[1].Key(),
	}
	if !slices.Equal(keys, want) {
		t.Errorf("left %q, want %q", keys, want)
	}
}

// checkRestoreNetwork checks that a network that etcd does not have is restored, unless another has its name by then.
func checkRestoreNetwork(t *testing.T, c *cluster.Client, net record.Network, m record.Member) {
	t.Helper()
	must(t, c.RestoreNetwork(t.Context(), net))
	must(t, c.RestoreNetwork(t.Context(), net))
	must(t, c.JoinNetwork(t.Context(), m))
	if back, err := c.FindNetwork(t.Context(), net.Name); err != nil || back.ID != net.ID || back.VNI != net.VNI {
		t.Errorf("restored network: %+v, %v", back, err)
	}
	gateway := record.Address{Addr: net.Subnets[0].Gateway, Use: record.Warm}
	if err := c.ClaimAddresses(t.Context(), m, gateway); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("the gateway's address: %v", err)
	}
	must(t, c.LeaveNetwork(t.Context(), m))
	must(t, c.DeleteUnusedNetwork(t.Context(), net.ID))
	other, err := c.CreateNetwork(t.Context(), record.Network{Name: net.Name, MTU: net.MTU, Subnets: net.Subnets})
	must(t, err)
	if err := c.RestoreNetwork(t.Context(), net); !errors.Is(err, cluster.ErrTaken) {
		t.Errorf("restored although another network has its name: %v", err)
	}
	must(t, c.DeleteNetwork(t.Context(), other))
}

// TestResetMachine: a machine that was reset can announce itself before its former Alive record expires;
// a clone cannot.
func TestResetMachine(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := hosttest.Member(t, e, 1)
	was := *hosttest.Host(1)
	was.Card = macA
	must(t, c.Join(t.Context(), was))
	lease, err := c.Grant(t.Context(), time.Minute)
	must(t, err)
	say := func(h record.Host, boot string) error {
		return cluster.WriteAlive(c, t.Context(), h, record.Alive{Host: h.ID, Boot: boot}, lease)
	}
	must(t, say(was, "boot1"))
	for what, change := range map[string]func(h *record.Host){
		"another card":    func(h *record.Host) { h.Card = macB },
		"a card unknown":  func(h *record.Host) { h.Card = "" },
		"another address": func(h *record.Host) { h.VTEP = netip.MustParseAddr("192.0.2.77") },
	} {
		clone := was
		change(&clone)
		if err := say(clone, "boot2"); !errors.Is(err, cluster.ErrTwin) {
			t.Errorf("a machine with %s: %v, want %v", what, err, cluster.ErrTwin)
		}
	}
	must(t, say(was, "boot2"))
	if err := say(was, "boot2"); err != nil {
		t.Errorf("after a restart of the daemon: %v", err)
	}

	was.Card = "" // as an older netyard wrote it
	must(t, c.Join(t.Context(), was))
	was.Card = macA
	if err := say(was, "boot3"); !errors.Is(err, cluster.ErrTwin) {
		t.Errorf("a machine whose record has no card: %v, want %v", err, cluster.ErrTwin)
	}
}

// TestTwinOnTheSameCard: a clone of a running machine, with its address and its MAC, is taken for the machine after a
// reset; but the running one notices, reports ErrTwin while the clone is there, and does not replace the clone's Alive
// record in turn.
func TestTwinOnTheSameCard(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	h := *hosttest.Host(1)
	h.Card = macA
	c := hosttest.Member(t, e, 1)
	alive := func(boot string) (stop func(), last func() error) {
		c := hosttest.Client(t, e)
		_, err := c.Enter(t.Context(), record.Meta{Port: 4789})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		said := errors.New("not yet")
		note := func(e error) { mu.Lock(); said = e; mu.Unlock() }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.StayAlive(ctx, quiet(), func() record.Host { return h }, boot, note)
		}()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop, func() error { mu.Lock(); defer mu.Unlock(); return said }
	}
	_, first := alive("boot1")
	clustertest.Eventually(t, "the host is not alive", func() bool { return first() == nil })
	stop, second := alive("boot2")
	clustertest.Eventually(t, "a machine on the same card is refused", func() bool { return second() == nil })
	clustertest.Eventually(t, "the running machine does not notice",
		func() bool { return errors.Is(first(), cluster.ErrTwin) })
	recs, err := c.List(t.Context(), record.Alive{Host: h.ID}.Key())
	must(t, err)
	if a, ok := recs[0].(*record.Alive); !ok || a.Boot != "boot2" || second() != nil {
		t.Errorf("the Alive record is %v; the second machine's error is %v", recs, second())
	}
	stop()
	clustertest.Eventually(t, "the first machine is no member after the second has gone",
		func() bool { return first() == nil })
}

// TestHosts: a host is renamed, gets another address, is cloned, removed from the cluster and readmitted.
func TestHosts(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := hosttest.Member(t, e, 1), hosttest.Member(t, e, 2)
	moved := *hosttest.Host(1)
	moved.Name, moved.VTEP = "one", netip.MustParseAddr("192.0.2.101")
	must(t, one.Join(t.Context(), moved))
	third := *hosttest.Host(3)
	third.Name, third.VTEP = "h1", hosttest.Host(1).VTEP // free since host 1 changed them
	must(t, two.Join(t.Context(), third))

	alive := func(c *cluster.Client, boot string) (stop func(), last func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		err := errors.New("not yet")
		note := func(e error) { mu.Lock(); err = e; mu.Unlock() }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.StayAlive(ctx, quiet(), func() record.Host { return moved }, boot, note)
		}()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop, func() error { mu.Lock(); defer mu.Unlock(); return err }
	}
	stop, said := alive(one, "boot1")
	clustertest.Eventually(t, "the host is not alive", func() bool { return said() == nil })
	clone := hosttest.Client(t, e)
	_, err := clone.Enter(t.Context(), record.Meta{Port: 4789})
	must(t, err)
	_, saidClone := alive(clone, "boot2")
	clustertest.Eventually(t, "a clone is not refused", func() bool { return errors.Is(saidClone(), cluster.ErrTwin) })
	stop()
	clustertest.Eventually(t, "the clone is no member after the first machine has gone",
		func() bool { return saidClone() == nil })

	net, m1 := hosttest.JoinBlue(t, one, 1)
	a := netip.MustParseAddr("10.20.0.5")
	must(t, one.ClaimAddresses(t.Context(), m1,
		record.Address{Addr: a, Use: record.Endpoint, Endpoint: "e", MAC: macA}))
	if err := two.Forget(t.Context(), hosttest.ID(44), "h2"); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("removal of an unknown host: %v", err)
	}
	must(t, two.Forget(t.Context(), hosttest.ID(1), "h2"))
	must(t, two.Forget(t.Context(), hosttest.ID(1), "h2"))
	clustertest.Eventually(t, "a removed host does not notice",
		func() bool { return errors.Is(saidClone(), cluster.ErrForgotten) })
	warm := record.Address{Addr: a, Use: record.Warm}
	if err := one.ClaimAddresses(t.Context(), m1, warm); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("an address for a removed host: %v", err)
	}
	if err := one.JoinNetwork(t.Context(), m1); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("a network for a removed host: %v", err)
	}
	if err := one.Join(t.Context(), moved); !errors.Is(err, cluster.ErrForgotten) {
		t.Errorf("a removed host joins by itself: %v", err)
	}
	_, m2 := hosttest.JoinBlue(t, two, 2)
	must(t, two.ClaimAddresses(t.Context(), m2, record.Address{Addr: a, Use: record.Warm}))
	must(t, one.Readmit(t.Context(), hosttest.ID(1)))
	must(t, one.Join(t.Context(), moved))
	must(t, one.JoinNetwork(t.Context(), record.Member{Network: net.ID, Host: hosttest.ID(1)}))
	clustertest.Eventually(t, "a readmitted host is not alive", func() bool { return saidClone() == nil })
}

// TestIdentity: a host's identity is made once.
func TestIdentity(t *testing.T) {
	t.Parallel()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	defer st.Close()
	who, err := cluster.LoadIdentity(st)
	must(t, err)
	who.Meta.Cluster = hosttest.ID(1)
	must(t, cluster.SaveIdentity(st, who))
	if again, err := cluster.LoadIdentity(st); err != nil || again != who {
		t.Errorf("identity was saved as %+v and loaded as %+v, %v", who, again, err)
	}
}
