package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"netyard/cluster/hosttest"
	"netyard/cluster/peers"
	"netyard/cluster/record"
	"netyard/kernel/core"
	"netyard/kernel/overlay"
)

// A fake is a kernel that keeps the peers it is given. It fails while fails is set.
type fake struct {
	mu    sync.Mutex
	fails bool
	peers map[netip.Addr]string
	// wrong counts removals of addresses that are no peers', and of MAC addresses that a peer still has.
	wrong int
	addrs map[string]bool
	// busy makes removals fail; removed counts the elements of sets that were removed.
	busy    bool
	removed int
	// during is called at the start of Ensure, once; nil: nothing.
	during func()
	// accepts says whether frames from a VTEP are accepted; nil: all are. early counts peers that were given before.
	accepts func(vtep netip.Addr) bool
	early   int
}

// tell takes note of a peer. The caller holds mu.
func (f *fake) tell(p overlay.Peer) {
	if f.accepts != nil && !f.accepts(p.VTEP) {
		f.early++
	}
	f.peers[p.Addr] = text(p.MAC, p.VTEP)
}

func text(mac net.HardwareAddr, vtep netip.Addr) string { return mac.String() + " " + vtep.String() }

var errFake = errors.New("the kernel does not do that")

func (f *fake) Ensure(_ context.Context, objects ...core.Object) error {
	if during := f.during; during != nil {
		f.during = nil
		during()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails {
		return errFake
	}
	for _, o := range objects {
		switch o := o.(type) {
		case overlay.Peers:
			f.peers = map[netip.Addr]string{}
			for _, p := range o.All {
				f.tell(p)
			}
		case core.Addr:
			f.addrs[o.Prefix.String()] = true
		}
	}
	return nil
}

func (f *fake) Remove(objects ...core.Object) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		return errFake
	}
	for _, o := range objects {
		if o, ok := o.(core.Addr); ok {
			delete(f.addrs, o.Prefix.String())
		} else {
			f.removed++
		}
	}
	return nil
}

func (f *fake) ChangePeers(
	_ context.Context, _ string, set []overlay.Peer, gone []netip.Addr, unused []net.HardwareAddr,
) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails {
		return errFake
	}
	for _, p := range set {
		f.tell(p)
	}
	for _, a := range gone {
		if f.peers[a] == "" {
			f.wrong++
		}
		delete(f.peers, a)
	}
	for _, m := range unused {
		for _, p := range f.peers {
			if p[:len(m.String())] == m.String() {
				f.wrong++
			}
		}
	}
	return nil
}

func (f *fake) has() map[netip.Addr]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.peers)
}

// blue returns the network of hosttest.Blue as host 1 sees it, with a kernel.
func blue(addrs ...netip.Prefix) (*Network, *fake) {
	f := &fake{peers: map[netip.Addr]string{}, addrs: map[string]bool{}}
	n := New(Config{
		Log: slog.New(slog.DiscardHandler), Kernel: f, Host: hosttest.ID(1), Port: func() uint16 { return 4789 },
		Read: func() bool { return true }, Tunnel: func() error { return nil }, Retry: func() {},
		HostAddrs: func() ([]netip.Prefix, error) { return addrs, nil },
	}, hosttest.Blue(), Links{VXLAN: "x", Bridge: "b", Alias: "a"}, false)
	var cs []record.Change
	for host := 1; host <= 3; host++ {
		cs = append(cs, record.Change{New: hosttest.Host(host)},
			record.Change{New: &record.Member{Network: hosttest.ID(9), Host: hosttest.ID(host)}})
	}
	n.Note(cs)
	return n, f
}

// endpoint is a claim of an address, by one of the hosts 2 and 3, with one of a few MAC addresses.
func endpoint(last, host, mac int) *record.Address {
	return &record.Address{
		Network: hosttest.ID(9), Addr: netip.AddrFrom4([4]byte{10, 20, 0, byte(last)}), Host: hosttest.ID(host),
		Use: record.Endpoint, Endpoint: fmt.Sprint("e", last), MAC: record.MAC(fmt.Sprintf("02:42:0a:14:00:%02x", mac)),
	}
}

func wanted(n *Network) map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for a, p := range n.Peers() {
		all[a] = text(p.MAC.Hardware(), p.VTEP)
	}
	return all
}

