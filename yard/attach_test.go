package yard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/attach"
	"netyard/yard/book"
	yown "netyard/yard/own"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

// A place is a sandbox, as a runtime makes one.
type place struct {
	*kerneltest.Host
	path string
}

func newPlace(t *testing.T) place {
	t.Helper()
	h := kerneltest.New(t)
	return place{h, fmt.Sprintf("/proc/self/fd/%d", h.NS())}
}

// made creates a network that belongs to no engine.
func (r *rig) made() modes.Network {
	r.t.Helper()
	n, err := yown.CreateNetwork(r.t.Context(), r.Yard, book.NetworkRequest{
		Name: "web", Subnets: []book.SubnetRequest{
			{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")}},
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (p place) request(n modes.Network, name string) book.AttachRequest {
	return book.AttachRequest{
		Network: n, Attachment: name, IfName: "eth0", Sandbox: p.path, NS: p.NS(),
		Container: modes.Container{Engine: book.CNI},
	}
}

// again returns a network as a door finds it now.
func (r *rig) again(n modes.Network) modes.Network {
	r.t.Helper()
	n, err := r.Network(n.ID)
	must(r.t, err)
	return n
}

func (p place) end(n modes.Network, name string) attach.DetachRequest {
	return attach.DetachRequest{NetworkID: n.ID, Attachment: name, IfName: "eth0", NS: p.NS(), Gone: true}
}

// active returns the addresses in use, except gateways.
func (r *rig) active() (as []string) {
	r.t.Helper()
	ls, _, err := pool.Leases(r.Yard)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range ls {
		if l.State == ipam.StateActive && l.Kind != ipam.KindGateway {
			as = append(as, l.Addr.String())
		}
	}
	return as
}

// TestAttachCrash kills the daemon at every step of attaching and detaching, starts it again, and shows that the
// runtime's next request succeeds.
func TestAttachCrash(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsRoot(t)
	for at, died := 1, true; died; at++ {
		t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) {
			r, p := newRig(t), newPlace(t)
			n := r.made()
			steps, err := r.pull(at, func() error {
				if _, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1")); err != nil {
					return err
				}
				if _, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1")); err != nil { // replaces it
					return err
				}
				return attach.Detach(t.Context(), r.Yard, p.end(n, "c1"))
			})
			died = err == errPulled //nolint:errorlint // it is that one
			if err != nil && !died {
				t.Fatal(err)
			}
			t.Logf("died %t after %v", died, steps)
			r.start()
			r.healthy("after the restart")
			if _, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1")); err != nil {
				t.Fatalf("attach again: %v", err)
			}
			p.Sh(t, "for i in 1 2 3 4 5; do ping -c 1 -W 2 10.9.0.1 && exit; done; exit 1")
			r.healthy("attached again")
			if got := r.active(); len(got) != 1 {
				t.Errorf("%v are in use", got)
			}
			if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil {
				t.Fatal(err)
			}
			if got := r.active(); len(got) != 0 {
				t.Errorf("%v are in use after the end", got)
			}
			r.healthy("detached")
			if _, err := yown.RemoveNetwork(t.Context(), r.Yard, "web"); err != nil {
				t.Fatal(err)
			}
			r.healthy("without the network")
		})
		if at > 60 {
			t.Fatal("there is no end of steps")
		}
	}
}

