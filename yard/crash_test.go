package yard_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/host"
	"netyard/modes/overlay"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/plan"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
)

const (
	netID = "aaaaaaaaaaaa0001"
	epID  = "eeeeeeeeeeee0001"
	space = "netyard"
)

// A rig is a yard on a real kernel that can be killed and started again.
type rig struct {
	t    *testing.T
	host *kerneltest.Host
	path string
	boot string
	now  time.Time
	step func(string)
	read func(bucket, key string)
	st   *store.Store
	// fabric is the cluster of overlays; nil: there is none.
	fabric modes.Fabric
	*yard.Yard
	// cluster is what this host is in, if that is anything, with the modes that need it.
	cluster *ledger
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		t: t, host: kerneltest.New(t), path: filepath.Join(t.TempDir(), "db"), boot: "boot-1",
		now: time.Unix(1e9, 0),
	}
	r.host.Sh(t, "sysctl -qw net.ipv4.ip_forward=1")
	r.start()
	t.Cleanup(func() { _ = r.st.Close() })
	return r
}

// verify checks records as the daemon does.
func verify(_ context.Context, path string) error { return store.Verify(path) }

// start makes a yard as a starting daemon does.
func (r *rig) start() {
	r.t.Helper()
	r.begin(false)
}

// begin does the work of start; keepStrays: the records may have been lost.
func (r *rig) begin(keepStrays bool) {
	r.t.Helper()
	var err error
	if r.st != nil {
		r.die()
		r.host.Reopen(r.t)
	}
	r.host.LeaveTablesOpen() // so that a test can plant faults in them
	// Only transactions of the test write the file, so that a crash always leaves the same state.
	if r.st, err = store.Open(r.t.Context(),
		store.Config{
			Path: r.path, FlushDelay: time.Hour, CopiedBuckets: book.KeptBuckets(), Verify: verify,
			Read: func(bucket, key string) { r.read(bucket, key) },
		}); err != nil {
		r.t.Fatal(err)
	}
	r.step = func(string) {}
	r.read = func(string, string) {}
	r.now = r.now.Add(time.Second)
	c := book.Config{
		Log: slog.New(slog.DiscardHandler), Store: r.st,
		Kernel: plan.Host{Kernel: r.host.Kernel}, Handle: r.host.Handle,
		BootID: r.boot, Copies: filepath.Join(filepath.Dir(r.path), "networks"),
		IPAM:   ipam.New(ipam.Config{Now: func() time.Time { return r.now }}),
		Fabric: r.fabric, Now: func() time.Time { return r.now },
		Modes: map[string]modes.Mode{
			"bridge": bridge.New(modes.Env{}), "host": host.New(modes.Env{}),
			"overlay": overlay.New(modes.Env{Fabric: r.fabric}),
		},
		Step: func(s string) { r.step(s) }, Background: func(f func()) { f() },
	}
	if r.cluster != nil {
		r.cluster.join(&c)
	}
	r.Yard = yard.New(c)
	if err := reconcile.Restore(r.t.Context(), r.Yard, keepStrays); err != nil {
		r.t.Fatal(err)
	}
}

// CreateEndpoint creates an endpoint as it is.
func (r *rig) CreateEndpoint(ctx context.Context, e modes.Endpoint) (modes.Endpoint, error) {
	of := book.Holder{Network: e.NetworkID, Endpoint: e.ID}
	return r.Yard.CreateEndpoint(ctx, of, func(modes.Network) (modes.Endpoint, error) { return e, nil })
}

// with adds a mode to the yard, until it is started again.
func (r *rig) with(name string, newMode modes.New) {
	r.Config.Modes[name] = newMode(modes.Env{})
	r.Options = modes.NewTable(r.Config.Modes)
}

// die leaves the records as a killed process does; with another boot, as a power loss does.
func (r *rig) die() {
	r.t.Helper()
	must(r.t, leaveKilled(r.st, r.path, r.boot != r.Config.BootID))
}