// settle calls Update as long as there is something to do.
func settle(t *testing.T, n *Network) {
	t.Helper()
	for n.Lacking() {
		if err := n.Update(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConcurrentChanges: whatever several goroutines apply, and whenever the kernel fails, it has the peers in the end.
func TestConcurrentChanges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		n, f := blue()
		var all sync.WaitGroup
		for worker := range 4 {
			rng := rand.New(rand.NewPCG(seed, uint64(worker)))
			all.Go(func() {
				for range 40 {
					var c record.Change
					switch e := endpoint(10+worker*4+rng.IntN(4), 2+rng.IntN(2), rng.IntN(6)); rng.IntN(6) {
					case 0:
						c.Old = e
					case 1:
						f.mu.Lock()
						f.fails = rng.IntN(3) == 0
						f.mu.Unlock()
						_ = n.Update() // as the Agent does, which tries again
						continue
					default:
						c.New = e
					}
					n.Apply([]record.Change{c})
				}
			})
		}
		all.Wait()
		f.fails = false
		settle(t, n)
		if got, want := f.has(), wanted(n); !maps.Equal(got, want) {
			t.Fatalf("seed %d: the kernel has %v, want %v", seed, got, want)
		}
		n.Apply([]record.Change{{New: endpoint(5, 2, 99)}})
		if got, want := f.has(), wanted(n); !maps.Equal(got, want) || f.wrong > 0 {
			t.Fatalf("seed %d: after one more change the kernel has %v, want %v; %d wrong removals", seed, got, want,
				f.wrong)
		}
	}
}

// TestPendingChanges: changes that come while the kernel works are given to it together, with what it has as the old
// state.
func TestPendingChanges(t *testing.T) {
	t.Parallel()
	n, _ := blue()
	settle(t, n)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.note([]record.Change{{New: endpoint(5, 2, 1)}})
	n.note([]record.Change{{New: endpoint(5, 3, 2)}, {New: endpoint(6, 2, 3)}})
	n.note([]record.Change{{Old: endpoint(6, 2, 3)}})
	first := endpoint(5, 3, 2)
	if d := n.pending[first.Addr]; d.Old != (peers.Peer{}) || d.New.MAC != first.MAC {
		t.Errorf("two changes of an address became %+v", d)
	}
	if set, gone, unused := n.split(); len(set) != 1 || len(gone) != 0 || len(unused) != 0 {
		t.Errorf("to be given to the kernel: %v, %v, %v", set, gone, unused)
	}
}

// TestBlocked: a blocked network has no peers, and all of them after it is opened again; the host's own addresses stay.
func TestBlocked(t *testing.T) {
	t.Parallel()
	own := netip.MustParsePrefix("10.20.0.9/16")
	n, f := blue(own)
	n.Note([]record.Change{{New: endpoint(5, 2, 1)}})
	settle(t, n)
	if len(f.has()) != 1 || !f.addrs[own.String()] {
		t.Fatalf("the kernel has %v and %v", f.has(), f.addrs)
	}
	n.Block(true)
	settle(t, n)
	n.Apply([]record.Change{{New: endpoint(6, 2, 2)}})
	if len(f.has()) != 0 || !n.Status().Shut {
		t.Errorf("a blocked network has peers %v", f.has())
	}
	n.Reopen()
	settle(t, n)
	if len(f.has()) != 0 {
		t.Errorf("the network of a removed host has peers %v", f.has())
	}
	n.Block(false)
	n.Reopen()
	settle(t, n)
	if len(f.has()) != 2 {
		t.Errorf("an open network has peers %v", f.has())
	}
	if err := n.Shut(); err != nil || len(f.has()) != 0 {
		t.Errorf("a network that was shut has peers %v, %v", f.has(), err)
	}
}

// TestRemoved: after a network was removed nothing gives the kernel peers of it.
func TestRemoved(t *testing.T) {
	t.Parallel()
	n, f := blue()
	settle(t, n)
	if err := n.Remove(); err != nil {
		t.Fatal(err)
	}
	n.Note([]record.Change{{New: endpoint(5, 2, 1)}})
	n.Apply([]record.Change{{New: endpoint(6, 2, 2)}})
	if err := errors.Join(n.Update(), n.TellPeers()); err != nil || len(f.has()) != 0 {
		t.Errorf("a removed network has peers %v, %v", f.has(), err)
	}
}

// joins returns the changes by which a host joins the network.
func joins(host int) []record.Change {
	return []record.Change{
		{New: hosttest.Host(host)}, {New: &record.Member{Network: hosttest.ID(9), Host: hosttest.ID(host)}},
	}
}

// TestVTEPRemovalFails: a VTEP that could not be removed from the firewall is removed later.
func TestVTEPRemovalFails(t *testing.T) {
	t.Parallel()
	n, f := blue()
	settle(t, n)
	f.busy = true
	n.Apply([]record.Change{{Old: &record.Member{Network: hosttest.ID(9), Host: hosttest.ID(3)}}})
	if !n.Lacking() {
		t.Error("a removal that failed is not tried again")
	}
	f.busy = false
	settle(t, n)
	if want := len(overlay.MemberElements(1, n.vteps)); len(n.vteps) != 1 || f.removed != want {
		t.Errorf("%d elements were removed, want %d; VTEPs are %v", f.removed, want, n.vteps)
	}
}

// TestVTEPsBeforePeers: the kernel is not given a peer before the VTEP of its host, also if that host joins while the
// VTEPs are changed.
func TestVTEPsBeforePeers(t *testing.T) {
	t.Parallel()
	n, f := blue()
	settle(t, n)
	far := endpoint(5, 5, 5)
	f.during = func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.note(append(joins(5), record.Change{New: far})) // another Apply, which waits for its turn then
	}
	n.Apply(joins(4))
	if len(f.has()) != 0 {
		t.Errorf("the kernel has %v, and accepts frames from %v", f.has(), n.vteps)
	}
	n.Apply(nil)
	if len(f.has()) != 1 || len(n.vteps) != 4 {
		t.Errorf("in the end the kernel has %v, and accepts frames from %v", f.has(), n.vteps)
	}
}