// TestAttachDies kills the daemon at each step of attaching, or right after its answer. An attachment that may have
// been answered exists after the restart, with its ports, and works; one that was not is removed without a trace. If
// the host goes down too, the attachment is removed in both cases.
func TestAttachDies(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsRoot(t)
	for at, answered := 1, false; !answered; at++ {
		for _, hostToo := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d, host too %t", at, hostToo), func(t *testing.T) {
				r, p := newRig(t), newPlace(t)
				n := r.made()
				q := p.request(n, "c1")
				q.Ports = []book.PortRequest{{Proto: "tcp", HostPort: 8080, HostPortEnd: 8080, ContainerPort: 80}}
				steps, err := r.pull(at, func() error { _, err := attach.Attach(t.Context(), r.Yard, q); return err })
				if answered = err == nil; err != nil && !errors.Is(err, errPulled) {
					t.Fatal(err)
				}
				if hostToo {
					r.boot = "boot-2"
					r.host.Sh(t, `for l in $(ip -o link | grep -o "nyv-[0-9a-f]*" | sort -u); do ip link del $l; done`)
				}
				r.start()
				r.healthy("after the restart")
				es, err := r.Endpoints()
				if err != nil {
					t.Fatal(err)
				}
				if heard := (answered || steps[len(steps)-1] == "after endpoint ready") && !hostToo; !heard {
					if len(es) > 0 || len(r.active()) > 0 {
						t.Errorf("died after %v: nobody heard of %v, which has %v", steps, es, r.active())
					}
					if links := p.Sh(t, "ip -o link"); strings.Contains(links, "eth0") {
						t.Errorf("died after %v: the sandbox has %s", steps, links)
					}
					return
				}
				if len(es) != 1 || es[0].Phase != modes.Ready || len(es[0].Ports) != 1 || es[0].Inside.Link == "" {
					t.Fatalf("died after %v: of what its runtime heard of, there is %v", steps, es)
				}
				p.Sh(t, "for i in 1 2 3 4 5; do ping -c 1 -W 2 10.9.0.1 && exit; done; exit 1")
				if faults, err := attach.Faults(r.Yard, p.end(n, "c1")); err != nil || len(faults) > 0 {
					t.Errorf("it is not as it was made: %v %v", faults, err)
				}
			})
		}
	}
}

// TestJoinDies shows the same for Join, which Docker does not repeat.
func TestJoinDies(t *testing.T) {
	t.Parallel()
	for _, hostToo := range []bool{false, true} {
		r := r6(t)
		was, _ := r.Endpoint(netID, epID)
		if hostToo {
			r.boot = "boot-2"
			r.host.Sh(t, "ip link del "+core.Name(core.VethPrefix, epID))
		}
		r.start()
		r.healthy("after the restart")
		is, err := r.Endpoint(netID, epID)
		if !hostToo && (err != nil || !reflect.DeepEqual(is, was)) {
			t.Errorf("the endpoint was %v and is %v: %v", was, is, err)
		}
		if hostToo && !errors.Is(err, book.ErrNotFound) {
			t.Errorf("the host went down, and there is %v: %v", is, err)
		}
	}
}

// TestDeleteBusy shows that an endpoint whose lock another request holds is deleted after that request: an engine does
// not retry.
func TestDeleteBusy(t *testing.T) {
	t.Parallel()
	r := r6(t)
	held, err := r.Hold(t.Context(), netID, epID)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := r.DeleteEndpoint(ctx, netID, epID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request that could not be done: %v", err)
	}
	is, err := r.Endpoint(netID, epID)
	if err != nil {
		t.Errorf("the endpoint is gone while another request has it: %v", err)
	}
	// The engine continues, and releases the address that the endpoint still has.
	if err := pool.ReleaseAddress(t.Context(), r.Yard, "10.9.0.0/24", is.Addrs[0].Addr()); err != nil {
		t.Error(err)
	}
	held.Release()
	r.Late.Wait()
	if is, err := r.Endpoint(netID, epID); !errors.Is(err, book.ErrNotFound) {
		t.Errorf("the endpoint stayed: %v %v", is, err)
	}
	r.now = r.now.Add(time.Minute)
	r.healthy("after an endpoint was deleted late")
	again, err := pool.RequestAddress(t.Context(), r.Yard,
		ipam.AddressRequest{Pool: "10.9.0.0/24", Addr: is.Addrs[0].Addr()})
	if err != nil {
		t.Errorf("the address of an endpoint that was deleted late: %s, %v", again, err)
	}
}

