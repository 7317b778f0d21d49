package yard_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/event"
	"netyard/yard/share"
)

// sharers makes a network whose containers share the host's addresses, and endpoints on it, each with a sandbox of its
// own.
func (r *rig) sharers(count int) (hosts []*kerneltest.Host, all []*share.Watched) {
	r.t.Helper()
	n := modes.Network{ID: netID, Mode: "host", Subnets: []modes.Subnet{{
		Pool: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParsePrefix("10.9.0.1/24"),
	}}}
	if err := r.CreateNetwork(r.t.Context(), n); err != nil {
		r.t.Fatal(err)
	}
	for i := range count {
		h := kerneltest.New(r.t)
		var ns *os.File
		err := h.Do(func() (err error) {
			ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = ns.Close() })
		id := fmt.Sprintf("%04deeeeeeeeeeee", i)
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(2 + i)}), 24)
		if _, err := r.CreateEndpoint(r.t.Context(), modes.Endpoint{
			ID: id, NetworkID: netID, Addrs: []netip.Prefix{addr},
		}); err != nil {
			r.t.Fatal(err)
		}
		if _, _, err := r.Join(r.t.Context(), netID, id, fmt.Sprintf("/proc/self/fd/%d", ns.Fd())); err != nil {
			r.t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	byID := map[string]*share.Watched{}
	share.Refresh(r.Yard, byID)
	r.t.Cleanup(func() {
		for _, w := range byID {
			_ = w.Sandbox.Close()
		}
	})
	for i := range count {
		all = append(all, byID[book.EndpointKey(netID, fmt.Sprintf("%04deeeeeeeeeeee", i))])
	}
	return hosts, all
}