// watchEarly makes the fake count peers whose VTEP is not accepted yet.
func watchEarly(n *Network, f *fake) {
	f.accepts = func(vtep netip.Addr) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.Contains(n.vteps, vtep)
	}
}

// TestAllAfterVTEPs: also when the kernel is given all peers, by Update or for a repair, it accepts frames from their
// hosts before.
func TestAllAfterVTEPs(t *testing.T) {
	t.Parallel()
	for name, give := range map[string]func(*Network) error{
		"Update": (*Network).Update, "TellPeers": (*Network).TellPeers,
	} {
		n, f := blue()
		settle(t, n)
		watchEarly(n, f)
		f.during = func() { n.Note(append(joins(5), record.Change{New: endpoint(5, 5, 5)})) }
		n.Note(append(joins(4), record.Change{New: endpoint(4, 4, 4)}))
		if err := give(n); err != nil || f.early > 0 || len(f.has()) != 2 {
			t.Errorf("%s: %v; the kernel has %v, %d peers too early", name, err, f.has(), f.early)
		}
	}
}

// TestAllTogether: however changes, updates, repairs and blocks meet, the kernel gets no peer before its VTEP, and has
// all in the end.
func TestAllTogether(t *testing.T) {
	t.Parallel()
	n, f := blue()
	watchEarly(n, f)
	ignore := func(error) {}
	var all sync.WaitGroup
	for _, work := range []func(i int){
		func(i int) {
			host := 4 + i%3
			n.Apply(append(joins(host), record.Change{New: endpoint(host, host, host)}))
			n.Apply([]record.Change{{Old: &record.Member{Network: hosttest.ID(9), Host: hosttest.ID(host)}}})
		},
		func(i int) { n.Apply([]record.Change{{New: endpoint(10+i%8, 2+i%2, i%6)}}) },
		func(int) { ignore(n.Update()) },
		func(int) { ignore(n.TellPeers()) },
		func(i int) {
			f.mu.Lock()
			f.fails = i%3 == 0
			f.mu.Unlock()
			ignore(n.Shut())
			n.Reopen()
		},
	} {
		all.Go(func() {
			for i := range 200 {
				work(i)
			}
		})
	}
	all.Wait()
	f.fails = false
	n.Reopen()
	settle(t, n)
	if got, want := f.has(), wanted(n); !maps.Equal(got, want) || f.early > 0 {
		t.Errorf("the kernel has %v, want %v; %d peers too early", got, want, f.early)
	}
}

// TestRepairOfOldHostAddrs: a repair that has seen former addresses of the host sets those that it has now.
func TestRepairOfOldHostAddrs(t *testing.T) {
	t.Parallel()
	was, is := netip.MustParsePrefix("10.20.0.9/16"), netip.MustParsePrefix("10.20.0.8/16")
	own := []netip.Prefix{was}
	n, f := blue(own...)
	n.c.HostAddrs = func() ([]netip.Prefix, error) { return own, nil }
	settle(t, n)
	seen := n.Objects()
	own[0] = is
	if err := n.Update(); err != nil {
		t.Fatal(err)
	}
	delete(f.addrs, is.String()) // somebody removed it
	repaired := 0
	for _, o := range seen {
		if strings.HasPrefix(o.String(), "address ") {
			repaired++
			if err := o.Ensure(nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if repaired != 1 || len(f.addrs) != 1 || !f.addrs[is.String()] {
		t.Errorf("%d repaired, the host has %v, want %s", repaired, f.addrs, is)
	}
}