// TestAttachHold shows that the addresses of a stopped container are held for it until its engine removes it.
func TestAttachHold(t *testing.T) {
	t.Parallel()
	r, p, q := newRig(t), newPlace(t), newPlace(t)
	n := r.made()
	known := p.request(n, "default-c1")
	known.Container = modes.Container{Engine: book.Containerd, ID: "c1", Name: "c1"}
	a, err := attach.Attach(t.Context(), r.Yard, known)
	if err != nil {
		t.Fatal(err)
	}
	first := a.Endpoint.Addrs[0].Addr()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(attach.Detach(t.Context(), r.Yard, p.end(n, "default-c1")))
	r.healthy("a held address")
	r.start()
	r.healthy("a held address after a restart")
	thief := q.request(n, "thief")
	thief.Addrs = []netip.Addr{first}
	if _, err := attach.Attach(t.Context(), r.Yard, thief); err == nil {
		t.Error("a held address was given to another")
	}
	a, err = attach.Attach(t.Context(), r.Yard, known)
	must(err)
	if got := a.Endpoint.Addrs[0].Addr(); got != first {
		t.Errorf("started again it has %s and not %s", got, first)
	}
	must(attach.Detach(t.Context(), r.Yard, p.end(n, "default-c1")))

	// Its engine no longer has it: missing twice, and older than the grace period.
	gone := reconcile.Census{
		Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{},
		Attachments: map[string]bool{},
	}
	there := gone
	there.Attachments = map[string]bool{"default-c1": true}
	r.now = r.now.Add(2 * time.Minute)
	for range 2 {
		must(reconcile.Reconcile(t.Context(), r.Yard, there))
	}
	// Another engine has nothing to do with it.
	must(reconcile.Reconcile(t.Context(), r.Yard,
		reconcile.Census{Engine: book.Docker, Networks: map[string]reconcile.SeenNetwork{}}))
	must(reconcile.Reconcile(t.Context(), r.Yard, gone))
	if len(r.active()) != 1 {
		t.Error("an address was released at the first census")
	}
	found, err := reconcile.Audit(t.Context(), r.Yard, []reconcile.Census{gone})
	must(err)
	if !slices.ContainsFunc(found,
		func(f book.Finding) bool { return strings.Contains(f.Text, "held for container c1") }) {
		t.Errorf("doctor says %+v", found)
	}
	must(reconcile.Reconcile(t.Context(), r.Yard, gone))
	if left := r.active(); len(left) != 0 {
		t.Errorf("%v are held for nobody", left)
	}
	must(attach.ContainerGone(t.Context(), r.Yard, "default-c1")) // twice is once
	r.healthy("in the end")
}

// TestAttachDead shows that an end which nobody reports is seen by the namespace, and that young attachments are left
// alone.
func TestAttachDead(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n := r.made()
	req := p.request(n, "c1")
	req.Sandbox = newPlace(t).path // another namespace at the path by now: a process of the same number
	a, err := attach.Attach(t.Context(), r.Yard, req)
	if err != nil {
		t.Fatal(err)
	}
	if a.Endpoint.Seen {
		t.Fatal("the path is not that of the sandbox, and was believed")
	}
	e := a.Endpoint
	e.Seen = true
	if err := r.st.Update(func(tx store.Tx) error { return book.PutEndpoint(tx, e) }); err != nil {
		t.Fatal(err)
	}
	r.Sweep(context.Background())
	if len(r.active()) != 1 {
		t.Error("a young attachment was removed")
	}
	r.now = r.now.Add(2 * time.Minute)
	r.Sweep(context.Background())
	if len(r.active()) != 0 {
		t.Error("a dead attachment stays")
	}
	r.healthy("swept")
}

// TestAttachRefused shows that a refused attachment leaves nothing behind.
func TestAttachRefused(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n := r.made()
	p.Sh(t, "ip link add eth0 type bridge")
	for what, c := range map[string]struct {
		change func(*book.AttachRequest)
		says   string
	}{
		"a name that is taken inside": {func(*book.AttachRequest) {}, "already has a link eth0"},
		"the host for a sandbox":      {func(q *book.AttachRequest) { q.NS = r.host.NS() }, "host's own"},
		"an address of no subnet":     {func(q *book.AttachRequest) { q.Addrs = []netip.Addr{netip.MustParseAddr("10.1.1.1")} }, "no subnet for it"},
		"the gateway's address":       {func(q *book.AttachRequest) { q.Addrs = []netip.Addr{netip.MustParseAddr("10.9.0.1")} }, "taken"},
		"a network that is not there": {func(q *book.AttachRequest) { q.Network.ID = "nope" }, "not found"},
		"a port on an address of none": {func(q *book.AttachRequest) {
			q.Ports = []book.PortRequest{{
				Proto: "tcp", HostIP: netip.MustParseAddr("192.0.2.7"), HostPort: 80, HostPortEnd: 80,
				ContainerPort: 80,
			}}
		}, "not an address of this host"},
	} {
		q := p.request(n, "c1")
		c.change(&q)
		if _, err := attach.Attach(t.Context(), r.Yard, q); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
		if len(r.active()) != 0 {
			t.Errorf("%s: it has an address", what)
		}
		r.healthy(what)
	}
	if err := r.DeleteNetwork(t.Context(), n.ID); err != nil {
		t.Fatal(err)
	}
}

