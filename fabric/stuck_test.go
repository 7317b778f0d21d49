package fabric

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cluster"
	"netyard/cluster/etcd"
	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/fabric/address"
	"netyard/fabric/nametable"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

// A stuckKernel is a kernel that can get stuck in whatever it is asked to change.
type stuckKernel struct {
	mu sync.Mutex
	// gate is closed while the kernel is not stuck.
	gate chan struct{}
	// entered receives when the kernel has got stuck in a call.
	entered chan struct{}
}

// freeKernel returns a kernel that is not stuck yet.
func freeKernel() *stuckKernel {
	k := &stuckKernel{gate: make(chan struct{}), entered: make(chan struct{}, 1)}
	close(k.gate)
	return k
}

func (k *stuckKernel) change() error {
	k.mu.Lock()
	gate := k.gate
	k.mu.Unlock()
	select {
	case <-gate:
		return nil
	default:
	}
	select {
	case k.entered <- struct{}{}:
	default:
	}
	<-gate
	return nil
}

// stick makes the kernel stuck until free is called.
func (k *stuckKernel) stick() (free func()) {
	gate := make(chan struct{})
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gate = gate
	return func() { close(gate) }
}

func (k *stuckKernel) Ensure(context.Context, ...core.Object) error { return k.change() }

func (k *stuckKernel) Remove(...core.Object) error { return k.change() }

func (k *stuckKernel) ChangePeers(
	context.Context, string, []overlay.Peer, []netip.Addr, []net.HardwareAddr,
) error {
	return k.change()
}

func (*stuckKernel) Encrypts() error { return nil }

func (k *stuckKernel) AskAgain([]overlay.WireGuardPeer, time.Time) error { return k.change() }

func (*stuckKernel) Carrier(netip.Addr) (overlay.Underlay, error) { return overlay.Underlay{}, nil }

func (k *stuckKernel) Echoes(context.Context, []overlay.Probe) ([]bool, error) {
	return nil, k.change()
}

// TestRequestsNeverWaitForTheKernel: while the kernel is stuck in any work of the Agent, requests of engines, name
// lookups and the status are answered.
func TestRequestsNeverWaitForTheKernel(t *testing.T) {
	t.Parallel()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	defer st.Close()
	c, err := cluster.Open(etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Insecure: true})
	must(t, err)
	defer c.Close()
	k := freeKernel()
	host := *hosttest.Host(1)
	a, err := newAgent(Config{Log: slog.New(slog.DiscardHandler), Client: c, Store: st, Host: host, Port: port}, k)
	must(t, err)
	blue, red := hosttest.Blue(), hosttest.Blue()
	red.ID, red.Name, red.VNI, red.Encrypted = hosttest.ID(8), "red", blue.VNI+1, true
	for _, n := range []record.Network{blue, red} {
		must(t, a.Bind(Bound{Network: n, Link: "x" + n.Name, Bridge: "b" + n.Name, MAC: "02:00:00:00:00:01"}))
		warm(t, st, n)
	}
	far := *hosttest.Host(2)
	far.WireGuard, far.WireGuardPort = record.PublicKeyOf([32]byte{2, 31: 2}), WireGuardPort
	hosts := func(vtep string) []record.Change {
		far := far
		far.VTEP = netip.MustParseAddr(vtep)
		cs := []record.Change{{New: hosttest.Host(1)}, {New: &far}}
		for _, n := range []record.Network{blue, red} {
			cs = append(cs, record.Change{New: &record.Member{Network: n.ID, Host: far.ID}})
		}
		return cs
	}
	a.applyHostChanges(hosts("192.0.2.2"))
	a.retryKernel()

	peer := record.Address{
		Network: blue.ID, Addr: netip.MustParseAddr("10.20.9.9"), Host: far.ID, Use: record.Endpoint, Endpoint: "far",
		MAC: "02:42:0a:14:09:09", Name: "far",
	}
	for _, work := range []struct {
		name string
		do   func() error
	}{
		{"a change of hosts", func() error { a.applyHostChanges(hosts("192.0.2.3")); return nil }},
		{"a change of addresses", func() error {
			a.applyAddressChanges(a.network(blue.ID), []record.Change{{New: &peer}})
			return nil
		}},
		{"giving the kernel everything", func() error {
			a.network(red.ID).plane.Unsure()
			a.retryKernel()
			return nil
		}},
		{"a repair of peers", func() error { return a.network(blue.ID).plane.TellPeers() }},
		{"blocking a network", func() error { return a.network(blue.ID).plane.Shut() }},
		{"creating the WireGuard device", a.tunnel.Create},
		{"replacing the WireGuard key", func() error {
			return errors.Join(a.tunnel.RecordNext(), a.tunnel.UseNext(t.Context()))
		}},
		{"removing a network", func() error { return a.Unbind(red.ID) }},
	} {
		free := k.stick()
		ended := make(chan error, 1)
		go func() { ended <- work.do() }()
		within(t, work.name+" does not reach the kernel", k.entered)
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			request(t, a, work.name, blue)
		}()
		within(t, "requests wait for the kernel, which is stuck in "+work.name, answered)
		free()
		must(t, <-ended)
	}
}

// within fails the test, as what, unless the channel receives within 10 s or is closed.
func within(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatal(what)
	}
}

const warmAddr = "10.20.1.1"

// warm records a spare address of a network, as if etcd had given it.
func warm(t *testing.T, st *store.Store, n record.Network) {
	t.Helper()
	o := address.Own{Network: n.ID, Addr: netip.MustParseAddr(warmAddr), Use: record.Warm, Synced: true}
	owns := store.Bucket[address.Own]{Name: "overlay_addresses"}
	must(t, st.Update(func(tx store.Tx) error { return owns.Put(tx, n.ID+"/"+o.Addr.String(), o) }))
}

// request makes the requests that an endpoint makes in its life, and asks for what there is.
func request(t *testing.T, a *Agent, when string, n record.Network) {
	t.Helper()
	const id = "e1"
	check := func(what string, err error) {
		if err != nil {
			t.Errorf("%s, during %s: %v", what, when, err)
		}
	}
	_ = a.CheckRoom(n.ID, false) // there is an answer
	addr, err := a.Grant(t.Context(), address.Wish{Network: n.ID, Endpoint: id, Addr: netip.MustParseAddr(warmAddr)})
	check("grant", err)
	a.names.SetPlace(id, nametable.Place{Network: n.ID, Sandbox: "/run/one"})
	check("publish", a.Publish(n.ID, []netip.Addr{addr}, id, "02:42:0a:14:01:01", "web", nil))
	if got := a.Lookup(n.ID, netip.Addr{}, "web"); len(got) != 1 || got[0] != addr {
		t.Errorf("lookup during %s: %v", when, got)
	}
	check("rename", a.Rename(n.ID, id, "db", nil))
	if name, _ := a.NameOf(n.ID, netip.Addr{}, addr); !strings.HasPrefix(name, "db.") {
		t.Errorf("%s is called %q during %s", addr, name, when)
	}
	if len(a.Networks()) == 0 || len(a.Objects(n.ID)) == 0 || a.Port() != port {
		t.Errorf("the network is not there during %s", when)
	}
	_, err = a.Status()
	check("status", err)
	_, err = a.LeavingObjects()
	check("parting", err)
	_ = a.host()
	a.Endpoints(n.ID)
	a.setReason(etcd.ErrNotYet)
	check("withdraw", a.Withdraw(n.ID, id))
	check("release", a.Release(n.ID, addr))
}
