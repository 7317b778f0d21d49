package fabric

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/store"
)

// A failingKernel is a kernel that fails while ensureErr or removeErr is set. It counts what it removed.
type failingKernel struct {
	*stuckKernel
	ensureErr, removeErr error
	removed              int
}

func (k *failingKernel) Ensure(context.Context, ...core.Object) error { return k.ensureErr }

func (k *failingKernel) Remove(objects ...core.Object) error {
	if k.removeErr == nil {
		k.removed += len(objects)
	}
	return k.removeErr
}

// lonely returns an Agent without etcd, and its kernel.
func lonely(t *testing.T) (*Agent, *failingKernel) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	c, err := cluster.Open(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Insecure: true})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	k := &failingKernel{stuckKernel: freeKernel()}
	a, err := newAgent(Config{
		Log: slog.New(slog.DiscardHandler), Client: c, Store: st, Host: *hosttest.Host(1), Port: port,
		Cooldown: time.Hour,
	}, k)
	must(t, err)
	return a, k
}

// bound returns the network of hosttest.Blue with its links.
func bound() Bound {
	return Bound{Network: hosttest.Blue(), Link: "x", Bridge: "b", MAC: "02:00:00:00:00:01"}
}

// TestBindForgets: what is recorded of a network that was not on this host is forgotten when it comes: other hosts may
// have its addresses. What a network has that is bound again stays.
func TestBindForgets(t *testing.T) {
	t.Parallel()
	a, _ := lonely(t)
	b, st := bound(), a.c.Store
	id := b.Network.ID
	addr := netip.MustParseAddr(warmAddr)
	rec := &record.Address{Network: id, Addr: addr, Host: hosttest.ID(2), Use: record.Warm}
	warm(t, st, b.Network)
	must(t, st.Update(func(tx store.Tx) error {
		value, err := record.Encode(rec)
		return errors.Join(err,
			store.Bucket[time.Time]{Name: "overlay_resting"}.Put(tx, id+"/"+addr.String(), time.Now()),
			store.Bucket[string]{Name: "cluster_records"}.Put(tx, rec.Key(), value))
	}))
	must(t, a.Bind(b))
	own, err := a.addresses.List(id)
	must(t, err)
	n := a.network(id)
	if len(own) != 0 || n.addrs.Cooling(addr) || n.claims.Get(rec.Key()) != nil {
		t.Errorf("recorded are %v, in cooldown %v, claimed %v", own, n.addrs.Cooling(addr), n.claims.Get(rec.Key()))
	}
	warm(t, st, b.Network)
	b.Alias = "another"
	must(t, a.Bind(b))
	if own, err = a.addresses.List(id); err != nil || len(own) != 1 {
		t.Errorf("of a network that is bound again, recorded are %v, %v", own, err)
	}
}

// TestUnbindAgain: Unbind that failed in the kernel does all of its work when it is repeated, also by Bind.
func TestUnbindAgain(t *testing.T) {
	t.Parallel()
	a, k := lonely(t)
	for _, again := range []func() error{
		func() error { return a.Unbind(bound().Network.ID) },
		func() error { return a.Bind(bound()) },
	} {
		must(t, a.Bind(bound()))
		k.removed, k.removeErr = 0, errors.New("busy")
		if err := a.Unbind(bound().Network.ID); !errors.Is(err, k.removeErr) {
			t.Errorf("unbind in a kernel that fails: %v", err)
		}
		k.removeErr = nil
		must(t, again())
		if k.removed == 0 {
			t.Error("a repeated unbind does nothing in the kernel")
		}
	}
}

// TestClosedBeforeLeft: a network is not to be left in etcd before it is closed.
func TestClosedBeforeLeft(t *testing.T) {
	t.Parallel()
	a, k := lonely(t)
	id := bound().Network.ID
	must(t, a.Bind(bound()))
	k.ensureErr = errors.New("busy")
	if err := a.Unbind(id); !errors.Is(err, k.ensureErr) {
		t.Errorf("unbind in a kernel that fails: %v", err)
	}
	if ids, err := a.leaving.ids(); err != nil || len(ids) != 0 {
		t.Errorf("a network that is not closed is to be left: %v, %v", ids, err)
	}
	k.ensureErr = nil
	must(t, a.Unbind(id))
	if ids, err := a.leaving.ids(); err != nil || len(ids) != 1 {
		t.Errorf("to be left are %v, %v", ids, err)
	}
}

// TestUnboundIsNotJoined: a network that was unbound meanwhile is not joined again.
func TestUnboundIsNotJoined(t *testing.T) {
	t.Parallel()
	a, _ := lonely(t)
	must(t, a.Bind(bound()))
	n := a.network(bound().Network.ID)
	must(t, a.Unbind(n.ID))
	if err := a.join(t.Context(), n); !errors.Is(err, errUnbound) {
		t.Errorf("join: %v", err)
	}
}