func (r *rig) listen(h *kerneltest.Host, addr string) net.Listener {
	r.t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

// listeners lists the sockets of a namespace.
func listeners(h *kerneltest.Host) func() ([]sandbox.Listener, error) {
	return func() ([]sandbox.Listener, error) { return sandbox.Listeners(h.Handle) }
}

func (r *rig) see(w *share.Watched) {
	r.t.Helper()
	w.Retry()
	if err := share.Visit(r.t.Context(), r.Yard, w); err != nil {
		r.t.Fatal(err)
	}
}

// shares returns the ports that an endpoint has on record.
func (r *rig) shares(w *share.Watched) (ports []uint16) {
	r.t.Helper()
	e, err := r.Endpoint(netID, w.Endpoint.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range e.Ports {
		ports = append(ports, p.HostPort)
	}
	return ports
}

// TestShareConflict shows that the first owner keeps a port, that the other gets it when it is free, and that each
// change is reported once.
func TestShareConflict(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hosts, ws := r.sharers(2)
	first := r.listen(hosts[0], ":80")
	r.listen(hosts[1], ":80")
	r.listen(hosts[1], ":81")
	program := r.listen(r.host, ":81")
	for range 3 {
		for _, w := range ws {
			r.see(w)
		}
	}
	if a, b := r.shares(ws[0]), r.shares(ws[1]); !slices.Equal(a, []uint16{80}) || len(b) > 0 {
		t.Errorf("the first has %v, the second %v", a, b)
	}
	found := share.Conflicts(r.Yard, ws[1].Endpoint)
	if len(found) != 2 || !strings.Contains(found[0].Owner, "endpoint 0000eeeeeeee") ||
		!strings.Contains(found[1].Owner, "process yard.test") {
		t.Errorf("conflicts: %+v", found)
	}
	r.healthy("with conflicts")

	_ = first.Close()
	_ = program.Close()
	kerneltest.Released(t, listeners(hosts[0]), 80)
	kerneltest.Released(t, listeners(r.host), 81)
	for _, w := range ws {
		r.see(w)
	}
	if a, b := r.shares(ws[0]), r.shares(ws[1]); len(a) > 0 || !slices.Equal(b, []uint16{80, 81}) {
		t.Errorf("the first has %v, the second %v", a, b)
	}
	late := r.listen(r.host, ":80")
	share.HostChanged(r.Yard, map[string]*share.Watched{"": ws[1]}, nil)
	r.see(ws[1])
	if found := share.Conflicts(r.Yard, ws[1].Endpoint); len(found) != 1 || !found[0].Shadow ||
		len(r.shares(ws[1])) != 2 {
		t.Errorf("a program that came too late: %+v %v", found, r.shares(ws[1]))
	}
	_ = late.Close()
	kerneltest.Released(t, listeners(r.host), 80)
	r.see(ws[1])
	count := map[string]int{}
	all, _ := r.Events(0)
	for _, e := range all {
		count[e.Type]++
	}
	for kind, want := range map[string]int{
		event.PortPublished: 1, event.PortWithdrawn: 1, event.PortConflict: 3, event.PortHealed: 3,
	} {
		if count[kind] != want {
			t.Errorf("%s was told %d times, want %d: %+v", kind, count[kind], want, all)
		}
	}
	if err := r.Leave(t.Context(), netID, ws[1].Endpoint.ID); err != nil {
		t.Fatal(err)
	}
	r.see(ws[1]) // the watcher has not yet heard of it
	if got := r.shares(ws[1]); len(got) > 0 {
		t.Errorf("who has left shares %v", got)
	}
	r.healthy("after one has left")
}

// TestShareCrash kills the daemon at every step of sharing and unsharing ports, and shows that records and kernel agree
// after the next start, and that the next visit completes the change.
func TestShareCrash(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		r := newRig(t)
		hosts, ws := r.sharers(1)
		w := ws[0]
		old := r.listen(hosts[0], ":80")
		r.see(w)
		_ = old.Close()
		kerneltest.Released(t, listeners(hosts[0]), 80)
		r.listen(hosts[0], ":81")
		steps, err := r.pull(at, func() error { return share.Visit(t.Context(), r.Yard, w) })
		if err == nil {
			if at < 4 {
				t.Errorf("there are only the steps %q", steps)
			}
			return
		}
		if !errors.Is(err, errPulled) {
			t.Fatal(err)
		}
		when := fmt.Sprintf("step %q", steps[len(steps)-1])
		r.start()
		r.healthy(when)
		again := &share.Watched{
			Mode: r.Config.Modes["host"], Sharing: w.Sharing, Network: w.Network,
			Endpoint: w.Endpoint, Sandbox: w.Sandbox,
		}
		r.see(again)
		if got := r.shares(again); !slices.Equal(got, []uint16{81}) {
			t.Errorf("%s: after the next look it shares %v", when, got)
		}
		r.healthy(when + ", looked again")
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	y := yard.New(book.Config{})
	_, more := y.Events(0)
	for i := range event.MaxEvents + 10 {
		y.Tell(event.Event{Type: event.NetworkCreated, Text: fmt.Sprint(i)})
	}
	select {
	case <-more:
	default:
		t.Error("nobody was woken")
	}
	all, _ := y.Events(0)
	if len(all) != event.MaxEvents || all[0].ID != 11 || all[len(all)-1].ID != event.MaxEvents+10 {
		t.Errorf("%d events are kept, from %d to %d", len(all), all[0].ID, all[len(all)-1].ID)
	}
	if some, more := y.Events(event.MaxEvents + 9); len(some) != 1 || more == nil {
		t.Errorf("behind all but one: %v", some)
	}
	y.Ring.End()
	if _, more := y.Events(0); more != nil {
		t.Error("there is more to wait for when the daemon ends")
	}
}

// TestShareMany: two containers that listen on the same many ports cost neither time nor records, log lines or events
// beyond a bound, and what they close is withdrawn at once.
func TestShareMany(t *testing.T) {
	t.Parallel()
	const many, first = 3000, 2000
	r := newRig(t)
	var log bytes.Buffer
	r.Config.Log = slog.New(slog.NewTextHandler(&log, nil))
	hosts, ws := r.sharers(2)
	var open [2][]net.Listener
	for i, h := range hosts {
		err := h.Do(func() error {
			for p := first; p < first+many; p++ {
				l, err := net.Listen("tcp4", fmt.Sprintf(":%d", p))
				if err != nil {
					return err
				}
				open[i] = append(open[i], l)
			}
			return nil
		})
		t.Cleanup(func() {
			for _, l := range open[i] {
				_ = l.Close()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		began := time.Now()
		for _, w := range ws {
			r.see(w)
		}
		t.Logf("both were visited in %s", time.Since(began))
	}
	if a, b := r.shares(ws[0]), r.shares(ws[1]); len(a) != share.MaxShared || len(b) != 0 {
		t.Errorf("the first shares %d ports, the second %d, want %d and none", len(a), len(b), share.MaxShared)
	}
	if n := len(share.Conflicts(r.Yard, ws[1].Endpoint)); n != share.MaxShared {
		t.Errorf("%d conflicts, want %d", n, share.MaxShared)
	}
	var closed []uint16
	for _, l := range open[0] {
		closed = append(closed, netip.MustParseAddrPort(l.Addr().String()).Port())
		_ = l.Close()
	}
	kerneltest.Released(t, listeners(hosts[0]), closed...)
	for _, w := range ws {
		r.see(w)
	}
	if a, b := r.shares(ws[0]), r.shares(ws[1]); len(a) != 0 || len(b) != share.MaxShared {
		t.Errorf("after the first has closed them it shares %d ports, the second %d", len(a), len(b))
	}
	for text, want := range map[string]int{
		`msg="port conflict"`: 1, `msg="port conflict ended"`: 1, "listens on more than 1024 ports": 2,
	} {
		if n := strings.Count(log.String(), text); n != want {
			t.Errorf("%d lines with %s, want %d", n, text, want)
		}
	}
	if all, _ := r.Events(0); len(all) > 20 {
		t.Errorf("%d events", len(all))
	}
}
