package yard_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/overlay"
	yown "netyard/yard/own"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

const nextID = "ffffffffffff0009"

// A box is a sandbox as an engine makes one: a namespace that a mount keeps, with or without processes.
type box struct {
	t    *testing.T
	host *kerneltest.Host
	path string
}

func newBox(t *testing.T) box {
	t.Helper()
	b := box{t, kerneltest.New(t), filepath.Join(t.TempDir(), "netns")}
	if err := os.WriteFile(b.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(b.host.Path(), b.path, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.unmount)
	return b
}

func (b box) unmount() { _ = syscall.Unmount(b.path, syscall.MNT_DETACH) }

func end(c *exec.Cmd) {
	_ = c.Process.Kill()
	_ = c.Wait()
}

// An engineProcess is the process that makes endpoints.
func engineProcess(t *testing.T) (engine *exec.Cmd, id sandbox.Process) {
	t.Helper()
	engine = kerneltest.Sleep(t, nil)
	id, ok := sandbox.ProcessAt(engine.Process.Pid)
	if !ok {
		t.Fatal("the engine's process is not to be found")
	}
	return engine, id
}

// A joiner makes an endpoint and joins it.
type joiner func(modes.Endpoint)

// A fate is what became of the endpoint that holds something.
type fate struct {
	name string
	dead bool
	// every: it is tried with every thing, and not only with the first.
	every bool
	// make joins the endpoint and lets its fate come. join may be left out.
	make func(r *rig, b box, join joiner)
}

// held is the endpoint of fates, made by the engine.
func held(maker sandbox.Process) modes.Endpoint {
	return modes.Endpoint{ID: epID, NetworkID: netID, Maker: maker}
}

// noted is what is found out about a process in a sandbox in the background.
func (r *rig) noted(pid int) {
	r.t.Helper()
	e, err := r.Endpoint(netID, epID)
	if err == nil {
		who := modes.Container{Engine: "docker", Name: "web", PID: pid}
		err = reconcile.Identify(r.t.Context(), r.Yard, e, who)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// fates are all that an engine's containers may come to.
var fates = []fate{
	{"the engine was killed and its mount is left", true, true, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		join(held(id))
		end(c)
		end(engine)
	}},
	{"the engine was killed at once, and its mount is gone", true, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		b.unmount()
		join(held(id))
		r.host.Sh(r.t, "ip link del "+core.Name(core.VethPrefix, epID))
		end(engine)
	}},
	{"the engine was killed, and its mount, which was seen, is gone", true, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		join(held(id))
		b.unmount()
		end(engine)
	}},
	{"its processes ended, and the engine has not said so", true, true, func(r *rig, b box, join joiner) {
		_, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		join(held(id))
		r.noted(c.Process.Pid)
		end(c)
	}},
	{"of an older record, its processes ended", true, false, func(r *rig, b box, join joiner) {
		c := kerneltest.Sleep(r.t, b.host)
		join(held(sandbox.Process{}))
		r.noted(c.Process.Pid)
		end(c)
	}},
	{"its first process is a zombie", true, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		join(held(id))
		r.noted(c.Process.Pid)
		end(engine)
		_ = c.Process.Kill() // and nobody waits for it
		r.eventually("there is a zombie", func() bool { _, lives := sandbox.ProcessAt(c.Process.Pid); return !lives })
	}},
	{"another process has the number of the engine", true, false, func(_ *rig, _ box, join joiner) {
		own, _ := sandbox.ProcessAt(os.Getpid())
		own.Start = 1
		join(held(own))
	}},
	{"the engine was seen from another PID namespace", false, false, func(_ *rig, _ box, join joiner) {
		join(held(sandbox.Process{PID: 1 << 22, Start: 1, Space: 1}))
	}},
	{"it lives, and so does the engine", false, false, func(r *rig, b box, join joiner) {
		_, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		join(held(id))
		r.noted(c.Process.Pid)
	}},
	{"it lives, and the engine was killed", false, true, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		kerneltest.Sleep(r.t, b.host)
		join(held(id))
		r.noted(0)
		end(engine)
	}},
	{"it is paused, and the engine was killed", false, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		join(held(id))
		_ = c.Process.Signal(syscall.SIGSTOP)
		r.noted(0)
		end(engine)
	}},
	{"its first process ended, another one lives", false, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		c := kerneltest.Sleep(r.t, b.host)
		kerneltest.Sleep(r.t, b.host)
		join(held(id))
		r.noted(c.Process.Pid)
		end(c)
		end(engine)
	}},
	{"the engine is about to start it", false, false, func(r *rig, _ box, join joiner) {
		_, id := engineProcess(r.t)
		join(held(id))
		r.noted(0)
	}},
	{"the engine has not made the namespace yet", false, false, func(r *rig, b box, join joiner) {
		_, id := engineProcess(r.t)
		b.unmount()
		join(held(id))
		r.noted(0)
	}},
	{"who made it cannot be seen, and no process was", false, false, func(r *rig, _ box, join joiner) {
		join(held(sandbox.Process{}))
		r.noted(0)
	}},
	{"killed, its mounts cannot be seen, its link is in a sandbox", false, false, func(r *rig, b box, join joiner) {
		engine, id := engineProcess(r.t)
		b.unmount()
		join(held(id))
		r.noted(0)
		b.host.Take(r.t, r.host, core.Name(core.PeerPrefix, epID))
		end(engine)
	}},
}