// TestAttachAux shows that no container gets an auxiliary address of a network, not even by request. If one cannot be
// reserved, the network is refused, the error names the address, and nothing of the network is left.
func TestAttachAux(t *testing.T) {
	t.Parallel()
	r, p, q := newRig(t), newPlace(t), newPlace(t)
	of := func(gateway string, aux map[string]string) book.NetworkRequest {
		s := book.SubnetRequest{
			Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")},
			Aux:  map[string]netip.Addr{},
		}
		s.Gateway, _ = netip.ParseAddr(gateway)
		for name, a := range aux {
			s.Aux[name] = netip.MustParseAddr(a)
		}
		return book.NetworkRequest{Name: "web", Subnets: []book.SubnetRequest{s}}
	}
	for _, bad := range []book.NetworkRequest{
		of("10.9.0.2", map[string]string{"router": "10.9.0.2"}), of("", map[string]string{"router": "10.9.1.2"}),
		of("", map[string]string{"router": "10.9.0.0"}),
		of("", map[string]string{"a": "10.9.0.3", "router": "10.9.0.3"}),
	} {
		_, err := yown.CreateNetwork(t.Context(), r.Yard, bad)
		if !errors.Is(err, modes.ErrOption) || !strings.Contains(err.Error(), "aux-address router") {
			t.Errorf("%v: %v", bad.Subnets[0].Aux, err)
		}
		if left := r.leftovers(); left != "" {
			t.Errorf("%v: %s is left", bad.Subnets[0].Aux, left)
		}
	}
	asked := of("", map[string]string{"router": "10.9.0.2", "nas": "10.9.0.1"})
	n, err := yown.CreateNetwork(t.Context(), r.Yard, asked)
	if err != nil {
		t.Fatal(err)
	}
	if s := n.Subnets[0]; s.Gateway.Addr().String() != "10.9.0.3" ||
		fmt.Sprint(s.Aux) != "map[nas:10.9.0.1/24 router:10.9.0.2/24]" {
		t.Errorf("the subnet is %+v", s)
	}
	asked.ID = n.ID
	if again, err := yown.CreateNetwork(t.Context(), r.Yard, asked); err != nil || !again.Created.Equal(n.Created) {
		t.Errorf("the same again: %v %v", again, err)
	}
	if a, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1")); err != nil ||
		a.Endpoint.Addrs[0].Addr().String() != "10.9.0.4" {
		t.Errorf("the first container has %v: %v", a.Endpoint.Addrs, err)
	}
	named := q.request(n, "c2")
	named.Addrs = []netip.Addr{netip.MustParseAddr("10.9.0.2")}
	if _, err := attach.Attach(t.Context(), r.Yard, named); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("an address that is kept, asked for by name: %v", err)
	}
	r.healthy("with kept addresses")
	if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil {
		t.Fatal(err)
	}
	if _, err := yown.RemoveNetwork(t.Context(), r.Yard, "web"); err != nil {
		t.Fatal(err)
	}
	if left := r.leftovers(); left != "" {
		t.Errorf("%s is left", left)
	}
}

