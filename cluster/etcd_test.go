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

// member is a client that has entered the cluster and joined it as host n.
func member(t testing.TB, e *clustertest.Etcd, n int) *Client {
	t.Helper()
	c := client(t, e)
	must(t, eventually(func() error { _, err := c.Enter(t.Context(), Meta{Port: 4789}); return err }))
	must(t, eventually(func() error { return c.Join(t.Context(), *hostOf(n)) }))
	return c
}

// eventually does something again that a busy etcd may not answer in time.
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

// raw writes what no Client would.
func raw(t testing.TB, c *Client, key, value string) {
	t.Helper()
	conn, err := c.dial(t.Context())
	must(t, err)
	_, err = conn.Put(t.Context(), c.prefix+key, value)
	must(t, err)
}

func onBlue(t testing.TB, c *Client, n int) (Network, Member) {
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

// follow runs a Mirror until the test ends.
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

// TestClaims: whoever asks at the same time, a name, a number and an address are one's.
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
			net, m := onBlue(t, c, n)
			mu.Lock()
			nets[fmt.Sprint(net.ID, net.VNI)] = true
			mu.Unlock()
			for i := range each {
				a := netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + i)}) // the same for all
				b := netip.AddrFrom4([4]byte{10, 20, byte(n), byte(10 + i)})
				err := eventually(func() error {
					return c.Hold(t.Context(), m, Address{Addr: a, Use: Warm}, Address{Addr: b, Use: Warm})
				})
				mu.Lock()
				switch {
				case err == nil && owners[a] != "":
					t.Errorf("%s is of %s and of %s", a, owners[a], m.Host)
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
	if len(recs) != 2*each+2 { // and the gateways
		t.Errorf("%d addresses: all or none of what was asked for together", len(recs))
	}
	t.Log(e.Version(t))
}