// leaveKilled closes a database and leaves its files as a killed process does; with powerLoss, writes that nobody
// waited for are lost.
func leaveKilled(st *store.Store, path string, powerLoss bool) error {
	left := map[string][]byte{}
	files, err := filepath.Glob(path + "*")
	if err != nil {
		return err
	}
	for _, file := range files {
		if left[file], err = os.ReadFile(file); err != nil {
			return err
		}
		if strings.HasSuffix(file, ".notes") && powerLoss {
			left[file] = nil
		}
	}
	_ = st.Close()
	for file, raw := range left {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// errPulled is the error of a change whose process died.
var errPulled = errors.New("the plug was pulled")

// pull runs f and dies at step number at; the steps gone through are returned.
func (r *rig) pull(at int, f func() error) (steps []string, err error) {
	return pullAt(&r.step, func(n int, _ string) bool { return n == at }, f)
}

// pullAt runs f and dies at a step, given by its number or its name. step is what f calls at each step.
func pullAt(step *func(string), at func(n int, name string) bool, f func() error) (steps []string, err error) {
	*step = func(name string) {
		steps = append(steps, name)
		if at(len(steps), name) {
			panic(errPulled)
		}
	}
	defer func() {
		*step = func(string) {}
		if p := recover(); p == any(errPulled) {
			err = errPulled
		} else if p != nil {
			panic(p)
		}
	}()
	return steps, f()
}

func (r *rig) network() modes.Network {
	return modes.Network{ID: netID, Mode: "bridge", Subnets: []modes.Subnet{{
		Pool: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParsePrefix("10.9.0.1/24"), Space: space,
	}}}
}

// life returns all requests of an engine in the life of a network and a container.
func (r *rig) life() []func(context.Context) error {
	var addr netip.Prefix
	return []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := pool.RequestPool(ctx, r.Yard, ipam.PoolRequest{Subnet: netip.MustParsePrefix("10.9.0.0/24")})
			return err
		},
		func(ctx context.Context) error {
			_, err := pool.RequestAddress(ctx, r.Yard, ipam.AddressRequest{Pool: "10.9.0.0/24", Gateway: true})
			if errors.Is(err, ipam.ErrTaken) {
				return nil
			}
			return err
		},
		func(ctx context.Context) error { return r.CreateNetwork(ctx, r.network()) },
		func(ctx context.Context) (err error) {
			addr, err = pool.RequestAddress(ctx, r.Yard, ipam.AddressRequest{Pool: "10.9.0.0/24"})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.CreateEndpoint(ctx, modes.Endpoint{ID: epID, NetworkID: netID, Addrs: []netip.Prefix{addr}})
			return err
		},
		func(ctx context.Context) error {
			_, _, err := r.Join(ctx, netID, epID, "/proc/self/ns/net")
			return err
		},
		func(ctx context.Context) error {
			_, err := r.Publish(ctx, netID, epID,
				[]book.PortRequest{
					{Proto: "tcp", ContainerPort: 80, HostPort: 8080}, {Proto: "udp", ContainerPort: 53},
				})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.Publish(ctx, netID, epID, []book.PortRequest{{Proto: "tcp", ContainerPort: 80, HostPort: 8081}})
			return err
		},
		func(ctx context.Context) error { return r.Leave(ctx, netID, epID) },
		func(ctx context.Context) error { return r.DeleteEndpoint(ctx, netID, epID) },
		func(ctx context.Context) error { return pool.ReleaseAddress(ctx, r.Yard, "10.9.0.0/24", addr.Addr()) },
		func(ctx context.Context) error {
			return pool.ReleaseAddress(ctx, r.Yard, "10.9.0.0/24", netip.MustParseAddr("10.9.0.1"))
		},
		func(ctx context.Context) error { return pool.ReleasePool(ctx, r.Yard, "10.9.0.0/24") },
		func(ctx context.Context) error { return r.DeleteNetwork(ctx, netID) },
	}
}

// healthy fails the test if records and kernel differ.
func (r *rig) healthy(when string) {
	r.t.Helper()
	found, err := reconcile.Audit(r.t.Context(), r.Yard, nil)
	if err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
	for _, f := range found {
		r.t.Errorf("%s: %s: %s", when, f.Kind, f.Text)
	}
}

