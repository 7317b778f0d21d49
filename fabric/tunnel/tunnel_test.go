package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"netyard/cluster/hosttest"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
	"netyard/store"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A fake is a kernel with a WireGuard device, or without WireGuard if clear is set.
type fake struct {
	clear  error
	device *overlay.WireGuard
	peers  *overlay.WireGuardPeers
	fails  error
	asked  int
}

func (f *fake) Ensure(_ context.Context, objects ...core.Object) error {
	if f.fails != nil {
		return f.fails
	}
	for _, o := range objects {
		switch o := o.(type) {
		case overlay.WireGuard:
			f.device = &o
		case overlay.WireGuardPeers:
			f.peers = &o
		}
	}
	return nil
}

func (f *fake) Remove(...core.Object) error {
	f.device, f.peers = nil, nil
	return nil
}

func (f *fake) Encrypts() error { return f.clear }

func (f *fake) AskAgain([]overlay.WireGuardPeer, time.Time) error { f.asked++; return nil }

// A world is what a Tunnel is told.
type world struct {
	kernel    fake
	peers     overlay.WireGuardPeers
	needed    bool
	reason    error
	published error
	tasks     int
	st        *store.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { _ = st.Close() })
	return &world{st: st, needed: true}
}

// open makes a Tunnel, as each start of the daemon does.
func (w *world) open(t *testing.T) *Tunnel {
	t.Helper()
	tun, err := Open(Config{
		Log: slog.New(slog.DiscardHandler), Store: w.st, Kernel: &w.kernel, Host: *hosttest.Host(1), Port: Port,
		Peers:  func() overlay.WireGuardPeers { return w.peers },
		Needed: func() bool { return w.needed }, Reason: func() error { return w.reason },
		Publish: func(context.Context) error { return w.published },
		Start:   func(func(context.Context) error) { w.tasks++ },
	})
	must(t, err)
	return tun
}

// TestNoWireGuard: without WireGuard in the kernel there is no key, and the reason is told.
func TestNoWireGuard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.kernel.clear = errors.New("this kernel has no WireGuard")
	tun := w.open(t)
	if key, port := tun.Published(); key != "" || port != 0 {
		t.Errorf("published are %q and %d", key, port)
	}
	for _, err := range []error{tun.Clear(), tun.Create(), tun.Rotate(t.Context())} {
		if !errors.Is(err, w.kernel.clear) {
			t.Errorf("%v, want %v", err, w.kernel.clear)
		}
	}
}

// TestDevice: the device is there while a network needs it, with the current peers; peers that have another key are
// asked for a handshake.
func TestDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tun := w.open(t)
	key := func(n byte) [32]byte { return [32]byte{n, 31: n} }
	far := overlay.WireGuardPeer{Key: key(2), Addr: hosttest.Host(2).Tunnel()}
	w.kernel.fails, w.needed = errors.New("busy"), false
	if err := tun.Create(); !errors.Is(err, w.kernel.fails) {
		t.Errorf("create in a kernel that fails: %v", err)
	}
	w.kernel.fails, w.needed = nil, true
	w.peers.All = []overlay.WireGuardPeer{far}
	must(t, tun.Create())
	must(t, tun.Bound())
	if w.kernel.device == nil || w.kernel.device.Key != tun.Device().Key || len(w.kernel.peers.All) != 1 {
		t.Fatalf("the kernel has %v with %v", w.kernel.device, w.kernel.peers)
	}
	w.kernel.peers = nil
	must(t, tun.Update())
	if w.kernel.peers != nil {
		t.Error("peers that have not changed are set again")
	}
	far.Key = key(3)
	w.peers.All = []overlay.WireGuardPeer{far}
	must(t, tun.Update())
	if w.kernel.peers == nil || w.kernel.peers.All[0].Key != far.Key || w.tasks != 1 {
		t.Errorf("after a peer changed its key: %v, %d tasks", w.kernel.peers, w.tasks)
	}
	must(t, tun.Release()) // another network needs it
	if w.kernel.device == nil {
		t.Error("a device that a network needs is removed")
	}
	w.needed = false
	must(t, tun.Release())
	if w.kernel.device != nil {
		t.Error("a device that no network needs stays")
	}
}

// TestRotation: a new key is used only after it was published, and a rotation that is interrupted is completed, also by
// the next daemon.
func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tun := w.open(t)
	must(t, tun.Create())
	old := tun.Device().Key
	w.reason = errors.New("not a member")
	if err := tun.Rotate(t.Context()); !errors.Is(err, w.reason) || tun.Rotates() {
		t.Errorf("rotation of a host that is not a member: %v", err)
	}
	w.reason, w.published = nil, errors.New("etcd is away")
	if err := tun.Rotate(t.Context()); !errors.Is(err, w.published) || !tun.Rotates() || w.kernel.device.Key != old {
		t.Errorf("a key that cannot be published: %v", err)
	}
	next, _ := tun.Published()
	if next == record.PublicKeyOf(old.Public()) {
		t.Error("the old key is published")
	}
	tun = w.open(t)
	if key, _ := tun.Published(); key != next || tun.Device().Key != old {
		t.Errorf("after a restart the key to publish is %s, and was %s", key, next)
	}
	w.published = nil
	must(t, tun.Complete(t.Context()))
	if tun.Rotates() || record.PublicKeyOf(w.kernel.device.Key.Public()) != next {
		t.Error("the published key is not used")
	}
	if again := w.open(t); again.Rotates() || again.Device().Key != tun.Device().Key {
		t.Error("after another restart there is another key")
	}
}

// TestCreating: a device that was created for a network which is not bound yet stays when the last other network goes,
// and is removed if it could not be bound.
func TestCreating(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.needed = false
	tun := w.open(t)
	must(t, tun.Create())
	must(t, tun.Release())
	if w.kernel.device == nil {
		t.Fatal("the device is removed before the network is bound")
	}
	must(t, tun.Create())
	w.kernel.fails = errors.New("busy")
	if err := tun.Create(); !errors.Is(err, w.kernel.fails) || w.kernel.device == nil {
		t.Errorf("the device that two networks wait for is removed after %v", err)
	}
	w.kernel.fails = nil
	must(t, tun.Bound()) // the first could not be bound
	if w.kernel.device == nil {
		t.Error("the device is removed before the second network is bound")
	}
	w.needed = true
	must(t, tun.Bound())
	if w.kernel.device == nil {
		t.Error("the device is removed after the second network was bound")
	}
	w.needed = false
	must(t, tun.Release())
	must(t, tun.Create())
	must(t, tun.Bound())
	if w.kernel.device != nil {
		t.Error("the device of a network that could not be bound stays")
	}
}