// TestRefusals: each names what and whose, and changes nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := member(t, e, 1), client(t, e)
	if _, err := two.Enter(t.Context(), Meta{Port: 4790}); err == nil || !strings.Contains(err.Error(), "at port 4789") {
		t.Errorf("another port: %v", err)
	}
	if _, err := two.Enter(t.Context(), Meta{Port: 4789, IPv6: true}); err == nil || !strings.Contains(err.Error(), "speak IPv4") {
		t.Errorf("another family: %v", err)
	}
	if _, err := two.Enter(t.Context(), Meta{Port: 4789, Cluster: id(77)}); !errors.Is(err, ErrOther) {
		t.Errorf("another cluster: %v", err)
	}
	if err := two.Join(t.Context(), *hostOf(2)); !errors.Is(err, ErrNotYet) {
		t.Errorf("without having entered: %v", err)
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
	net, m1 := onBlue(t, one, 1)
	for what, n := range map[string]Network{
		"10.21.0.0/16 (gateway 10.21.0.1), and the cluster's has 10.20.0.0/16 (gateway 10.20.0.1), fd20::/64": {
			Name: "blue", Subnets: []Subnet{{netip.MustParsePrefix("10.21.0.0/16"), netip.MustParseAddr("10.21.0.1")}},
		},
		"MTU 1400, and the cluster's has 1450": {Name: "blue", MTU: 1400},
		"internal is false":                    {Name: "blue", Internal: true},
		"network green is not in the cluster":  {Name: "green"},
		"letters and digits":                   {Name: "../green"},
	} {
		if _, err := two.CreateNetwork(t.Context(), n); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	same, err := two.CreateNetwork(t.Context(), Network{Name: "blue"})
	if err != nil || same.ID != net.ID || same.VNI != net.VNI {
		t.Errorf("without a subnet: %+v, %v", same, err)
	}
	m2 := Member{net.ID, id(2)}
	a := Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: Warm}
	if err := two.Hold(t.Context(), m2, a); !errors.Is(err, ErrNotFound) {
		t.Errorf("an address for who is not on the network: %v", err)
	}
	if err := one.Hold(t.Context(), m1, Address{Addr: netip.MustParseAddr("10.20.0.1"), Use: Warm}); !errors.Is(err, ErrTaken) {
		t.Errorf("the gateway's: %v", err)
	}
	must(t, one.Hold(t.Context(), m1, a))
	raw(t, one, Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.0.6")}.Key(), "{garbage")
	if err := one.Hold(t.Context(), m1, Address{Addr: netip.MustParseAddr("10.20.0.6"), Use: Warm}); !errors.Is(err, ErrTaken) {
		t.Errorf("one under which there is something unreadable: %v", err)
	}
	if err := one.DeleteNetwork(t.Context(), net); !errors.Is(err, ErrInUse) {
		t.Errorf("a network that is on a host: %v", err)
	}
}

// TestLifeOfAddresses: warm, then an endpoint's, then warm again; what is another host's is never given up.
func TestLifeOfAddresses(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := member(t, e, 1), member(t, e, 2)
	net, m1 := onBlue(t, one, 1)
	_, m2 := onBlue(t, two, 2)
	a := netip.MustParseAddr("10.20.0.5")
	key := Address{Network: net.ID, Addr: a}.Key()
	for _, as := range []Address{
		{Addr: a, Use: Warm},
		{Addr: a, Use: Endpoint, Endpoint: "e1", MAC: macA, Name: "web"},
		{Addr: a, Use: Endpoint, Endpoint: "e1", MAC: macA, Name: "web"}, // twice is once
		{Addr: a, Use: Warm},
	} {
		must(t, one.Hold(t.Context(), m1, as))
		found, err := one.read(t.Context(), "look", []string{key})
		must(t, err)
		if got := found[key].Record.(*Address); got.Use != as.Use || got.MAC != as.MAC || got.Host != id(1) {
			t.Errorf("%+v became %+v", as, got)
		}
	}
	must(t, two.Release(t.Context(), m2, a))
	if err := two.Hold(t.Context(), m2, Address{Addr: a, Use: Warm}); !errors.Is(err, ErrTaken) {
		t.Errorf("released by who has it not: %v", err)
	}
	must(t, one.Release(t.Context(), m1, a, netip.MustParseAddr("10.20.0.77")))
	must(t, two.Hold(t.Context(), m2, Address{Addr: a, Use: Warm}))
	must(t, one.LeaveNetwork(t.Context(), m1))
	must(t, one.LeaveNetwork(t.Context(), m1))
	must(t, one.DropNetwork(t.Context(), net.ID))
	if _, err := one.FindNetwork(t.Context(), "blue"); err != nil {
		t.Errorf("dropped, and it was on a host: %v", err)
	}
	must(t, two.LeaveNetwork(t.Context(), m2))
	must(t, two.DropNetwork(t.Context(), net.ID))
	must(t, two.DropNetwork(t.Context(), net.ID))
	backAndTaken(t, two, net, m2)
	left, err := two.List(t.Context(), "")
	must(t, err)
	var keys []string
	for _, r := range left {
		if _, ok := r.(*Host); !ok {
			keys = append(keys, r.Key())
		}
	}
	slices.Sort(keys)
	if want := []string{"hostname/h1", "hostname/h2", "meta", hostOf(1).claims()[1].Key(), hostOf(2).claims()[1].Key()}; !slices.Equal(keys, want) {
		t.Errorf("left %q, want %q", keys, want)
	}
}

// backAndTaken: a network that a host has and etcd has not is put back, unless its name is another's by then.
func backAndTaken(t *testing.T, c *Client, net Network, m Member) {
	t.Helper()
	must(t, c.PutBack(t.Context(), net))
	must(t, c.PutBack(t.Context(), net))
	must(t, c.JoinNetwork(t.Context(), m))
	if back, err := c.FindNetwork(t.Context(), net.Name); err != nil || back.ID != net.ID || back.VNI != net.VNI {
		t.Errorf("put back: %+v, %v", back, err)
	}
	if err := c.Hold(t.Context(), m, Address{Addr: net.Subnets[0].Gateway, Use: Warm}); !errors.Is(err, ErrTaken) {
		t.Errorf("the gateway's address: %v", err)
	}
	must(t, c.LeaveNetwork(t.Context(), m))
	must(t, c.DropNetwork(t.Context(), net.ID))
	other, err := c.CreateNetwork(t.Context(), Network{Name: net.Name, MTU: net.MTU, Subnets: net.Subnets})
	must(t, err)
	if err := c.PutBack(t.Context(), net); !errors.Is(err, ErrTaken) {
		t.Errorf("put back beside one of that name: %v", err)
	}
	must(t, c.DeleteNetwork(t.Context(), other))
}

// TestReset: a machine that was reset says that it is alive although the word of its former life has not ended; a clone
// does not.
func TestReset(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	was := *hostOf(1)
	was.Card = macA
	must(t, c.Join(t.Context(), was))
	conn, err := c.dial(t.Context())
	must(t, err)
	lease, err := conn.Grant(t.Context(), lifetime)
	must(t, err)
	say := func(h Host, boot string) error {
		return c.sayAlive(t.Context(), h, Alive{Host: h.ID, Boot: boot}, lease.ID)
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
		t.Errorf("its daemon, started again: %v", err)
	}

	was.Card = "" // as an older netyard wrote it
	must(t, c.Join(t.Context(), was))
	was.Card = macA
	if err := say(was, "boot3"); !errors.Is(err, ErrTwin) {
		t.Errorf("a machine of which no card is on record: %v, want %v", err, ErrTwin)
	}
}

// TestTwinOnTheSameCard: a copy of a machine that runs, with its address and its hardware address, may be taken for the
// machine after a reset; but the one that runs says so, gives nobody an address while the copy is there, and does not
// drive it out in turn.
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
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.Live(ctx, quiet(), func() Host { return h }, boot, func(e error) { mu.Lock(); said = e; mu.Unlock() })
		}()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop, func() error { mu.Lock(); defer mu.Unlock(); return said }
	}
	_, first := alive("boot1")
	clustertest.Eventually(t, "the host is not alive", func() bool { return first() == nil })
	stop, second := alive("boot2")
	clustertest.Eventually(t, "a machine on the same card is not let in", func() bool { return second() == nil })
	clustertest.Eventually(t, "the one that runs does not notice", func() bool { return errors.Is(first(), ErrTwin) })
	recs, err := c.List(t.Context(), Alive{Host: h.ID}.Key())
	must(t, err)
	if a, ok := recs[0].(*Alive); !ok || a.Boot != "boot2" || second() != nil {
		t.Errorf("alive is %v; the second was told %v", recs, second())
	}
	stop()
	clustertest.Eventually(t, "it is not let in again", func() bool { return first() == nil })
}