// TestCrashAnywhere kills the daemon at every step of every call, starts it again, and shows that records and kernel
// agree, that what was answered still holds, and that the call succeeds when it is repeated.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	total := 0
	for at := 1; ; at++ {
		r := newRig(t)
		before := r.host.Dump(t)
		calls := r.life()
		died := false
		steps := 0
		for i, call := range calls {
			done, err := r.pull(at-steps, func() error { return call(t.Context()) })
			if err != nil && !errors.Is(err, errPulled) {
				t.Fatalf("call %d: %v", i, err)
			}
			steps += len(done)
			if err == nil {
				continue
			}
			when := fmt.Sprintf("call %d, step %q", i, done[len(done)-1])
			died = true
			r.start()
			r.healthy(when)
			if err := call(t.Context()); err != nil {
				t.Errorf("%s: sent again: %v", when, err)
			}
			r.healthy(when + ", sent again")
			steps = -1 << 30 // once is enough
		}
		r.healthy("at the end")
		if after := r.host.Dump(t); after != before {
			t.Errorf("at the end something is left:\n%s", after)
		}
		if left := r.leftovers(); left != "" {
			t.Errorf("at the end records are left: %s", left)
		}
		if !died {
			break
		}
		total = at
	}
	const atLeast = 25
	if total < atLeast {
		t.Errorf("only %d steps to die at, want at least %d", total, atLeast)
	}
	t.Logf("%d steps", total)
}

func (r *rig) leftovers() string {
	r.t.Helper()
	var left []string
	ns, err := r.Networks()
	if err != nil {
		r.t.Fatal(err)
	}
	es, err := r.Endpoints()
	if err != nil {
		r.t.Fatal(err)
	}
	ls, ps, err := pool.Leases(r.Yard)
	if err != nil {
		r.t.Fatal(err)
	}
	for what, n := range map[string]int{
		"networks": len(ns), "endpoints": len(es), "leases": len(ls), "pools": len(ps),
	} {
		if n > 0 {
			left = append(left, fmt.Sprintf("%d %s", n, what))
		}
	}
	err = r.st.View(func(tx store.Tx) error {
		left = append(left, book.Claims.Keys(tx, "")...)
		left = append(left, book.PortClaims.Keys(tx, "")...)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(left)
	return strings.Join(left, ", ")
}

// TestReboot shows that after a reboot the sandboxes are dead, their endpoints and addresses are released, and the
// network stays.
func TestReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:6] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.boot = "boot-2"
	r.host.Sh(t, "ip link del "+core.Name(core.VethPrefix, epID)+"; ip link del "+core.Name(core.BridgePrefix, netID))
	r.start()
	r.healthy("after a reboot")
	if es, _ := r.Endpoints(); len(es) != 0 {
		t.Errorf("endpoints of the last boot are left: %v", es)
	}
	if ns, _ := r.Networks(); len(ns) != 1 {
		t.Errorf("the network is lost: %v", ns)
	}
	ls, _, err := pool.Leases(r.Yard)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		if l.Kind == ipam.KindDynamic && l.State == ipam.StateActive {
			t.Errorf("lease %s of the last boot is active", l.Addr)
		}
	}
}

// TestRestartKeepsFlows shows that a restarted daemon leaves links and rules as they are.
func TestRestartKeepsFlows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, call := range r.life()[:6] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := r.host.Dump(t)
	r.start()
	if after := r.host.Dump(t); after != before {
		t.Errorf("a restart changed the kernel:\n%s\n%s", before, after)
	}
	r.healthy("after a restart")
}

