package mirror

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netyard/cluster"
	"netyard/cluster/clustertest"
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

// A view is a Mirror, and a copy made from the changes that it reported.
type view struct {
	*Mirror
	mu   sync.Mutex
	told map[string]string
}

func newView(t testing.TB, c *cluster.Client, prefix string) *view {
	t.Helper()
	v := &view{told: map[string]string{}}
	v.Mirror = New(c.Client, slog.New(slog.DiscardHandler), prefix, func(cs []record.Change) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, ch := range cs {
			if delete(v.told, ch.Key); ch.New != nil {
				v.told[ch.Key], _ = record.Encode(ch.New)
			}
		}
	})
	return v
}

// same says whether the Mirror, the changes that it reported and etcd agree.
func (v *view) same(t testing.TB, c *cluster.Client) bool {
	t.Helper()
	have := map[string]string{}
	recs, err := c.List(t.Context(), v.prefix)
	if err != nil {
		return false
	}
	for _, r := range recs {
		have[r.Key()], _ = record.Encode(r)
	}
	mine := map[string]string{}
	v.Each(func(r record.Record) { mine[r.Key()], _ = record.Encode(r) })
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprint(have) == fmt.Sprint(mine) && fmt.Sprint(have) == fmt.Sprint(v.told)
}

// TestMirror: a mirror follows etcd, rejects invalid records, and recovers from whatever etcd or the connection does.
func TestMirror(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c, w := hosttest.Member(t, e, 1), hosttest.Client(t, e)
	net, m := hosttest.JoinBlue(t, c, 1)
	_, err := w.Enter(t.Context(), record.Meta{Port: 4789})
	must(t, err)
	v := newView(t, c, "addr/"+net.ID+"/")
	hosttest.Claim(t, w, m, 0, 50)
	hosttest.Follow(t, v.Mirror)
	agree := func(when string) {
		t.Helper()
		clustertest.Eventually(t, when+": the copy is not what etcd has", func() bool { return v.same(t, w) })
	}
	agree("at first")
	hosttest.Claim(t, w, m, 50, 50)
	must(t, w.Release(t.Context(), m, netip.MustParseAddr("10.20.1.5")))
	agree("after changes")

	hosttest.Put(t, e, v.prefix+"nonsense", "{}")
	hosttest.Put(t, e, record.Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.9")}.Key(),
		`{"host":"`+hosttest.ID(1)+`","use":"host","mac":"ff:ff:ff:ff:ff:ff"}`)
	clustertest.Eventually(t, "invalid records are not counted", func() bool { return v.Status().Rejected == 2 })
	agree("with invalid records") // List leaves them out, too

	before := v.Status()
	e.Kill(t)
	clustertest.Eventually(t, "an outage is not noticed", func() bool {
		_, err := c.List(t.Context(), "meta")
		return errors.Is(err, etcd.ErrUnreachable)
	})
	if h := c.Health(); h.Down.IsZero() || h.Reason == "" || strings.Contains(h.Reason, "\n") {
		t.Errorf("health in an outage: %+v", h)
	}
	if s := v.Status(); s.Records != before.Records {
		t.Errorf("records were lost in an outage: %d, then %d", before.Records, s.Records)
	}
	e.Run(t)
	hosttest.Claim(t, w, m, 100, 50)
	agree("after an outage")
	clustertest.Eventually(t, "the end of the outage is not noticed", func() bool {
		_, err := c.List(t.Context(), "meta")
		return err == nil && c.Health().Down.IsZero()
	})

	// Away for longer than etcd keeps history: the connection is cut, another client makes changes, and etcd compacts.
	compares := v.Status().Compares
	direct, err := cluster.Open(etcd.Config{Endpoints: []string{e.Direct()}, Insecure: true})
	must(t, err)
	t.Cleanup(func() { _ = direct.Close() })
	hosttest.Enter(t, direct)
	e.Cut()
	hosttest.Claim(t, direct, m, 200, 100)
	must(t, direct.Release(t.Context(), m, netip.MustParseAddr("10.20.1.20")))
	_, err = hosttest.Raw(t, e.Direct()).Compact(t.Context(), direct.Health().Revision)
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
	c := hosttest.Member(t, e, 1)
	net, m := hosttest.JoinBlue(t, c, 1)
	hosttest.Claim(t, c, m, 0, 20)
	v := newView(t, c, "addr/"+net.ID+"/")
	v.compare = 50 * time.Millisecond
	hosttest.Follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not compare",
		func() bool { return v.Status().Compares > 2 && v.same(t, c) })
	key := record.Address{Network: net.ID, Addr: netip.MustParseAddr("10.20.1.2")}.Key()
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
func mirrorOfRestored(t *testing.T, grace time.Duration) (v *view, c *cluster.Client, m record.Member, full Status) {
	t.Helper()
	e := clustertest.Start(t, "")
	c = hosttest.Member(t, e, 1)
	net, m := hosttest.JoinBlue(t, c, 1)
	hosttest.Claim(t, c, m, 0, 10)
	e.Kill(t)
	backup := filepath.Join(t.TempDir(), "backup")
	clustertest.Backup(t, e.Dir, backup)
	e.Run(t)
	hosttest.Claim(t, c, m, 10, 10)
	v = newView(t, c, "addr/"+net.ID+"/")
	v.grace = grace
	hosttest.Follow(t, v.Mirror)
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
	hosttest.Claim(t, c, m, 10, 5) // the host restores what it still wants
	clustertest.Eventually(t, "records that nobody restores do not go",
		func() bool { return v.Status().Records == full.Records-5 && v.same(t, c) })
}