// TestAttachPorts shows that a port without an address is published on all addresses, that a container's second network
// does not publish it again, that no other container gets it, and that detaching withdraws it.
func TestAttachPorts(t *testing.T) {
	t.Parallel()
	r, p, q := newRig(t), newPlace(t), newPlace(t)
	web := r.made()
	back, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
		Name: "back", Subnets: []book.SubnetRequest{
			{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.10.0.0/24")}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ports := []book.PortRequest{{Proto: "tcp", HostPort: 8080, HostPortEnd: 8080, ContainerPort: 80}}
	// In either order, the ports belong to eth0, by which the replies leave.
	early := p.request(back, "c0")
	early.IfName, early.Ports = "eth1", ports
	if a, err := attach.Attach(t.Context(), r.Yard, early); err != nil || len(a.Endpoint.Ports) != 1 {
		t.Fatalf("alone: %v %v", a.Endpoint.Ports, err)
	}
	late := p.request(web, "c0")
	late.Ports = ports
	if a, err := attach.Attach(t.Context(), r.Yard, late); err != nil || len(a.Endpoint.Ports) != 1 {
		t.Fatalf("eth0 behind eth1: %v %v", a.Endpoint.Ports, err)
	}
	r.healthy("the ports have moved")
	for _, d := range []attach.DetachRequest{
		p.end(web, "c0"), {NetworkID: back.ID, Attachment: "c0", IfName: "eth1", NS: p.NS(), Gone: true},
	} {
		if err := attach.Detach(t.Context(), r.Yard, d); err != nil {
			t.Fatal(err)
		}
	}
	first, second, other := p.request(web, "c1"), p.request(back, "c1"), q.request(web, "c2")
	second.IfName = "eth1"
	first.Ports, second.Ports, other.Ports = ports, ports, ports
	a, err := attach.Attach(t.Context(), r.Yard, first)
	if err != nil || fmt.Sprint(a.Endpoint.Ports) != "[0.0.0.0:8080->80/tcp]" {
		t.Fatalf("%v %v", a.Endpoint.Ports, err)
	}
	if a, err := attach.Attach(t.Context(), r.Yard, second); err != nil || len(a.Endpoint.Ports) != 0 {
		t.Errorf("on a second network: %v %v", a.Endpoint.Ports, err)
	}
	if _, err := attach.Attach(t.Context(), r.Yard, other); err == nil || !strings.Contains(err.Error(), "8080") {
		t.Errorf("another container: %v", err)
	}
	if a, err := attach.Attach(t.Context(), r.Yard, first); err != nil || len(a.Endpoint.Ports) != 1 {
		t.Errorf("again: %v %v", a.Endpoint.Ports, err)
	}
	r.healthy("published")
	for _, d := range []attach.DetachRequest{
		p.end(web, "c1"), {NetworkID: back.ID, Attachment: "c1", IfName: "eth1", NS: p.NS(), Gone: true},
	} {
		if err := attach.Detach(t.Context(), r.Yard, d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := attach.Attach(t.Context(), r.Yard, other); err != nil {
		t.Errorf("when it is free: %v", err)
	}
	r.healthy("withdrawn")
}

// TestAttachSharesAgain shows that a container which shares the host's addresses keeps its own when attached again.
func TestAttachSharesAgain(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n, err := yown.CreateNetwork(t.Context(), r.Yard, book.NetworkRequest{
		Name: "shared", Mode: "host",
		Subnets: []book.SubnetRequest{{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var last []netip.Prefix
	for i := range 3 {
		a, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c1"))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && !slices.Equal(last, a.Endpoint.Addrs) {
			t.Errorf("attached again it has %v instead of %v", a.Endpoint.Addrs, last)
		}
		last = a.Endpoint.Addrs
	}
	if err := attach.Detach(t.Context(), r.Yard, p.end(n, "c1")); err != nil {
		t.Fatal(err)
	}
	r.healthy("detached")
}

// TestUndoSparesTheNext shows that undoing an attachment whose answer was lost does not remove the one that its runtime
// has requested since.
func TestUndoSparesTheNext(t *testing.T) {
	t.Parallel()
	r, p := newRig(t), newPlace(t)
	n := r.made()
	first, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c"))
	must(t, err)
	second, err := attach.Attach(t.Context(), r.Yard, p.request(n, "c"))
	must(t, err)
	undo := p.end(n, "c")
	undo.Endpoint = first.Endpoint.ID
	must(t, attach.Detach(t.Context(), r.Yard, undo))
	if e, err := r.Endpoint(n.ID, second.Endpoint.ID); err != nil || e.Phase != modes.Ready {
		t.Errorf("the next attachment is %s: %v", e.Phase, err)
	}
	undo.Endpoint = second.Endpoint.ID
	must(t, attach.Detach(t.Context(), r.Yard, undo))
	r.eventually("its own is taken back", func() bool {
		_, err := r.Endpoint(n.ID, second.Endpoint.ID)
		return errors.Is(err, book.ErrNotFound)
	})
	r.healthy("afterwards")
}