func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("it never came to this: %s", what)
		}
	}
}

// A thing is what an endpoint has and another one asks for.
type thing struct {
	name string
	// pool: the network's addresses are netyard's.
	pool string
	addr string
	// dynamic: the address was not asked for by name.
	dynamic bool
	// have gives it to the first endpoint, when that is joined.
	have func(r *rig) error
	// want asks for it for another one.
	want func(r *rig) error
	// refusal is what it says if the first endpoint lives.
	refusal string
}

func ask(proto string, host uint16, at string) book.PortRequest {
	a := book.PortRequest{Proto: proto, HostPort: host, HostPortEnd: host, ContainerPort: 80}
	if at != "" {
		a.HostIP = netip.MustParseAddr(at)
	}
	return a
}

// publishes gives ports to an endpoint.
func publishes(id string, asks ...book.PortRequest) func(r *rig) error {
	return func(r *rig) error { _, err := r.Publish(r.t.Context(), netID, id, asks); return err }
}

// comes makes the next endpoint, with an address that nobody has.
func comes(then func(r *rig) error) func(r *rig) error {
	return func(r *rig) error {
		e := modes.Endpoint{ID: nextID, NetworkID: netID, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.9/24")}}
		if _, err := r.CreateEndpoint(r.t.Context(), e); err != nil {
			return err
		}
		if _, _, err := r.Join(r.t.Context(), netID, nextID, "/proc/self/ns/net"); err != nil {
			return err
		}
		return then(r)
	}
}

const askedFor = "10.9.0.50"

// requests asks netyard's IPAM for that address.
func requests() func(r *rig) error {
	return func(r *rig) error {
		q := ipam.AddressRequest{Pool: "10.9.0.0/24", Addr: netip.MustParseAddr(askedFor)}
		got, err := pool.RequestAddress(r.t.Context(), r.Yard, q)
		if err == nil && got.Addr() != q.Addr {
			err = fmt.Errorf("got %s", got)
		}
		return err
	}
}

var things = []thing{
	{
		name: "a port", have: publishes(epID, ask("tcp", 8080, "")),
		want:    comes(publishes(nextID, ask("tcp", 8080, ""))),
		refusal: "in use: port 8080/tcp of the host is published by container web of docker on network aaaaaaaaaaaa",
	},
	{
		name: "one port of a range", have: publishes(epID, run("udp", 8000, 8000, 20)...),
		want:    comes(publishes(nextID, ask("udp", 8013, ""))),
		refusal: "in use: port 8013/udp of the host is published by container web of docker",
	},
	{
		name: "a range over one port", have: publishes(epID, ask("tcp", 8005, "")),
		want:    comes(publishes(nextID, run("tcp", 8000, 8000, 20)...)),
		refusal: "in use: port 8005/tcp of the host is published by container web of docker",
	},
	{
		name: "a port on loopback", have: publishes(epID, ask("tcp", 8080, "127.0.0.1")),
		want:    comes(publishes(nextID, ask("tcp", 8080, "127.0.0.1"))),
		refusal: "in use: port 8080/tcp of the host is published by container web of docker",
	},
	{
		name: "a port on every address", have: publishes(epID, ask("sctp", 8080, "127.0.0.1")),
		want:    comes(publishes(nextID, ask("sctp", 8080, "0.0.0.0"))),
		refusal: "in use: port 8080/sctp of the host is published by container web of docker",
	},
	{
		name: "a port from a range", have: publishes(epID, ask("tcp", 8000, "")),
		want: comes(func(r *rig) error {
			any10 := book.PortRequest{Proto: "tcp", HostPort: 8000, HostPortEnd: 8009, ContainerPort: 80}
			ports, err := r.Publish(r.t.Context(), netID, nextID, []book.PortRequest{any10})
			if err == nil && ports[0].HostPort != 8000 {
				err = fmt.Errorf("it got %d, which is not the first", ports[0].HostPort)
			}
			return err
		}),
		refusal: "it got 8001",
	},
	{
		name: "a port that a CNI container asks for", have: publishes(epID, ask("tcp", 8080, "")),
		want: func(r *rig) error {
			subnet := book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.8.0.0/24")}}
			n, err := yown.CreateNetwork(r.t.Context(), r.Yard,
				book.NetworkRequest{Name: "other", Subnets: []book.SubnetRequest{subnet}})
			if err != nil {
				return err
			}
			q := newPlace(r.t).request(n, "c1")
			q.Ports = []book.PortRequest{ask("tcp", 8080, "")}
			_, err = attach.Attach(r.t.Context(), r.Yard, q)
			return err
		},
		refusal: "in use: port 8080/tcp of the host is published by container web of docker",
	},
	{
		name: "an address of the engine's IPAM", addr: "10.9.0.2/24",
		want: func(r *rig) error {
			e := modes.Endpoint{
				ID: nextID, NetworkID: netID,
				Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")},
			}
			if _, err := r.CreateEndpoint(r.t.Context(), e); err != nil {
				return err
			}
			_, _, err := r.Join(r.t.Context(), netID, nextID, "/proc/self/ns/net")
			return err
		},
		refusal: "address 10.9.0.2: in use by container web of docker on network aaaaaaaaaaaa",
	},
	{
		name: "an address of netyard's IPAM, by name", pool: "10.9.0.0/24", addr: "10.9.0.50/24", want: requests(),
		refusal: "taken as static (container web of docker on network aaaaaaaaaaaa)",
	},
	{
		name: "an address that is released late", pool: "10.9.0.0/24", addr: "10.9.0.50/24",
		want: func(r *rig) error {
			if err := pool.ReleaseAddress(r.t.Context(), r.Yard, "10.9.0.0/24",
				netip.MustParseAddr("10.9.0.50")); err != nil {
				return err
			}
			return requests()(r)
		},
		refusal: "taken as static (container web of docker on network aaaaaaaaaaaa)",
	},
	{
		name: "the last address of a pool", pool: "10.9.0.0/30", addr: "10.9.0.2/30", dynamic: true,
		want: func(r *rig) error {
			_, err := pool.RequestAddress(r.t.Context(), r.Yard, ipam.AddressRequest{Pool: "10.9.0.0/30"})
			return err
		},
		refusal: "nothing free",
	},
}

// TestDeadHoldNothing shows for each thing that an endpoint may have and each fate of its container: if the endpoint is
// dead, the next one gets the thing at once, and nothing of the dead one stays; if it may be alive, it keeps the thing,
// and the error names it.
func TestDeadHoldNothing(t *testing.T) {
	t.Parallel()
	for _, f := range fates {
		for i, th := range things {
			if i > 0 && !f.every {
				continue
			}
			t.Run(f.name+"/"+th.name, func(t *testing.T) {
				t.Parallel()
				r, b := newRig(t), newBox(t)
				r.holds(th, b, f)
				err := th.want(r)
				_, gone := r.Endpoint(netID, epID)
				switch {
				case f.dead && err != nil:
					t.Errorf("the dead one does not give way: %v", err)
				case f.dead && gone == nil:
					t.Error("the dead one is still on record")
				case !f.dead && gone != nil:
					t.Errorf("the living one was dropped: %v", gone)
				case !f.dead && (err == nil || !strings.Contains(err.Error(), named(th.refusal, r))):
					t.Errorf("the refusal says %v, want %q", err, named(th.refusal, r))
				}
				if !f.dead {
					return
				}
				r.healthy("afterwards")
				left := r.host.Dump(t)
				if strings.Contains(left, core.Name(core.VethPrefix, epID)) ||
					strings.Contains(left, "8080 : 10.9.0.2") {
					t.Errorf("of the dead one there is:\n%s", left)
				}
				if err := r.late(); err != nil {
					t.Errorf("what an engine says late: %v", err)
				}
				r.healthy("after the engine's late words")
				if dump := r.host.Dump(t); dump != left {
					t.Errorf("the engine's late words changed the kernel:\n%s\n%s", left, dump)
				}
			})
		}
	}
}

// named is a refusal where the container's name is not known.
func named(refusal string, r *rig) string {
	if e, err := r.Endpoint(netID, epID); err == nil && e.Container.Name == "" {
		return strings.NewReplacer("container web of docker", "endpoint "+modes.Short(epID)).Replace(refusal)
	}
	return refusal
}

// holds makes the first endpoint, with what it has.
func (r *rig) holds(th thing, b box, f fate) {
	r.t.Helper()
	n := r.network()
	n.Subnets[0].Space = ""
	addr := netip.MustParsePrefix("10.9.0.2/24")
	if th.addr != "" {
		addr = netip.MustParsePrefix(th.addr)
	}
	if th.pool != "" {
		gateway := netip.PrefixFrom(netip.MustParseAddr("10.9.0.1"), addr.Bits())
		n.Subnets[0] = modes.Subnet{Pool: addr.Masked(), Gateway: gateway, Space: book.Space}
		must(r.t, second(pool.RequestPool(r.t.Context(), r.Yard, ipam.PoolRequest{Subnet: addr.Masked()})))
		must(r.t, second(pool.RequestAddress(r.t.Context(), r.Yard, ipam.AddressRequest{Pool: th.pool, Gateway: true})))
	}
	must(r.t, r.CreateNetwork(r.t.Context(), n))
	if th.pool != "" {
		q := ipam.AddressRequest{Pool: th.pool, Addr: addr.Addr()}
		if th.dynamic {
			q.Addr = netip.Addr{}
		}
		must(r.t, second(pool.RequestAddress(r.t.Context(), r.Yard, q)))
	}
	f.make(r, b, func(e modes.Endpoint) {
		e.Addrs = []netip.Prefix{addr}
		must(r.t, second(r.CreateEndpoint(r.t.Context(), e)))
		_, _, err := r.Join(r.t.Context(), netID, epID, b.path)
		must(r.t, err)
		if th.have != nil {
			must(r.t, th.have(r))
		}
	})
}

// late sends an engine's late requests for the first endpoint, when another one has what it had.
func (r *rig) late() error {
	for _, say := range []func() error{
		func() error { return r.Withdraw(r.t.Context(), netID, epID) },
		func() error { return r.Leave(r.t.Context(), netID, epID) },
		func() error { return r.DeleteEndpoint(r.t.Context(), netID, epID) },
	} {
		if err := say(); err != nil {
			return err
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBuryLost shows that the dead endpoints of a killed engine are removed without a request for what they had, and
// that live ones stay (live-restore).
func TestBuryLost(t *testing.T) {
	t.Parallel()
	for _, f := range fates {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			r, b := newRig(t), newBox(t)
			r.holds(things[0], b, f)
			e, err := r.Endpoint(netID, epID)
			must(t, err)
			must(t, r.RemoveLost(t.Context()))
			if _, err := r.Endpoint(netID, epID); (err != nil) != (f.dead && e.Maker.Ended()) {
				t.Errorf("on record: %v, dead: %v, its engine has ended: %v", err == nil, f.dead, e.Maker.Ended())
			}
			if !f.dead {
				return
			}
			must(t, comes(publishes(nextID, ask("tcp", 8080, "")))(r))
			r.healthy("afterwards")
		})
	}
}

// TestDeadNeverJoined shows that an endpoint which was never joined keeps its address as long as its engine's process
// runs.
func TestDeadNeverJoined(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:3] {
		must(t, call(t.Context()))
	}
	engine, id := engineProcess(t)
	must(t, requests()(r))
	e := held(id)
	e.Addrs = []netip.Prefix{netip.MustParsePrefix("10.9.0.50/24")}
	must(t, second(r.CreateEndpoint(t.Context(), e)))
	const refusal = "taken as static (endpoint eeeeeeeeeeee on network aaaaaaaaaaaa)"
	if err := requests()(r); err == nil || !strings.Contains(err.Error(), refusal) {
		t.Errorf("while the engine is there: %v", err)
	}
	end(engine)
	must(t, requests()(r))
	r.healthy("afterwards")
}

// TestDeadAttachment shows that an attachment lives as long as its namespace, even without a process; when that is gone
// or replaced, the next one gets its ports and its address at once.
func TestDeadAttachment(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		dead bool
		fate func(r *rig, b box)
	}{
		"it is there, without a process": {false, func(*rig, box) {}},
		"it was deleted":                 {true, func(_ *rig, b box) { b.unmount() }},
		"another one is in its place": {true, func(r *rig, b box) {
			b.unmount()
			must(r.t, syscall.Mount(kerneltest.New(r.t).Path(), b.path, "", syscall.MS_BIND, ""))
		}},
		"the host was started anew": {true, func(r *rig, _ box) { r.Config.BootID = "boot-2" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, b := newRig(t), newBox(t)
			n := r.made()
			first := book.AttachRequest{
				Network: n, Attachment: "c1", IfName: "eth0", Sandbox: b.path, NS: b.host.NS(),
				Container: modes.Container{Engine: book.CNI},
				Ports:     []book.PortRequest{ask("tcp", 8080, "")},
				Addrs:     []netip.Addr{netip.MustParseAddr("10.9.0.50")},
			}
			was, err := attach.Attach(t.Context(), r.Yard, first)
			must(t, err)
			owner := "endpoint " + modes.Short(was.Endpoint.ID) + " on network web"
			c.fate(r, b)
			for what, set := range map[string]func(*book.AttachRequest){
				"port":    func(q *book.AttachRequest) { q.Ports = first.Ports },
				"address": func(q *book.AttachRequest) { q.Addrs = first.Addrs },
			} {
				q := newPlace(t).request(n, "c2-"+what)
				set(&q)
				_, err := attach.Attach(t.Context(), r.Yard, q)
				switch {
				case c.dead && err != nil:
					t.Errorf("%s: the dead one does not give way: %v", what, err)
				case !c.dead && (err == nil || !strings.Contains(err.Error(), owner)):
					t.Errorf("%s: the refusal says %v", what, err)
				}
			}
			r.healthy("afterwards")
		})
	}
}

