package yard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/overlay"
	"netyard/yard/attach"
	"netyard/yard/book"
	yoverlay "netyard/yard/overlay"
	yown "netyard/yard/own"
)

// A ledger is a cluster that survives the daemon's death. It has the owners of addresses.
type ledger struct{ owners map[netip.Addr]string }

func (l *ledger) Find(_ context.Context, want modes.Overlay) (modes.Overlay, error) {
	want.ID, want.VNI = strings.Repeat("c", 32), 0x1234
	if len(want.Subnets) == 0 {
		return want, modes.ErrNoOverlay
	}
	return want, nil
}

func (*ledger) Host() modes.OverlayHost {
	return modes.OverlayHost{VTEP: netip.MustParseAddr("192.0.2.1"), Port: 4789, MTU: 1500}
}

func (l *ledger) Attach(_ modes.Overlay, e modes.Endpoint) error {
	for _, p := range e.Addrs {
		if l.owners[p.Addr()] == "" {
			return fmt.Errorf("%s is nobody's", p)
		}
		l.owners[p.Addr()] = e.ID
	}
	return nil
}

func (l *ledger) Grant(_ context.Context, _ modes.Overlay, owner string, a netip.Addr, _ bool) (netip.Addr, error) {
	if !a.IsValid() {
		for a = netip.MustParseAddr("10.9.0.2"); l.owners[a] != ""; a = a.Next() {
			continue
		}
	}
	if by := l.owners[a]; by != "" {
		return a, fmt.Errorf("%s is taken by %s", a, by)
	}
	l.owners[a] = owner
	return a, nil
}

func (l *ledger) Release(_ modes.Overlay, a netip.Addr) error {
	delete(l.owners, a)
	return nil
}

func (*ledger) Up(modes.Overlay, modes.OverlayLink) error  { return nil }
func (*ledger) Down(modes.Overlay) error                   { return nil }
func (*ledger) Detach(modes.Overlay, modes.Endpoint) error { return nil }
func (*ledger) Name(modes.Overlay, modes.Endpoint) error   { return nil }
func (*ledger) CheckRoom(modes.Overlay, bool) error        { return nil }
func (*ledger) HostOf(modes.Overlay, string) string        { return "" }
func (*ledger) LeavingObjects() ([]core.Object, error)     { return nil, nil }
func (*ledger) Objects(modes.Overlay) (none []core.Object) { return none }

// join puts a host's yard into the cluster, which survives it.
func (l *ledger) join(c *book.Config) {
	c.Fabric, c.Modes["overlay"] = l, overlay.New(modes.Env{Fabric: l})
}

// reap releases claims that no endpoint of the host has, as the Fabric does after a while.
func (l *ledger) reap(b *book.Book) {
	for a := range l.owners {
		if !yoverlay.HasAddress(b, strings.Repeat("c", 32), a) {
			delete(l.owners, a)
		}
	}
}

// TestOverlayCrash kills the daemon at every step of an attachment to an overlay, and shows that no address belongs to
// two containers, that none in use is released, and that no unused claim stays.
func TestOverlayCrash(t *testing.T) {
	t.Parallel()
	l := &ledger{owners: map[netip.Addr]string{}}
	r, p, q := newRig(t), newPlace(t), newPlace(t)
	r.host.Sh(t, "ip addr add 192.0.2.1/24 dev lo")
	r.cluster = l
	r.start()
	n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
		Name: "blue", Mode: "overlay",
		Subnets: []book.SubnetRequest{{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	must := func(a book.Attached, err error) []netip.Prefix {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a.Endpoint.Addrs
	}
	wanted := p.request(n, "c1")
	wanted.Container = modes.Container{Engine: book.Containerd, ID: "c1", Name: "c1"}
	for at, died := 1, true; died; at++ {
		stays := must(attach.Attach(t.Context(), r.Yard, q.request(n, "c2")))
		steps, err := r.pull(at, func() error {
			if _, err := attach.Attach(t.Context(), r.Yard, wanted); err != nil {
				return err
			}
			other := wanted
			other.Addrs = []netip.Addr{netip.MustParseAddr("10.9.0.77")} // in place of the one it has
			if _, err := attach.Attach(t.Context(), r.Yard, other); err != nil {
				return err
			}
			if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil { // held
				return err
			}
			return attach.ContainerGone(t.Context(), r.Yard, "c1")
		})
		if died = errors.Is(err, errPulled); err != nil && !died {
			t.Fatal(err)
		}
		what := fmt.Sprintf("step %d, after %v", at, steps)
		r.start()
		l.reap(r.Book)
		r.healthy(what)
		got := must(attach.Attach(t.Context(), r.Yard, wanted))
		if l.owners[got[0].Addr()] == "" || l.owners[stays[0].Addr()] == "" || slices.Equal(got, stays) {
			t.Errorf("%s: it has %v beside %v, and the cluster knows of %v", what, got, stays, l.owners)
		}
		if !p.Pings(stays[0].Addr().String(), true) {
			t.Errorf("%s: the two do not reach each other", what)
		}
		if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil {
			t.Fatal(err)
		}
		if err := attach.ContainerGone(t.Context(), r.Yard, "c1"); err != nil {
			t.Fatal(err)
		}
		if err := attach.Detach(t.Context(), r.Yard, q.end(n, "c2")); err != nil {
			t.Fatal(err)
		}
		if len(l.owners) != 0 {
			t.Errorf("%s: there is nobody, and the cluster knows of %v", what, l.owners)
		}
		if at > 80 {
			t.Fatal("there is no end of steps")
		}
	}
}
