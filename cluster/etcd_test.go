package cluster

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

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster/clustertest"
	"netyard/store"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// client opens a Client of an etcd without TLS.
func client(t testing.TB, e *clustertest.Etcd) *Client {
	t.Helper()
	c, err := Open(Config{Endpoints: []string{e.URL}, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// member opens a Client that has entered the cluster and joined it as host n.
func member(t testing.TB, e *clustertest.Etcd, n int) *Client {
	t.Helper()
	c := client(t, e)
	must(t, eventually(func() error { _, err := c.Enter(t.Context(), Meta{Port: 4789}); return err }))
	must(t, eventually(func() error { return c.Join(t.Context(), *hostOf(n)) }))
	return c
}

// eventually repeats a call that a busy etcd may not answer in time.
func eventually(f func() error) (err error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if err = f(); !errors.Is(err, ErrUnreachable) || time.Now().After(end) {
			return err
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// raw writes a value that no Client would.
func raw(t testing.TB, c *Client, key, value string) {
	t.Helper()
	conn, err := c.dial(t.Context())
	must(t, err)
	_, err = conn.Put(t.Context(), c.prefix+key, value)
	must(t, err)
}

func joinBlue(t testing.TB, c *Client, n int) (Network, Member) {
	t.Helper()
	var net Network
	must(t, eventually(func() (err error) {
		net, err = c.CreateNetwork(t.Context(), Network{Name: "blue", MTU: 1450, Subnets: blue().Subnets})
		return err
	}))
	m := Member{net.ID, id(n)}
	must(t, eventually(func() error { return c.JoinNetwork(t.Context(), m) }))
	return net, m
}

// follow runs a Mirror until the test ends or stop is called.
func follow(t testing.TB, m *Mirror) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// TestClaims: when hosts ask at the same time, each name, VNI and address has one owner.
func TestClaims(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	const hosts, each = 4, 8
	var mu sync.Mutex
	nets, owners, refused := map[string]bool{}, map[netip.Addr]string{}, 0
	var all sync.WaitGroup
	for n := 1; n <= hosts; n++ {
		c := member(t, e, n)
		all.Add(1)
		go func() {
			defer all.Done()
			net, m := joinBlue(t, c, n)
			mu.Lock()
			nets[fmt.Sprint(net.ID, net.VNI)] = true
			mu.Unlock()
			for i := range each {
				a := netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + i)}) // the same on all hosts
				b := netip.AddrFrom4([4]byte{10, 20, byte(n), byte(10 + i)})
				err := eventually(func() error {
					return c.ClaimAddresses(t.Context(), m, Address{Addr: a, Use: Warm}, Address{Addr: b, Use: Warm})
				})
				mu.Lock()
				switch {
				case err == nil && owners[a] != "":
					t.Errorf("%s belongs to %s and to %s", a, owners[a], m.Host)
				case err == nil:
					owners[a] = m.Host
				case errors.Is(err, ErrTaken) && strings.Contains(err.Error(), a.String()):
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
	c := member(t, e, 1)
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
	one, two := member(t, e, 1), client(t, e)
	if _, err := two.Enter(t.Context(), Meta{Port: 4790}); err == nil ||
		!strings.Contains(err.Error(), "VXLAN port 4789") {
		t.Errorf("another port: %v", err)
	}
	if _, err := two.Enter(t.Context(), Meta{Port: 4789, IPv6: true}); err == nil ||
		!strings.Contains(err.Error(), "use IPv4") {
		t.Errorf("another family: %v", err)
	}
	if _, err := two.Enter(t.Context(), Meta{Port: 4789, Cluster: id(77)}); !errors.Is(err, ErrOther) {
		t.Errorf("another cluster: %v", err)
	}
	if err := two.Join(t.Context(), *hostOf(2)); !errors.Is(err, ErrNotYet) {
		t.Errorf("join before Enter: %v", err)
	}
	_, err := two.Enter(t.Context(), Meta{Port: 4789})
	must(t, err)
	for what, h := range map[string]Host{
		"host name h1 is taken by 000000000000": {ID: id(2), Name: "h1", VTEP: hostOf(2).VTEP, MTU: 1500},
		"address 192.0.2.1 is taken":            {ID: id(2), Name: "h2", VTEP: hostOf(1).VTEP, MTU: 1500},
		"mtu 100":                               {ID: id(2), Name: "h2", VTEP: hostOf(2).VTEP, MTU: 100},
	} {
		if err := two.Join(t.Context(), h); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	must(t, two.Join(t.Context(), *hostOf(2)))
	net, m1 := joinBlue(t, one, 1)
	for what, n := range map[string]Network{
		"10.21.0.0/16 (gateway 10.21.0.1) differ from the cluster's 10.20.0.0/16 (gateway 10.20.0.1), fd20::/64": {
			Name: "blue", Subnets: []Subnet{{netip.MustParsePrefix("10.21.0.0/16"), netip.MustParseAddr("10.21.0.1")}},
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
	same, err := two.CreateNetwork(t.Context(), Network{Name: "blue"})
	if err != nil || same.ID != net.ID || same.VNI != net.VNI {
		t.Errorf("without subnets: %+v, %v", same, err)
	}
	m2 := Member{net.ID, id(2)}
	a := Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: Warm}
	if err := two.ClaimAddresses(t.Context(), m2, a); !errors.Is(err, ErrNotFound) {
		t.Errorf("an address for a host that is not on the network: %v", err)
	}
	gateway := Address{Addr: netip.MustParseAddr("10.20.0.1"), Use: Warm}
	if err := one.ClaimAddresses(t.Context(), m1, gateway); !errors.Is(err, ErrTaken) {
		t.Errorf("the gateway's address: %v", err)
	}
	must(t, one.ClaimAddresses(t.Context(), m1, a))
	raw(t, one, Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.0.6")}.Key(), "{garbage")
	invalid := Address{Addr: netip.MustParseAddr("10.20.0.6"), Use: Warm}
	if err := one.ClaimAddresses(t.Context(), m1, invalid); !errors.Is(err, ErrTaken) {
		t.Errorf("an address with an invalid record: %v", err)
	}
	if err := one.DeleteNetwork(t.Context(), net); !errors.Is(err, ErrInUse) {
		t.Errorf("a network that is on a host: %v", err)
	}
}

// TestAddressLifecycle: an address is warm, then an endpoint's, then warm again; a host never releases another host's.
func TestAddressLifecycle(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := member(t, e, 1), member(t, e, 2)
	net, m1 := joinBlue(t, one, 1)
	_, m2 := joinBlue(t, two, 2)
	a := netip.MustParseAddr("10.20.0.5")
	key := Address{Network: net.ID, Addr: a}.Key()
	for _, as := range []Address{
		{Addr: a, Use: Warm},
		{Addr: a, Use: Endpoint, Endpoint: "e1", MAC: macA, Name: "web"},
		{Addr: a, Use: Endpoint, Endpoint: "e1", MAC: macA, Name: "web"}, // a second claim changes nothing
		{Addr: a, Use: Warm},
	} {
		must(t, one.ClaimAddresses(t.Context(), m1, as))
		found, err := one.read(t.Context(), "look", []string{key})
		must(t, err)
		if got := found[key].Record.(*Address); got.Use != as.Use || got.MAC != as.MAC || got.Host != id(1) {
			t.Errorf("%+v became %+v", as, got)
		}
	}
	must(t, two.Release(t.Context(), m2, a))
	if err := two.ClaimAddresses(t.Context(), m2, Address{Addr: a, Use: Warm}); !errors.Is(err, ErrTaken) {
		t.Errorf("released by a host that does not have it: %v", err)
	}
	must(t, one.Release(t.Context(), m1, a, netip.MustParseAddr("10.20.0.77")))
	must(t, two.ClaimAddresses(t.Context(), m2, Address{Addr: a, Use: Warm}))
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
		if _, ok := r.(*Host); !ok {
			keys = append(keys, r.Key())
		}
	}
	slices.Sort(keys)
	want := []string{"hostname/h1", "hostname/h2", "meta", hostOf(1).claims()[1].Key(), hostOf(2).claims()[1].Key()}
	if !slices.Equal(keys, want) {
		t.Errorf("left %q, want %q", keys, want)
	}
}

// checkRestoreNetwork checks that a network that etcd does not have is restored, unless another has its name by then.
func checkRestoreNetwork(t *testing.T, c *Client, net Network, m Member) {
	t.Helper()
	must(t, c.RestoreNetwork(t.Context(), net))
	must(t, c.RestoreNetwork(t.Context(), net))
	must(t, c.JoinNetwork(t.Context(), m))
	if back, err := c.FindNetwork(t.Context(), net.Name); err != nil || back.ID != net.ID || back.VNI != net.VNI {
		t.Errorf("restored network: %+v, %v", back, err)
	}
	gateway := Address{Addr: net.Subnets[0].Gateway, Use: Warm}
	if err := c.ClaimAddresses(t.Context(), m, gateway); !errors.Is(err, ErrTaken) {
		t.Errorf("the gateway's address: %v", err)
	}
	must(t, c.LeaveNetwork(t.Context(), m))
	must(t, c.DeleteUnusedNetwork(t.Context(), net.ID))
	other, err := c.CreateNetwork(t.Context(), Network{Name: net.Name, MTU: net.MTU, Subnets: net.Subnets})
	must(t, err)
	if err := c.RestoreNetwork(t.Context(), net); !errors.Is(err, ErrTaken) {
		t.Errorf("restored although another network has its name: %v", err)
	}
	must(t, c.DeleteNetwork(t.Context(), other))
}

// TestResetMachine: a machine that was reset can announce itself before its former Alive record expires; a clone
// cannot.
func TestResetMachine(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	was := *hostOf(1)
	was.Card = macA
	must(t, c.Join(t.Context(), was))
	conn, err := c.dial(t.Context())
	must(t, err)
	lease, err := conn.Grant(t.Context(), aliveTTL)
	must(t, err)
	say := func(h Host, boot string) error {
		return c.writeAlive(t.Context(), h, Alive{Host: h.ID, Boot: boot}, lease.ID)
	}
	must(t, say(was, "boot1"))
	for what, change := range map[string]func(h *Host){
		"another card":    func(h *Host) { h.Card = macB },
		"a card unknown":  func(h *Host) { h.Card = "" },
		"another address": func(h *Host) { h.VTEP = netip.MustParseAddr("192.0.2.77") },
	} {
		clone := was
		change(&clone)
		if err := say(clone, "boot2"); !errors.Is(err, ErrTwin) {
			t.Errorf("a machine with %s: %v, want %v", what, err, ErrTwin)
		}
	}
	must(t, say(was, "boot2"))
	if err := say(was, "boot2"); err != nil {
		t.Errorf("after a restart of the daemon: %v", err)
	}

	was.Card = "" // as an older netyard wrote it
	must(t, c.Join(t.Context(), was))
	was.Card = macA
	if err := say(was, "boot3"); !errors.Is(err, ErrTwin) {
		t.Errorf("a machine whose record has no card: %v, want %v", err, ErrTwin)
	}
}

// TestTwinOnTheSameCard: a clone of a running machine, with its address and its MAC, is taken for the machine after a
// reset; but the running one notices, reports ErrTwin while the clone is there, and does not replace the clone's Alive
// record in turn.
func TestTwinOnTheSameCard(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	h := *hostOf(1)
	h.Card = macA
	c := member(t, e, 1)
	alive := func(boot string) (stop func(), last func() error) {
		c := client(t, e)
		_, err := c.Enter(t.Context(), Meta{Port: 4789})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		said := errors.New("not yet")
		note := func(e error) { mu.Lock(); said = e; mu.Unlock() }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.StayAlive(ctx, quiet(), func() Host { return h }, boot, note)
		}()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop, func() error { mu.Lock(); defer mu.Unlock(); return said }
	}
	_, first := alive("boot1")
	clustertest.Eventually(t, "the host is not alive", func() bool { return first() == nil })
	stop, second := alive("boot2")
	clustertest.Eventually(t, "a machine on the same card is refused", func() bool { return second() == nil })
	clustertest.Eventually(t, "the running machine does not notice", func() bool { return errors.Is(first(), ErrTwin) })
	recs, err := c.List(t.Context(), Alive{Host: h.ID}.Key())
	must(t, err)
	if a, ok := recs[0].(*Alive); !ok || a.Boot != "boot2" || second() != nil {
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
	one, two := member(t, e, 1), member(t, e, 2)
	moved := *hostOf(1)
	moved.Name, moved.VTEP = "one", netip.MustParseAddr("192.0.2.101")
	must(t, one.Join(t.Context(), moved))
	third := *hostOf(3)
	third.Name, third.VTEP = "h1", hostOf(1).VTEP // free since host 1 changed them
	must(t, two.Join(t.Context(), third))

	alive := func(c *Client, boot string) (stop func(), last func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		err := errors.New("not yet")
		note := func(e error) { mu.Lock(); err = e; mu.Unlock() }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.StayAlive(ctx, quiet(), func() Host { return moved }, boot, note)
		}()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop, func() error { mu.Lock(); defer mu.Unlock(); return err }
	}
	stop, said := alive(one, "boot1")
	clustertest.Eventually(t, "the host is not alive", func() bool { return said() == nil })
	clone := client(t, e)
	_, err := clone.Enter(t.Context(), Meta{Port: 4789})
	must(t, err)
	_, saidClone := alive(clone, "boot2")
	clustertest.Eventually(t, "a clone is not refused", func() bool { return errors.Is(saidClone(), ErrTwin) })
	stop()
	clustertest.Eventually(t, "the clone is no member after the first machine has gone",
		func() bool { return saidClone() == nil })

	net, m1 := joinBlue(t, one, 1)
	a := netip.MustParseAddr("10.20.0.5")
	must(t, one.ClaimAddresses(t.Context(), m1, Address{Addr: a, Use: Endpoint, Endpoint: "e", MAC: macA}))
	if err := two.Forget(t.Context(), id(44), "h2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removal of an unknown host: %v", err)
	}
	must(t, two.Forget(t.Context(), id(1), "h2"))
	must(t, two.Forget(t.Context(), id(1), "h2"))
	clustertest.Eventually(t, "a removed host does not notice",
		func() bool { return errors.Is(saidClone(), ErrForgotten) })
	if err := one.ClaimAddresses(t.Context(), m1, Address{Addr: a, Use: Warm}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an address for a removed host: %v", err)
	}
	if err := one.JoinNetwork(t.Context(), m1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a network for a removed host: %v", err)
	}
	if err := one.Join(t.Context(), moved); !errors.Is(err, ErrForgotten) {
		t.Errorf("a removed host joins by itself: %v", err)
	}
	_, m2 := joinBlue(t, two, 2)
	must(t, two.ClaimAddresses(t.Context(), m2, Address{Addr: a, Use: Warm}))
	must(t, one.Readmit(t.Context(), id(1)))
	must(t, one.Join(t.Context(), moved))
	must(t, one.JoinNetwork(t.Context(), Member{net.ID, id(1)}))
	clustertest.Eventually(t, "a readmitted host is not alive", func() bool { return saidClone() == nil })
}

// A view is a Mirror, and a copy made from the changes that it reported.
type view struct {
	*Mirror
	mu   sync.Mutex
	told map[string]string
}

func newView(t testing.TB, c *Client, prefix string) *view {
	t.Helper()
	v := &view{told: map[string]string{}}
	v.Mirror = c.NewMirror(quiet(), prefix, func(cs []Change) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, ch := range cs {
			if delete(v.told, ch.Key); ch.New != nil {
				v.told[ch.Key], _ = Encode(ch.New)
			}
		}
	})
	return v
}

// same says whether the Mirror, the changes that it reported and etcd agree.
func (v *view) same(t testing.TB, c *Client) bool {
	t.Helper()
	have := map[string]string{}
	recs, err := c.List(t.Context(), v.prefix)
	if err != nil {
		return false
	}
	for _, r := range recs {
		have[r.Key()], _ = Encode(r)
	}
	mine := map[string]string{}
	v.Each(func(r Record) { mine[r.Key()], _ = Encode(r) })
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprint(have) == fmt.Sprint(mine) && fmt.Sprint(have) == fmt.Sprint(v.told)
}

func hold(t testing.TB, c *Client, m Member, from, n int) {
	t.Helper()
	var some []Address
	for i := from; i < from+n; i++ {
		addr := netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)})
		some = append(some, Address{Addr: addr, Use: Warm})
	}
	for part := range slices.Chunk(some, MaxClaims) {
		must(t, eventually(func() error { return c.ClaimAddresses(t.Context(), m, part...) }))
	}
}

// TestMirror: a mirror follows etcd, rejects invalid records, and recovers from whatever etcd or the connection does.
func TestMirror(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c, w := member(t, e, 1), client(t, e)
	net, m := joinBlue(t, c, 1)
	_, err := w.Enter(t.Context(), Meta{Port: 4789})
	must(t, err)
	v := newView(t, c, "addr/"+net.ID+"/")
	hold(t, w, m, 0, 50)
	follow(t, v.Mirror)
	agree := func(when string) {
		t.Helper()
		clustertest.Eventually(t, when+": the copy is not what etcd has", func() bool { return v.same(t, w) })
	}
	agree("at first")
	hold(t, w, m, 50, 50)
	must(t, w.Release(t.Context(), m, netip.MustParseAddr("10.20.1.5")))
	agree("after changes")

	raw(t, w, v.prefix+"nonsense", "{}")
	raw(t, w, Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.9")}.Key(),
		`{"host":"`+id(1)+`","use":"host","mac":"ff:ff:ff:ff:ff:ff"}`)
	clustertest.Eventually(t, "invalid records are not counted", func() bool { return v.Status().Rejected == 2 })
	agree("with invalid records") // List leaves them out, too

	before := v.Status()
	e.Kill(t)
	clustertest.Eventually(t, "an outage is not noticed", func() bool {
		_, err := c.List(t.Context(), "meta")
		return errors.Is(err, ErrUnreachable)
	})
	if h := c.Health(); h.Down.IsZero() || h.Reason == "" || strings.Contains(h.Reason, "\n") {
		t.Errorf("health in an outage: %+v", h)
	}
	if s := v.Status(); s.Records != before.Records {
		t.Errorf("records were lost in an outage: %d, then %d", before.Records, s.Records)
	}
	e.Run(t)
	hold(t, w, m, 100, 50)
	agree("after an outage")
	clustertest.Eventually(t, "the end of the outage is not noticed", func() bool {
		_, err := c.List(t.Context(), "meta")
		return err == nil && c.Health().Down.IsZero()
	})

	// Away for longer than etcd keeps history: the connection is cut, another client makes changes, and etcd compacts.
	compares := v.Status().Compares
	direct := &Client{c: Config{Endpoints: []string{e.Direct()}, Insecure: true}, prefix: c.prefix}
	t.Cleanup(func() { _ = direct.Close() })
	_, err = direct.Enter(t.Context(), Meta{Port: 4789})
	must(t, err)
	e.Cut()
	hold(t, direct, m, 200, 100)
	must(t, direct.Release(t.Context(), m, netip.MustParseAddr("10.20.1.20")))
	conn, err := direct.dial(t.Context())
	must(t, err)
	_, err = conn.Compact(t.Context(), direct.Health().Revision)
	must(t, err)
	e.Mend()
	agree("after compaction")
	if s := v.Status(); s.Compares == compares {
		t.Errorf("it did not read everything again: %+v", s)
	}
}

// TestMirrorComparesByItself: the full comparison finds what a watch has lost.
func TestMirrorComparesByItself(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := joinBlue(t, c, 1)
	hold(t, c, m, 0, 20)
	v := newView(t, c, "addr/"+net.ID+"/")
	v.compare = 50 * time.Millisecond
	follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not compare",
		func() bool { return v.Status().Compares > 2 && v.same(t, c) })
	key := Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.2")}.Key()
	v.Mirror.mu.Lock() // as if the watch had lost an event
	lost := v.cached[key]
	delete(v.cached, key)
	v.Mirror.mu.Unlock()
	if lost.Record == nil {
		t.Fatal("there is no such record")
	}
	clustertest.Eventually(t, "the comparison does not find it",
		func() bool { return v.Status().Missed == 1 && v.same(t, c) })
}

// mirrorOfRestored returns a mirror of twenty addresses that follows an etcd restored from a backup of the first ten,
// and its status before.
func mirrorOfRestored(t *testing.T, grace time.Duration) (v *view, c *Client, m Member, full MirrorStatus) {
	t.Helper()
	e := clustertest.Start(t, "")
	c = member(t, e, 1)
	net, m := joinBlue(t, c, 1)
	hold(t, c, m, 0, 10)
	e.Kill(t)
	backup := filepath.Join(t.TempDir(), "backup")
	clustertest.Backup(t, e.Dir, backup)
	e.Run(t)
	hold(t, c, m, 10, 10)
	v = newView(t, c, "addr/"+net.ID+"/")
	v.grace = grace
	follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	full = v.Status()
	e.Kill(t)
	clustertest.Backup(t, backup, e.Dir)
	e.Run(t)
	clustertest.Eventually(t, "etcd does not answer after it was restored", func() bool {
		_, err := c.List(t.Context(), "meta")
		return err == nil
	})
	clustertest.Eventually(t, "the older revision is not noticed",
		func() bool { return v.Status().Revision < full.Revision })
	return v, c, m, full
}

// TestMirrorAndAnOldBackup: records that a restored etcd lacks stay for a grace period; those that their host does not
// restore go after it.
func TestMirrorAndAnOldBackup(t *testing.T) {
	t.Parallel()
	v, c, m, full := mirrorOfRestored(t, 3*time.Second)
	if s := v.Status(); s.Records != full.Records {
		t.Errorf("%d records, of %d", s.Records, full.Records)
	}
	hold(t, c, m, 10, 5) // the host restores what it still wants
	clustertest.Eventually(t, "records that nobody restores do not go",
		func() bool { return v.Status().Records == full.Records-5 && v.same(t, c) })
}

// TestMirrorGrace: a record that is deleted after etcd was restored goes at once, even if its event is lost, while
// records that the backup lacks stay.
func TestMirrorGrace(t *testing.T) {
	t.Parallel()
	v, c, m, full := mirrorOfRestored(t, time.Hour)
	gone := Address{Network: m.Network, Addr: netip.MustParseAddr("10.20.1.2")}
	there := v.Get(gone.Key())
	must(t, eventually(func() error { return c.Release(t.Context(), m, gone.Addr) }))
	clustertest.Eventually(t, "it does not follow a restored etcd", func() bool { return v.Get(gone.Key()) == nil })
	value, err := Encode(there)
	must(t, err)
	v.Mirror.mu.Lock()
	v.cached[gone.Key()] = cached{Record: there, value: string(value)}
	v.Mirror.mu.Unlock()
	c.recheck()
	clustertest.Eventually(t, "a deleted record stays", func() bool { return v.Get(gone.Key()) == nil })
	if s := v.Status(); s.Records != full.Records-1 {
		t.Errorf("%d records, of %d: records that the backup lacks are gone", s.Records, full.Records)
	}
}

// TestMirrorAndAnotherCluster: with an etcd that lost all data, or that holds another cluster, a mirror stays as it is,
// and nothing is written there.
func TestMirrorAndAnotherCluster(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := joinBlue(t, c, 1)
	hold(t, c, m, 0, 10)
	v := newView(t, c, "addr/"+net.ID+"/")
	follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	full := v.Status()
	e.Kill(t)
	e.Wipe(t)
	e.Run(t)
	wantNoChange := func(when string) {
		t.Helper()
		clustertest.Eventually(t, when+": the other cluster is not reported", func() bool {
			select { // as StayAlive does
			case v.recheck <- struct{}{}:
			default:
			}
			return strings.Contains(v.Status().Reason, ErrOther.Error())
		})
		if s := v.Status(); s.Records != full.Records {
			t.Errorf("%s: %d records, of %d", when, s.Records, full.Records)
		}
		if err := eventually(func() error { return c.Join(t.Context(), *hostOf(1)) }); !errors.Is(err, ErrOther) {
			t.Errorf("%s: join: %v", when, err)
		}
	}
	wantNoChange("with an empty etcd")
	member(t, e, 7)
	wantNoChange("with another cluster")
}

// TestSaved: a daemon that starts without etcd has the records that the one before it saved.
func TestSaved(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := joinBlue(t, c, 1)
	hold(t, c, m, 0, 20)
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	defer st.Close()
	who, err := LoadIdentity(st)
	must(t, err)
	who.Meta.Cluster = id(1)
	must(t, SaveIdentity(st, who))
	if again, err := LoadIdentity(st); err != nil || again != who {
		t.Errorf("identity was saved as %+v and loaded as %+v, %v", who, again, err)
	}
	prefix := "addr/" + net.ID + "/"
	v := newView(t, c, prefix)
	stop := follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	must(t, c.Release(t.Context(), m, netip.MustParseAddr("10.20.1.3")))
	hold(t, c, m, 20, 1)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	stop()
	e.Kill(t)
	must(t, st.Update(func(tx store.Tx) error { return copies.Put(tx, prefix+"zz", "{") })) // an invalid record
	cold := newView(t, client(t, e), prefix)
	must(t, cold.Load(st))
	if fmt.Sprint(cold.told) != fmt.Sprint(v.told) || cold.Status().Records != 22 { // 2 gateways are among them
		t.Errorf("%d records loaded, of %d; %+v", len(cold.told), len(v.told), cold.Status())
	}
	must(t, cold.Save(st))
	must(t, Discard(st, prefix))
	if err := newView(t, c, prefix).Load(st); err != nil {
		t.Error(err)
	}
}

// TestManyEndpoints: a new mirror reads ten thousand endpoints; the log says how long that took.
func TestManyEndpoints(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := joinBlue(t, c, 1)
	conn, err := c.dial(t.Context())
	must(t, err)
	const many = 10000
	var ops []clientv3.Op
	for i := range many {
		a := &Address{
			Network: net.ID, Addr: netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)}), Host: m.Host,
			Use: Endpoint, Endpoint: fmt.Sprint("e", i),
			MAC: MAC(fmt.Sprintf("02:42:00:00:%02x:%02x", i>>8, i&255)),
		}
		value, err := Encode(a)
		must(t, err)
		if ops = append(ops, clientv3.OpPut(c.prefix+a.Key(), value)); len(ops) == maxOps {
			_, err := conn.Txn(t.Context()).Then(ops...).Commit()
			must(t, err)
			ops = nil
		}
	}
	v := newView(t, c, "addr/"+net.ID+"/")
	start := time.Now()
	follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not have all endpoints",
		func() bool { return v.Status().Records == many+2 })
	t.Logf("%d endpoints in %s", many, time.Since(start))
}