// TestMirrorGrace: a record that is deleted after etcd was restored goes at once, even if its event is lost, while
// records that the backup lacks stay.
func TestMirrorGrace(t *testing.T) {
	t.Parallel()
	v, c, m, full := mirrorOfRestored(t, time.Hour)
	gone := record.Address{Network: m.Network, Addr: netip.MustParseAddr("10.20.1.2")}
	there := v.Get(gone.Key())
	must(t, hosttest.Retry(func() error { return c.Release(t.Context(), m, gone.Addr) }))
	clustertest.Eventually(t, "it does not follow a restored etcd", func() bool { return v.Get(gone.Key()) == nil })
	value, err := record.Encode(there)
	must(t, err)
	v.Mirror.mu.Lock()
	v.cached[gone.Key()] = cached{Record: there, value: string(value)}
	v.Mirror.mu.Unlock()
	c.Recheck()
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
	c := hosttest.Member(t, e, 1)
	net, m := hosttest.JoinBlue(t, c, 1)
	hosttest.Claim(t, c, m, 0, 10)
	v := newView(t, c, "addr/"+net.ID+"/")
	hosttest.Follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	full := v.Status()
	e.Kill(t)
	e.Wipe(t)
	e.Run(t)
	wantNoChange := func(when string) {
		t.Helper()
		clustertest.Eventually(t, when+": the other cluster is not reported", func() bool {
			c.Recheck()
			return strings.Contains(v.Status().Reason, etcd.ErrOther.Error())
		})
		if s := v.Status(); s.Records != full.Records {
			t.Errorf("%s: %d records, of %d", when, s.Records, full.Records)
		}
		err := hosttest.Retry(func() error { return c.Join(t.Context(), *hosttest.Host(1)) })
		if !errors.Is(err, etcd.ErrOther) {
			t.Errorf("%s: join: %v", when, err)
		}
	}
	wantNoChange("with an empty etcd")
	hosttest.Member(t, e, 7)
	wantNoChange("with another cluster")
}