// TestDeadShares shows that a port of a dead container goes at once to another one that shares the host's addresses.
func TestDeadShares(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hosts, ws := r.sharers(2)
	r.listen(hosts[0], ":80")
	r.listen(hosts[1], ":80")
	r.see(ws[0])
	r.see(ws[1])
	if got := r.shares(ws[1]); len(got) > 0 {
		t.Fatalf("the second has %v while the first lives", got)
	}
	engine, id := engineProcess(t)
	end(engine)
	must(t, r.st.Update(func(tx store.Tx) error { // it was made by an engine that is no more
		e, err := book.GetEndpoint(tx, netID, ws[0].Endpoint.ID)
		if err != nil {
			return err
		}
		e.Maker = id
		return book.PutEndpoint(tx, e)
	}))
	ws[1].Judged = nil // a while later
	r.see(ws[1])
	if got := r.shares(ws[1]); len(got) != 1 || got[0] != 80 {
		t.Errorf("the second has %v when the first is dead", got)
	}
	r.healthy("afterwards")
}

// TestDeadClaim shows that an overlay's address that a dead endpoint of this host has goes to the next one at once.
func TestDeadClaim(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		r := newRig(t)
		r.cluster = &ledger{owners: map[netip.Addr]string{}}
		r.start()
		engine, id := engineProcess(t)
		n := r.network()
		n.Mode, n.Options, n.Subnets[0].Space = "overlay", map[string]string{"overlay": "blue"}, overlay.Space
		must(t, r.CreateNetwork(t.Context(), n))
		q := ipam.AddressRequest{
			Pool: overlay.PoolID("blue", n.Subnets[0].Pool),
			Addr: netip.MustParseAddr("10.9.0.50"),
		}
		must(t, second(pool.RequestAddress(t.Context(), r.Yard, q)))
		e := held(id)
		e.Addrs = []netip.Prefix{netip.MustParsePrefix("10.9.0.50/24")}
		must(t, second(r.CreateEndpoint(t.Context(), e)))
		b := newBox(t)
		_, _, err := r.Join(t.Context(), netID, epID, b.path)
		must(t, err)
		err = second(pool.RequestAddress(t.Context(), r.Yard, q))
		if err == nil || !strings.Contains(err.Error(), "(endpoint eeeeeeeeeeee on network aaaaaaaaaaaa)") {
			t.Errorf("while it may be started: %v", err)
		}
		end(engine)
		if late {
			must(t, pool.ReleaseAddress(t.Context(), r.Yard, q.Pool, q.Addr))
			if _, err := r.Endpoint(netID, epID); err == nil {
				t.Error("the dead one is on record after its address was released")
			}
		}
		must(t, second(pool.RequestAddress(t.Context(), r.Yard, q)))
		r.healthy("afterwards")
	}
}