// TestHosts: renamed, given another address, cloned, taken out and back.
func TestHosts(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	one, two := member(t, e, 1), member(t, e, 2)
	moved := *hostOf(1)
	moved.Name, moved.VTEP = "one", netip.MustParseAddr("192.0.2.101")
	must(t, one.Join(t.Context(), moved))
	third := *hostOf(3)
	third.Name, third.VTEP = "h1", hostOf(1).VTEP // free by now
	must(t, two.Join(t.Context(), third))

	alive := func(c *Client, boot string) (stop func(), last func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		err := errors.New("not yet")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.Live(ctx, quiet(), func() Host { return moved }, boot, func(e error) { mu.Lock(); err = e; mu.Unlock() })
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
	clustertest.Eventually(t, "a clone is let in", func() bool { return errors.Is(saidClone(), ErrTwin) })
	stop()
	clustertest.Eventually(t, "the other is not let in when the first has gone", func() bool { return saidClone() == nil })

	net, m1 := onBlue(t, one, 1)
	must(t, one.Hold(t.Context(), m1, Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: Endpoint, Endpoint: "e", MAC: macA}))
	if err := two.Forget(t.Context(), id(44), "h2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("forget nobody: %v", err)
	}
	must(t, two.Forget(t.Context(), id(1), "h2"))
	must(t, two.Forget(t.Context(), id(1), "h2"))
	clustertest.Eventually(t, "who was taken out goes on", func() bool { return errors.Is(saidClone(), ErrForgotten) })
	if err := one.Hold(t.Context(), m1, Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: Warm}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an address for who was taken out: %v", err)
	}
	if err := one.JoinNetwork(t.Context(), m1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a network for who was taken out: %v", err)
	}
	if err := one.Join(t.Context(), moved); !errors.Is(err, ErrForgotten) {
		t.Errorf("back by itself: %v", err)
	}
	_, m2 := onBlue(t, two, 2)
	must(t, two.Hold(t.Context(), m2, Address{Addr: netip.MustParseAddr("10.20.0.5"), Use: Warm}))
	must(t, one.Return(t.Context(), id(1)))
	must(t, one.Join(t.Context(), moved))
	must(t, one.JoinNetwork(t.Context(), Member{net.ID, id(1)}))
	clustertest.Eventually(t, "back, and not alive", func() bool { return saidClone() == nil })
}