// TestSaved: a daemon that starts without etcd has the records that the one before it saved.
func TestSaved(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := hosttest.Member(t, e, 1)
	net, m := hosttest.JoinBlue(t, c, 1)
	hosttest.Claim(t, c, m, 0, 20)
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	defer st.Close()
	prefix := "addr/" + net.ID + "/"
	v := newView(t, c, prefix)
	stop := hosttest.Follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	must(t, c.Release(t.Context(), m, netip.MustParseAddr("10.20.1.3")))
	hosttest.Claim(t, c, m, 20, 1)
	clustertest.Eventually(t, "the mirror does not follow etcd", func() bool { return v.same(t, c) })
	must(t, v.Save(st))
	stop()
	e.Kill(t)
	must(t, st.Update(func(tx store.Tx) error { return copies.Put(tx, prefix+"zz", "{") })) // an invalid record
	cold := newView(t, hosttest.Client(t, e), prefix)
	must(t, cold.Load(st))
	if fmt.Sprint(cold.told) != fmt.Sprint(v.told) || cold.Status().Records != 22 { // 2 gateways are among them
		t.Errorf("%d records loaded, of %d; %+v", len(cold.told), len(v.told), cold.Status())
	}
	must(t, cold.Save(st))
	must(t, st.Update(func(tx store.Tx) error { return Discard(tx, prefix) }))
	if err := newView(t, c, prefix).Load(st); err != nil {
		t.Error(err)
	}
}

// TestManyEndpoints: a new mirror reads ten thousand endpoints; the log says how long that took.
func TestManyEndpoints(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := hosttest.Member(t, e, 1)
	net, m := hosttest.JoinBlue(t, c, 1)
	conn := hosttest.Raw(t, e.URL)
	const many = 10000
	var ops []clientv3.Op
	for i := range many {
		a := &record.Address{
			Network: net.ID, Addr: netip.AddrFrom4([4]byte{10, 20, byte(1 + i/250), byte(2 + i%250)}), Host: m.Host,
			Use: record.Endpoint, Endpoint: fmt.Sprint("e", i),
			MAC: record.MAC(fmt.Sprintf("02:42:00:00:%02x:%02x", i>>8, i&255)),
		}
		value, err := record.Encode(a)
		must(t, err)
		if ops = append(ops, clientv3.OpPut(etcd.DefaultPrefix+"/"+a.Key(), value)); len(ops) == etcd.MaxOps {
			_, err := conn.Txn(t.Context()).Then(ops...).Commit()
			must(t, err)
			ops = nil
		}
	}
	v := newView(t, c, "addr/"+net.ID+"/")
	start := time.Now()
	hosttest.Follow(t, v.Mirror)
	clustertest.Eventually(t, "the mirror does not have all endpoints",
		func() bool { return v.Status().Records == many+2 })
	t.Logf("%d endpoints in %s", many, time.Since(start))
}

// TestComparedAfterApplied: a mirror does not say that it has read everything before its changes are applied.
func TestComparedAfterApplied(t *testing.T) {
	t.Parallel()
	e := clustertest.Start(t, "")
	c := hosttest.Member(t, e, 1)
	var m *Mirror
	compares := make(chan int, 1)
	m = New(c.Client, slog.New(slog.DiscardHandler), "host/", func([]record.Change) {
		select {
		case compares <- m.Status().Compares:
		default:
		}
	})
	hosttest.Follow(t, m)
	if n := <-compares; n != 0 {
		t.Errorf("while the first changes are applied, everything was read %d times", n)
	}
	clustertest.Eventually(t, "that everything was read is not counted",
		func() bool { return m.Status().Compares == 1 })
}

// TestNotSubscribed: a mirror that does not run is no burden to its client.
func TestNotSubscribed(t *testing.T) {
	t.Parallel()
	c, err := cluster.Open(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Insecure: true})
	must(t, err)
	defer c.Close()
	m := New(c.Client, slog.New(slog.DiscardHandler), "host/", func([]record.Change) {})
	if m.recheck != nil {
		t.Error("a mirror that does not run receives rechecks")
	}
}