// TestDeadElements shows that when records may have been lost, elements in the kernel are adopted, except those of dead
// endpoints on record.
func TestDeadElements(t *testing.T) {
	t.Parallel()
	r, b := newRig(t), newBox(t)
	n := r.made()
	q := book.AttachRequest{
		Network: n, Attachment: "c1", IfName: "eth0", Sandbox: b.path, NS: b.host.NS(),
		Container: modes.Container{Engine: book.CNI},
		Ports:     []book.PortRequest{ask("tcp", 8080, ""), ask("udp", 9000, "127.0.0.1")},
	}
	must(t, second(attach.Attach(t.Context(), r.Yard, q)))
	b.unmount()
	r.begin(true)
	if es, err := r.Endpoints(); err != nil || len(es) > 0 {
		t.Errorf("on record: %v %v", es, err)
	}
	r.healthy("after the restart")
}

// TestDeadCrash kills the daemon at every step of the requests that a killed engine sends when it starts again. Daemon
// and engine start once more, and the engine repeats the requests: the container gets its port and its address, and
// nothing of the dead one stays.
func TestDeadCrash(t *testing.T) {
	t.Parallel()
	kerneltest.NeedsRoot(t)
	for at, died := 1, true; died; at++ {
		t.Run(fmt.Sprintf("step %d", at), func(t *testing.T) {
			r, b, next := newRig(t), newBox(t), newBox(t)
			r.holds(thing{pool: "10.9.0.0/24", addr: "10.9.0.50/24", have: publishes(epID, ask("tcp", 8080, ""))}, b,
				fates[0])
			starts := func(id string) func() error {
				return func() error {
					if err := requests()(r); err != nil {
						return err
					}
					_, maker := engineProcess(t)
					e := held(maker)
					e.ID, e.Addrs = id, []netip.Prefix{netip.MustParsePrefix("10.9.0.50/24")}
					if _, err := r.CreateEndpoint(t.Context(), e); err != nil {
						return err
					}
					if _, _, err := r.Join(t.Context(), netID, id, next.path); err != nil {
						return err
					}
					return publishes(id, ask("tcp", 8080, ""))(r)
				}
			}
			steps, err := r.pull(at, starts(nextID))
			if died = err != nil; died && !errors.Is(err, errPulled) {
				t.Fatal(err)
			}
			if !died {
				return
			}
			when := fmt.Sprintf("died %q", steps[len(steps)-1])
			r.start()
			es, err := r.Endpoints()
			must(t, err)
			for _, e := range es { // the engine rolls back what failed
				if e.ID == nextID {
					must(t, r.Leave(t.Context(), netID, nextID))
					must(t, r.DeleteEndpoint(t.Context(), netID, nextID))
				}
			}
			must(t, pool.ReleaseAddress(t.Context(), r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.50")))
			if err := starts("ffffffffffff0010")(); err != nil {
				t.Errorf("%s: asked again: %v", when, err)
			}
			r.healthy(when)
			if _, err := r.Endpoint(netID, epID); err == nil {
				t.Errorf("%s: the dead one is on record", when)
			}
		})
	}
}