// view is what a Mirror has, and a copy of it made of the changes it told.
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

// same says whether the Mirror, what it told, and etcd are one.
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
		some = append(some, Address{Addr: netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)}), Use: Warm})
	}
	for part := range slices.Chunk(some, MaxHold) {
		must(t, eventually(func() error { return c.Hold(t.Context(), m, part...) }))
	}
}

// TestMirror: it follows, lets nothing bad in, and goes on whatever etcd or the wire does.
func TestMirror(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c, w := member(t, e, 1), client(t, e)
	net, m := onBlue(t, c, 1)
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
	raw(t, w, Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.9")}.Key(), `{"host":"`+id(1)+`","use":"host","mac":"ff:ff:ff:ff:ff:ff"}`)
	clustertest.Eventually(t, "what is bad is not counted", func() bool { return v.Status().Rejected == 2 })
	agree("with bad records") // List leaves them out, too

	before := v.Status()
	e.Kill(t)
	clustertest.Eventually(t, "an outage is not noticed", func() bool { _, err := c.List(t.Context(), "meta"); return errors.Is(err, ErrUnreachable) })
	if h := c.Health(); h.Down.IsZero() || h.Reason == "" || strings.Contains(h.Reason, "\n") {
		t.Errorf("health in an outage: %+v", h)
	}
	if s := v.Status(); s.Records != before.Records {
		t.Errorf("records went with etcd: %d, then %d", before.Records, s.Records)
	}
	e.Run(t)
	hold(t, w, m, 100, 50)
	agree("after an outage")
	clustertest.Eventually(t, "its end is not noticed", func() bool { _, err := c.List(t.Context(), "meta"); return err == nil && c.Health().Down.IsZero() })

	// Away for longer than etcd remembers: a cut wire, changes on another way, and the history between is gone.
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

// TestMirrorComparesByItself: what a watch lost, the full comparison finds.
func TestMirrorComparesByItself(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := onBlue(t, c, 1)
	hold(t, c, m, 0, 20)
	v := newView(t, c, "addr/"+net.ID+"/")
	v.compare = 50 * time.Millisecond
	follow(t, v.Mirror)
	clustertest.Eventually(t, "it does not compare", func() bool { return v.Status().Compares > 2 && v.same(t, c) })
	key := Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.2")}.Key()
	v.Mirror.mu.Lock() // as if an event had been lost
	lost := v.kept[key]
	delete(v.kept, key)
	v.Mirror.mu.Unlock()
	if lost.Record == nil {
		t.Fatal("there is no such record")
	}
	clustertest.Eventually(t, "the comparison does not find it", func() bool { return v.Status().Missed == 1 && v.same(t, c) })
}

// wentBack is a mirror of twenty addresses that follows an etcd from a backup of the first ten, and what it knew
// before.
func wentBack(t *testing.T, mercy time.Duration) (v *view, c *Client, m Member, full MirrorStatus) {
	t.Helper()
	e := clustertest.Start(t, "")
	c = member(t, e, 1)
	net, m := onBlue(t, c, 1)
	hold(t, c, m, 0, 10)
	e.Kill(t)
	backup := filepath.Join(t.TempDir(), "backup")
	clustertest.Backup(t, e.Dir, backup)
	e.Run(t)
	hold(t, c, m, 10, 10)
	v = newView(t, c, "addr/"+net.ID+"/")
	v.mercy = mercy
	follow(t, v.Mirror)
	clustertest.Eventually(t, "it does not follow", func() bool { return v.same(t, c) })
	full = v.Status()
	e.Kill(t)
	clustertest.Backup(t, backup, e.Dir)
	e.Run(t)
	clustertest.Eventually(t, "nobody asks etcd", func() bool { _, err := c.List(t.Context(), "meta"); return err == nil })
	clustertest.Eventually(t, "going back in time is not noticed", func() bool { return v.Status().Revision < full.Revision })
	return v, c, m, full
}

// TestMirrorAndAnOldBackup: what a restored etcd has not stays for a while; what its owner does not put back goes then.
func TestMirrorAndAnOldBackup(t *testing.T) {
	t.Parallel()
	v, c, m, full := wentBack(t, 3*time.Second)
	if s := v.Status(); s.Records != full.Records {
		t.Errorf("%d records, of %d", s.Records, full.Records)
	}
	hold(t, c, m, 10, 5) // the owner puts back what it still wants
	clustertest.Eventually(t, "what nobody puts back does not go", func() bool { return v.Status().Records == full.Records-5 && v.same(t, c) })
}

// TestMirrorMercy: what somebody took away from a restored etcd goes at once, although an event of it was lost, and
// although what the backup did not know stays.
func TestMirrorMercy(t *testing.T) {
	t.Parallel()
	v, c, m, full := wentBack(t, time.Hour)
	gone := Address{Network: m.Network, Addr: netip.MustParseAddr("10.20.1.2")}
	there := v.Get(gone.Key())
	must(t, eventually(func() error { return c.Release(t.Context(), m, gone.Addr) }))
	clustertest.Eventually(t, "it does not follow a restored etcd", func() bool { return v.Get(gone.Key()) == nil })
	value, err := Encode(there)
	must(t, err)
	v.Mirror.mu.Lock()
	v.kept[gone.Key()] = kept{Record: there, value: string(value)}
	v.Mirror.mu.Unlock()
	c.doubt()
	clustertest.Eventually(t, "what was taken away stays", func() bool { return v.Get(gone.Key()) == nil })
	if s := v.Status(); s.Records != full.Records-1 {
		t.Errorf("%d records, of %d: what the backup did not know is gone", s.Records, full.Records)
	}
}

// TestMirrorAndAnotherCluster: an etcd that lost everything, or one of other hosts, changes nothing here and gets
// nothing written.
func TestMirrorAndAnotherCluster(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := onBlue(t, c, 1)
	hold(t, c, m, 0, 10)
	v := newView(t, c, "addr/"+net.ID+"/")
	follow(t, v.Mirror)
	clustertest.Eventually(t, "it does not follow", func() bool { return v.same(t, c) })
	full := v.Status()
	e.Kill(t)
	e.Wipe(t)
	e.Run(t)
	hopeless := func(when string) {
		t.Helper()
		clustertest.Eventually(t, when+": no word of another cluster", func() bool {
			select { // as its pulse does
			case v.doubt <- struct{}{}:
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
	hopeless("with none")
	member(t, e, 7)
	hopeless("with another")
}

// TestSaved: a boot without etcd has what the last life knew.
func TestSaved(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := onBlue(t, c, 1)
	hold(t, c, m, 0, 20)
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	defer st.Close()
	who, err := Recall(st)
	must(t, err)
	who.Meta.Cluster = id(1)
	must(t, Remember(st, who))
	if again, err := Recall(st); err != nil || again != who {
		t.Errorf("it was %+v and is %+v, %v", who, again, err)
	}
	prefix := "addr/" + net.ID + "/"
	v := newView(t, c, prefix)
	stop := follow(t, v.Mirror)
	clustertest.Eventually(t, "it does not follow", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	must(t, c.Release(t.Context(), m, netip.MustParseAddr("10.20.1.3")))
	hold(t, c, m, 20, 1)
	clustertest.Eventually(t, "it does not follow", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	stop()
	e.Kill(t)
	must(t, st.Update(func(tx store.Tx) error { return copies.Put(tx, prefix+"zz", "{") })) // of another version, say
	cold := newView(t, client(t, e), prefix)
	must(t, cold.Load(st))
	if fmt.Sprint(cold.told) != fmt.Sprint(v.told) || cold.Status().Records != 22 { // 2 gateways are among them
		t.Errorf("%d records told, of %d; %+v", len(cold.told), len(v.told), cold.Status())
	}
	must(t, cold.Save(st))
	must(t, Discard(st, prefix))
	if err := newView(t, c, prefix).Load(st); err != nil {
		t.Error(err)
	}
}

// TestManyEndpoints: a fresh host gets ten thousand, and says how long it took.
func TestManyEndpoints(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := member(t, e, 1)
	net, m := onBlue(t, c, 1)
	conn, err := c.dial(t.Context())
	must(t, err)
	const many = 10000
	var ops []clientv3.Op
	for i := range many {
		a := &Address{
			Network: net.ID, Addr: netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)}), Host: m.Host, Use: Endpoint, Endpoint: fmt.Sprint("e", i),
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
	clustertest.Eventually(t, "they are not all there", func() bool { return v.Status().Records == many+2 })
	t.Logf("%d endpoints in %s", many, time.Since(start))
}
