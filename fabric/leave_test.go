package fabric

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/kernel/core"
)

// A leftEtcd counts how often networks are left in it. during, if set, is called while one is.
type leftEtcd struct {
	left   atomic.Int64
	during func()
}

func (l *leftEtcd) LeaveNetwork(context.Context, record.Member) error {
	if l.during != nil {
		l.during()
	}
	l.left.Add(1)
	return nil
}

func (*leftEtcd) DeleteUnusedNetwork(context.Context, string) error { return nil }

// closingKernel counts the elements that close networks.
type closingKernel struct {
	*stuckKernel
	mu     sync.Mutex
	closed map[string]bool
}

func (k *closingKernel) Ensure(_ context.Context, objects ...core.Object) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range objects {
		k.closed[o.String()] = true
	}
	return nil
}

func (k *closingKernel) Remove(objects ...core.Object) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range objects {
		delete(k.closed, o.String())
	}
	return nil
}

// leavingAgent returns an Agent with a network that was unbound and is to be left in etcd.
func leavingAgent(t *testing.T) (*Agent, *leftEtcd, *closingKernel) {
	t.Helper()
	a, _ := lonely(t)
	etcd, k := &leftEtcd{}, &closingKernel{stuckKernel: freeKernel(), closed: map[string]bool{}}
	a.leaving.client, a.leaving.kernel = etcd, k
	must(t, a.Bind(bound()))
	must(t, a.Unbind(bound().Network.ID))
	return a, etcd, k
}

func toLeave(t *testing.T, a *Agent) int {
	t.Helper()
	ids, err := a.leaving.ids()
	must(t, err)
	return len(ids)
}

// TestUnbindWhileBack: a network that is unbound just when it was found to be back on this host is left all the same,
// and is closed until then.
func TestUnbindWhileBack(t *testing.T) {
	t.Parallel()
	a, etcd, k := leavingAgent(t)
	id := bound().Network.ID
	must(t, a.Bind(bound()))
	var once sync.Once
	must(t, a.leaving.leave(t.Context(), func(string) bool {
		back := a.has(id)
		once.Do(func() { must(t, a.Unbind(id)) })
		return back
	}))
	if etcd.left.Load() != 0 || toLeave(t, a) != 1 || len(k.closed) == 0 {
		t.Errorf("left %d times, %d still to be left, closed are %v", etcd.left.Load(), toLeave(t, a), k.closed)
	}
	must(t, a.leaving.leave(t.Context(), a.has))
	if etcd.left.Load() != 1 || toLeave(t, a) != 0 || len(k.closed) != 0 {
		t.Errorf("in the end left %d times, %d still to be left, closed are %v", etcd.left.Load(), toLeave(t, a),
			k.closed)
	}
}

// TestGrantWhileLeft: a network that is back while it is being left grants no address until it has been left, which
// would release the address; and none is left while it grants one.
func TestGrantWhileLeft(t *testing.T) {
	t.Parallel()
	a, etcd, _ := leavingAgent(t)
	id := bound().Network.ID
	wish := address.Wish{Network: id, Endpoint: "e1", Addr: netip.MustParseAddr(warmAddr)}
	etcd.during = func() {
		must(t, a.Bind(bound()))
		warm(t, a.c.Store, bound().Network)
		soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if addr, err := a.Grant(soon, wish); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the network is being left, it grants %s, %v", addr, err)
		}
	}
	must(t, a.leaving.leave(t.Context(), a.has))
	if _, err := a.Grant(t.Context(), wish); err != nil {
		t.Errorf("after it was left: %v", err)
	}

	etcd.during = nil
	must(t, a.leaving.gate.enter(t.Context(), id))
	must(t, a.Unbind(id))
	must(t, a.leaving.leave(t.Context(), a.has))
	if etcd.left.Load() != 1 || toLeave(t, a) != 1 {
		t.Errorf("during a grant: left %d times, %d still to be left", etcd.left.Load(), toLeave(t, a))
	}
	a.leaving.gate.exit(id)
	must(t, a.leaving.leave(t.Context(), a.has))
	if etcd.left.Load() != 2 || toLeave(t, a) != 0 {
		t.Errorf("after a grant: left %d times, %d still to be left", etcd.left.Load(), toLeave(t, a))
	}
}

// TestLeaveAndUnbindTogether: however Bind, Unbind, Grant and leave meet, a network that was unbound is left
// afterwards, and no network is left that grants an address.
func TestLeaveAndUnbindTogether(t *testing.T) {
	t.Parallel()
	a, etcd, k := leavingAgent(t)
	id := bound().Network.ID
	var granting, wrong atomic.Int64
	etcd.during = func() { wrong.Add(granting.Load()) }
	done := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				must(t, a.leaving.leave(t.Context(), a.has))
			}
		}
	})
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if a.leaving.gate.enter(t.Context(), id) == nil {
				granting.Add(1)
				_ = a.network(id)
				granting.Add(-1)
				a.leaving.gate.exit(id)
			}
		}
	})
	for range 6 {
		must(t, a.Bind(bound()))
		before := etcd.left.Load()
		must(t, a.Unbind(id))
		for toLeave(t, a) != 0 {
			time.Sleep(time.Millisecond)
		}
		if etcd.left.Load() == before {
			t.Fatal("a network that was unbound is not left")
		}
	}
	close(done)
	others.Wait()
	if wrong.Load() != 0 || len(k.closed) != 0 {
		t.Errorf("%d times a network was left that granted an address; closed are %v", wrong.Load(), k.closed)
	}
}