// TestDoctor makes faults one by one, and shows that doctor names each, and that gc removes the strays and nothing
// else.
func TestDoctor(t *testing.T) {
	t.Parallel()
	br, veth := core.Name(core.BridgePrefix, netID), core.Name(core.VethPrefix, epID)
	stray := core.Name(core.BridgePrefix, "dddddddddddd")
	faults := map[string]struct{ cmd, want string }{
		"link":         {"ip link del " + veth, "link " + veth + " is missing"},
		"bridge":       {"ip link del " + br, "bridge " + br + " is missing"},
		"down":         {"ip link set " + br + " down", "bridge " + br + " is down"},
		"port":         {"ip link set " + veth + " nomaster", "link " + veth + " is not a port of bridge " + br},
		"port down":    {"ip link set " + veth + " down", "link " + veth + " is down"},
		"isolated":     {"bridge link set dev " + veth + " isolated on", "link " + veth + " is isolated"},
		"MTU":          {"ip link set " + br + " mtu 1300", br + " has MTU 1300 instead of 1500"},
		"address":      {"ip addr del 10.9.0.1/24 dev " + br, "address 10.9.0.1/24 on " + br + " is missing"},
		"route":        {"ip route del 10.9.0.0/24 dev " + br, "route 10.9.0.0/24 on " + br + " is missing"},
		"element":      {"nft delete element inet netyard nat4 { 10.9.0.0/24 }", "element { 10.9.0.0/24 } of set nat4 is missing"},
		"rule":         {"nft flush chain inet netyard forward", `rule "drop traffic between networks" of chain inet netyard forward is missing`},
		"table":        {"nft delete table inet netyard", "chain inet netyard forward is missing"},
		"foreign rule": {"nft add rule inet netyard forward accept", `rule "" of chain inet netyard forward is not netyard's`},
		"forwarding":   {"sysctl -qw net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward=1: it is 0"},
		"sysctl":       {"sysctl -qw net.ipv4.conf." + br + ".accept_redirects=1", "accept_redirects=0: it is 1"},
	}
	strays := map[string]struct{ cmd, want string }{
		"stray link":    {"ip link add " + stray + " type bridge", "link " + stray + " belongs to no network"},
		"stray alias":   {"ip link add odd type bridge && ip link set odd alias netyard:ffff", "link odd belongs to no network"},
		"stray element": {"nft add element inet netyard bridges { lost }", "element { lost } of set bridges belongs to no network"},
	}
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		t.Run(name, func(t *testing.T) {
			r := r6(t)
			r.host.Sh(t, faults[name].cmd)
			r.finds(faults[name].want)
			r.start() // a restart repairs what can be repaired without the container's help
			if name != "link" {
				r.healthy("after a restart")
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(strays)) {
		t.Run(name, func(t *testing.T) {
			r := r6(t)
			r.host.Sh(t, "ip link add mine type bridge")
			before := r.host.Dump(t)
			r.host.Sh(t, strays[name].cmd)
			r.finds(strays[name].want)
			dry, err := reconcile.GC(t.Context(), r.Yard, nil, true)
			if err != nil || len(dry) != 1 {
				t.Fatalf("dry run: %v %v", dry, err)
			}
			r.finds(strays[name].want)
			if _, err := reconcile.GC(t.Context(), r.Yard, nil, false); err != nil {
				t.Fatal(err)
			}
			r.healthy("after gc")
			if after := r.host.Dump(t); after != before {
				t.Errorf("gc did not remove just the stray:\n%s\n%s", before, after)
			}
		})
	}
	t.Run("lease", func(t *testing.T) {
		r := r6(t)
		if _, err := pool.RequestAddress(t.Context(), r.Yard, ipam.AddressRequest{Pool: "10.9.0.0/24"}); err != nil {
			t.Fatal(err)
		}
		r.now = r.now.Add(time.Minute)
		r.finds("lease 10.9.0.3 of pool 10.9.0.0/24 belongs to no endpoint")
		if _, err := reconcile.GC(t.Context(), r.Yard, nil, false); err != nil {
			t.Fatal(err)
		}
		r.healthy("after gc")
	})
}

// r6 returns a rig with a network and a joined container.
func r6(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	for _, call := range r.life()[:6] {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.healthy("before the fault")
	return r
}

func (r *rig) finds(want string) {
	r.t.Helper()
	found, err := reconcile.Audit(r.t.Context(), r.Yard, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, f := range found {
		if strings.Contains(f.Text, want) {
			return
		}
		all = append(all, f.Text)
	}
	r.t.Errorf("doctor does not say %q; it says %q", want, all)
}
