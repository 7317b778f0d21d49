package yard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"netyard/ipam"
	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/gso"
	"netyard/modes"
	"netyard/policy"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/enforce"
	yown "netyard/yard/own"
	"netyard/yard/pool"
	"netyard/yard/reconcile"
	"netyard/yard/repair"
)

// TestScripts runs testdata/*.txtar. Each script is what users and engines do on one host, whose kernel records and
// prints: no root is needed. NETYARD_UPDATE=1 writes what the scripts compare with. Beside testscript's own commands
// there are these; with ! they must fail, and print the error to stderr.
//
//	network create NAME [--mode M] [--subnet S] [--internal] [-o OPTION]; of the first subnet also [--ip-range R]
//	    [--gateway A] [--aux A], and as CNI configurations do [--first A] [--last A]
//	network set NAME OPTION, network rm NAME
//	endpoint create NETWORK NAME [--ip A] [--mac M], endpoint set NETWORK NAME OPTION, endpoint delete NETWORK NAME
//	join NETWORK NAME, leave NETWORK NAME     as Docker does, which moves the link itself
//	publish NETWORK NAME PORT..., withdraw NETWORK NAME
//	attach NETWORK CONTAINER [--ip A] [--mac M] [-p PORT], detach NETWORK CONTAINER     as CNI runtimes do
//	container end NAME        its sandbox ends, and nobody says so
//	container exited NAME, container gone NAME, container is ENDPOINT NETWORK NAME     what an engine reports
//	census ENGINE [NAME]...   an engine is asked twice, a minute apart, and has only these endpoints or containers
//	reserve SUBNET ADDRESS [NAME]
//	policy apply FILE, policy rm NAME
//	cluster                   the host joins a cluster
//	restart, reboot           the daemon is killed and started again, without or with the host
//	crash STEP COMMAND        COMMAND dies at a step, given by its number or name; the next command is restart
//	fail PART COMMAND         during COMMAND no object can be made whose text contains PART, or with the word remove
//	                          before PART, none can be removed
//	host-address LINK ADDRESS [gone]    the host gets an address, or loses it
//	sweep                     what could not be removed is tried again
//	drift PART, plant LINK    objects are lost, or appear, behind netyard's back
//	lose-records, rebuild CONTAINER...     the database is lost, and made again from kernel, copies and engine
//	audit, gc, repair         audit and gc print findings, or ok
//	state, records, changes   print the kernel, the records, and what was made and removed since the last changes
//	everywhere FILE           runs FILE's commands over and over, each time with a crash at another step
//	refused FILE              likewise, each time with another object that cannot be made
func TestScripts(t *testing.T) {
	t.Parallel()
	cmds := map[string]func(*testscript.TestScript, bool, []string){}
	for name := range verbs() {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			w := ts.Value(worldKey{}).(*world) //nolint:forcetypeassert // Setup stores one
			out, err := w.do(t.Context(), ts.ReadFile, append([]string{name}, args...))
			fmt.Fprint(ts.Stdout(), out)
			switch {
			case err != nil && !neg:
				ts.Fatalf("%v", w.plain(err.Error()))
			case err == nil && neg:
				ts.Fatalf("unexpected success")
			case err != nil:
				fmt.Fprintln(ts.Stderr(), w.plain(err.Error()))
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata", Cmds: cmds, UpdateScripts: os.Getenv("NETYARD_UPDATE") != "",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			w, err := newWorld(t.Context(), t.TempDir())
			if err != nil {
				return err
			}
			e.Values[worldKey{}] = w
			e.Defer(func() { _ = w.st.Close() })
			return nil
		},
	})
}

type worldKey struct{}

// A verb is one command of scripts.
type verb func(ctx context.Context, w *world, a args) (out string, err error)

// args are the arguments of a command: words, and options with their values. read returns a file of the script.
type args struct {
	words []string
	flags map[string][]string
	rest  []string // all as they were said
	read  func(string) string
}

// at returns a word; empty: there are fewer.
func (a args) at(i int) string {
	if i < len(a.words) {
		return a.words[i]
	}
	return ""
}

// flag returns the last value of an option.
func (a args) flag(name string) string {
	if all := a.flags[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

func parseArgs(words []string) (a args) {
	a.flags, a.rest = map[string][]string{}, words
	for i := 0; i < len(words); i++ {
		name := strings.TrimLeft(words[i], "-")
		switch {
		case name == words[i]:
			a.words = append(a.words, name)
		case name == "internal":
			a.flags[name] = []string{"true"}
		case i+1 < len(words):
			a.flags[name] = append(a.flags[name], words[i+1])
			i++
		}
	}
	return a
}

// do runs a command.
func (w *world) do(ctx context.Context, read func(string) string, words []string) (string, error) {
	f, ok := verbs()[words[0]]
	if !ok {
		return "", fmt.Errorf("there is no command %s", words[0])
	}
	a := parseArgs(words[1:])
	a.read = read
	return f(ctx, w, a)
}

func verbs() map[string]verb {
	return map[string]verb{
		"network": networkVerb, "endpoint": endpointVerb, "join": join, "leave": leave,
		"publish": publish, "withdraw": withdraw, "attach": attachVerb, "detach": detachVerb,
		"container": containerVerb, "reserve": reserve, "policy": policyVerb, "cluster": joinCluster,
		"restart": restartVerb, "reboot": reboot, "crash": crashVerb, "fail": failVerb, "drift": drift, "plant": plant,
		"lose-records": loseRecords, "rebuild": rebuild, "audit": auditVerb, "gc": gc, "repair": repairVerb,
		"host-address": hostAddress, "uplink": uplink,
		"state":      func(_ context.Context, w *world, _ args) (string, error) { return w.state() },
		"records":    func(_ context.Context, w *world, _ args) (string, error) { return w.records() },
		"changes":    func(_ context.Context, w *world, _ args) (string, error) { return w.changes() },
		"everywhere": everywhere, "refused": refusedVerb, "census": censusVerb, "sweep": sweep,
	}
}

// uplink sets how large segments the host's way out takes, and why.
func uplink(_ context.Context, w *world, a args) (string, error) {
	size, err := strconv.ParseUint(a.at(0), 10, 32)
	limit := gso.Limit{Sizes: gso.Sizes{V4: uint32(size), V6: uint32(size)}}
	if size < gso.Big {
		limit.Reason = "link eth0, on the way out, takes segments of " + limit.Sizes.String()
	}
	w.kernel.Limit = limit
	return "", err
}

func networkVerb(ctx context.Context, w *world, a args) (string, error) {
	name := a.at(1)
	switch a.at(0) {
	case "create":
		r := book.NetworkRequest{
			ID: w.id(name), Name: name, Mode: a.flag("mode"), Options: options(a.flags["o"]...),
			Internal: a.flag("internal") != "",
		}
		for _, s := range a.flags["subnet"] {
			subnet, err := netip.ParsePrefix(s)
			if err != nil {
				return "", err
			}
			r.Subnets = append(r.Subnets, book.SubnetRequest{Pool: ipam.PoolRequest{Subnet: subnet}})
		}
		if err := firstSubnet(a, r.Subnets); err != nil {
			return "", err
		}
		_, err := yown.CreateNetwork(ctx, w.y, r)
		return "", err
	case "set":
		_, err := w.y.ChangeNetwork(ctx, w.id(name), options(a.words[2:]...))
		return "", err
	case "rm":
		return "", w.y.DeleteNetwork(ctx, w.id(name))
	}
	return "", fmt.Errorf("network %s: unknown", a.at(0))
}

// firstSubnet parses what else is said of the first subnet.
func firstSubnet(a args, all []book.SubnetRequest) (err error) {
	if ipRange := a.flag("ip-range"); ipRange != "" {
		if all[0].Pool.Range, err = netip.ParsePrefix(ipRange); err != nil {
			return err
		}
	}
	for flag, to := range map[string]func(netip.Addr){
		"gateway": func(g netip.Addr) { all[0].Gateway = g },
		"first":   func(g netip.Addr) { all[0].Pool.First = g },
		"last":    func(g netip.Addr) { all[0].Pool.Last = g },
		"aux":     func(g netip.Addr) { all[0].Aux = map[string]netip.Addr{"aux": g} },
	} {
		if text := a.flag(flag); text != "" {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return err
			}
			to(addr)
		}
	}
	return nil
}

// options parses NAME=VALUE.
func options(said ...string) map[string]string {
	all := map[string]string{}
	for _, s := range said {
		name, value, _ := strings.Cut(s, "=")
		all[name] = value
	}
	return all
}

func endpointVerb(ctx context.Context, w *world, a args) (string, error) {
	n, err := w.y.Network(w.id(a.at(1)))
	if err != nil {
		return "", err
	}
	id := w.id(a.at(2))
	switch a.at(0) {
	case "create":
		e := modes.Endpoint{
			ID: id, NetworkID: n.ID, MAC: a.flag("mac"), Container: modes.Container{Engine: book.Docker},
		}
		r := ipam.AddressRequest{Pool: n.Subnets[0].Pool.String()}
		if ip := a.flag("ip"); ip != "" {
			if r.Addr, err = netip.ParseAddr(ip); err != nil {
				return "", err
			}
		}
		p, known := w.asked[id] // the engine has its address from the first time
		if !known {
			if r.Addr.IsValid() {
				w.asked[id] = netip.PrefixFrom(r.Addr, n.Subnets[0].Pool.Bits())
			}
			if p, err = pool.RequestAddress(ctx, w.y, r); err != nil {
				delete(w.asked, id)
				return "", err
			}
			w.asked[id] = p
		}
		e.Addrs = []netip.Prefix{p}
		return "", w.createEndpoint(ctx, e)
	case "set":
		_, err := w.y.ChangeEndpoint(ctx, n.ID, id, options(a.words[3:]...))
		return "", err
	case "delete":
		delete(w.asked, id)
		e, err := w.y.Endpoint(n.ID, id)
		if errors.Is(err, book.ErrNotFound) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if err := w.y.DeleteEndpoint(ctx, n.ID, id); err != nil {
			return "", err
		}
		for _, p := range e.Addrs {
			if err := pool.ReleaseAddress(ctx, w.y, n.Subnets[0].Pool.String(), p.Addr()); err != nil {
				return "", err
			}
		}
		return "", nil
	}
	return "", fmt.Errorf("endpoint %s: unknown", a.at(0))
}

func hostAddress(_ context.Context, w *world, a args) (string, error) {
	p, err := netip.ParsePrefix(a.at(1))
	all := slices.DeleteFunc(w.kernel.Addr[a.at(0)], func(had netip.Prefix) bool { return had == p })
	if a.at(2) == "" {
		all = append(all, p)
	}
	w.kernel.Addr[a.at(0)] = all
	return "", err
}

func join(ctx context.Context, w *world, a args) (string, error) {
	id := w.id(a.at(1))
	w.kernel.OpenSandbox(sandboxOf(a.at(1)))
	n, link, err := w.y.Join(ctx, w.id(a.at(0)), id, sandboxOf(a.at(1)))
	if err != nil {
		return "", err
	}
	return "", w.engineMoves(ctx, n, id, a.at(1), link)
}

func leave(ctx context.Context, w *world, a args) (string, error) {
	network, id := w.id(a.at(0)), w.id(a.at(1))
	if err := w.y.Leave(ctx, network, id); err != nil {
		return "", err
	}
	w.kernel.MoveBack(core.Alias(network, id))
	w.kernel.EndSandbox(sandboxOf(a.at(1)))
	return "", nil
}

// portRequests parses ports: [[IP:]HOST:]CONTAINER[/PROTOCOL].
func portRequests(said ...string) (all []book.PortRequest, err error) {
	for _, s := range said {
		r := book.PortRequest{Proto: "tcp"}
		ports, proto, ok := strings.Cut(s, "/")
		if ok {
			r.Proto = proto
		}
		if at := strings.LastIndex(ports, ":"); strings.Count(ports, ":") > 1 {
			var err error
			at = strings.LastIndex(ports[:at], ":")
			if r.HostIP, err = netip.ParseAddr(strings.Trim(ports[:at], "[]")); err != nil {
				return nil, err
			}
			ports = ports[at+1:]
		}
		host, inside, both := strings.Cut(ports, ":")
		if !both {
			host, inside = "0", host
		}
		const base, bits = 10, 16
		from, err := strconv.ParseUint(host, base, bits)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseUint(inside, base, bits)
		if err != nil {
			return nil, err
		}
		r.HostPort, r.ContainerPort = uint16(from), uint16(to)
		all = append(all, r)
	}
	return all, nil
}

func publish(ctx context.Context, w *world, a args) (string, error) {
	asks, err := portRequests(a.words[2:]...)
	if err != nil {
		return "", err
	}
	_, err = w.y.Publish(ctx, w.id(a.at(0)), w.id(a.at(1)), asks)
	return "", err
}

func withdraw(ctx context.Context, w *world, a args) (string, error) {
	return "", w.y.Withdraw(ctx, w.id(a.at(0)), w.id(a.at(1)))
}

// runtime returns a container as containerd has it.
func runtime(name string) modes.Container {
	return modes.Container{Engine: book.Containerd, ID: name, Name: name, Labels: map[string]string{}}
}

func attachVerb(ctx context.Context, w *world, a args) (string, error) {
	name := a.at(1)
	n, err := w.y.Network(w.id(a.at(0)))
	if err != nil {
		return "", err
	}
	r := book.AttachRequest{
		Network: n, Attachment: name, IfName: "eth0", Container: runtime(name),
		Sandbox: sandboxOf(name), NS: w.kernel.OpenSandbox(sandboxOf(name)), Options: options(a.flags["o"]...),
		MAC: a.flag("mac"),
	}
	for _, ip := range a.flags["ip"] {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return "", err
		}
		r.Addrs = append(r.Addrs, addr)
	}
	if r.Ports, err = portRequests(a.flags["p"]...); err != nil {
		return "", err
	}
	got, err := attach.Attach(ctx, w.y, r)
	if err != nil {
		return "", err
	}
	return prefixes(got.Endpoint.Addrs) + "\n", w.learn()
}

func detachVerb(ctx context.Context, w *world, a args) (string, error) {
	name := a.at(1)
	r := attach.DetachRequest{NetworkID: w.id(a.at(0)), Attachment: name, IfName: "eth0", NS: -1, Gone: true}
	if w.kernel.IsNamespace(sandboxOf(name)) {
		r.NS = w.kernel.OpenSandbox(sandboxOf(name))
	}
	return "", attach.Detach(ctx, w.y, r)
}

func containerVerb(ctx context.Context, w *world, a args) (string, error) {
	name := a.at(1)
	switch a.at(0) {
	case "end":
		w.kernel.EndSandbox(sandboxOf(name))
		return "", nil
	case "exited":
		w.kernel.EndSandbox(sandboxOf(name))
		return "", attach.ContainerExited(ctx, w.y, name)
	case "gone":
		w.kernel.EndSandbox(sandboxOf(name))
		return "", attach.ContainerGone(ctx, w.y, name)
	case "is":
		who := modes.Container{Engine: book.Docker, ID: a.at(1), Name: a.at(3), Labels: map[string]string{}}
		e, err := w.y.Endpoint(w.id(a.at(2)), w.id(a.at(1)))
		if err != nil {
			return "", err
		}
		if err := reconcile.Identify(ctx, w.y, e, who); err != nil {
			return "", err
		}
		return "", enforce.Enforce(ctx, w.y.Book)
	}
	return "", fmt.Errorf("container %s: unknown", a.at(0))
}

func censusVerb(ctx context.Context, w *world, a args) (string, error) {
	c := reconcile.Census{
		Engine: a.at(0), Endpoints: map[string]reconcile.SeenEndpoint{}, Attachments: map[string]bool{},
	}
	es, err := w.y.Endpoints()
	if err != nil {
		return "", err
	}
	for _, name := range a.words[1:] {
		c.Attachments[name] = true
		for _, e := range es {
			if e.Attachment == name || e.ID == w.id(name) {
				c.Endpoints[e.ID] = reconcile.SeenEndpoint{NetworkID: e.NetworkID, Container: e.Container}
			}
		}
	}
	for range 2 { // what is missing once may only be late
		w.now = w.now.Add(time.Minute + time.Second)
		if err := reconcile.Reconcile(ctx, w.y, c); err != nil {
			return "", err
		}
	}
	return "", nil
}

func reserve(_ context.Context, w *world, a args) (string, error) {
	addr, err := netip.ParseAddr(a.at(1))
	if err != nil {
		return "", err
	}
	return "", pool.Reserve(w.y, a.at(0), addr, a.at(2))
}

func policyVerb(ctx context.Context, w *world, a args) (string, error) {
	if a.at(0) == "rm" {
		_, err := enforce.RemovePolicy(ctx, w.y.Book, a.at(1))
		return "", err
	}
	ps, err := policy.Parse([]byte(a.read(a.at(1))))
	if err != nil {
		return "", err
	}
	_, err = enforce.ApplyPolicies(ctx, w.y.Book, ps, false)
	return "", err
}

func joinCluster(ctx context.Context, w *world, _ args) (string, error) {
	w.fabric = &ledger{owners: map[netip.Addr]string{}}
	return "", w.restart(ctx)
}

func restartVerb(ctx context.Context, w *world, _ args) (string, error) { return "", w.restart(ctx) }

func reboot(ctx context.Context, w *world, _ args) (string, error) {
	if err := leaveKilled(w.st, w.db(), true); err != nil {
		return "", err
	}
	w.boot++
	w.kernel.Reboot()
	return "", w.start(ctx, false)
}

// crashVerb prints the steps gone through.
func crashVerb(ctx context.Context, w *world, a args) (string, error) {
	at := a.rest[0]
	dies := func(n int, step string) bool { return step == at || strconv.Itoa(n) == at }
	steps, err := pullAt(&w.step, dies, func() error {
		_, err := w.do(ctx, a.read, a.rest[1:])
		return err
	})
	if err == nil {
		return "", fmt.Errorf("there is no step %q among %q", at, steps)
	}
	if !errors.Is(err, errPulled) {
		return "", err
	}
	return strings.Join(steps, "\n") + "\n", nil
}

// errRefused is the error of a kernel that is told to fail.
var errRefused = errors.New("no buffer space available")

func failVerb(ctx context.Context, w *world, a args) (string, error) {
	part, removals := strings.CutPrefix(a.rest[0], "remove ")
	w.kernel.Refuse = func(text string, removal bool) error {
		if removal == removals && strings.Contains(w.plain(text), part) {
			return errRefused
		}
		return nil
	}
	defer func() { w.kernel.Refuse = nil }()
	return w.do(ctx, a.read, a.rest[1:])
}

// drift loses the objects whose text, as state prints it, contains a part.
func drift(_ context.Context, w *world, a args) (string, error) {
	if w.kernel.Lose(func(text string) bool { return strings.Contains(w.plain(text), a.rest[0]) }) == 0 {
		return "", fmt.Errorf("no object contains %q", a.rest[0])
	}
	return "", nil
}

func plant(_ context.Context, w *world, a args) (string, error) {
	w.kernel.Plant(bridge.Bridge{Name: a.at(0), Alias: core.Alias("lost", ""), MTU: ethernetMTU})
	return "", nil
}

func loseRecords(ctx context.Context, w *world, _ args) (string, error) {
	if err := w.st.Close(); err != nil {
		return "", err
	}
	files, err := filepath.Glob(w.db() + "*")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		if strings.Contains(filepath.Base(file), "kept") {
			continue
		}
		if err := os.Remove(file); err != nil {
			return "", err
		}
	}
	return "", w.start(ctx, true)
}

// rebuild makes the records again; the arguments are the containers that run.
func rebuild(ctx context.Context, w *world, a args) (string, error) {
	c := reconcile.Census{Engine: book.Containerd, Endpoints: map[string]reconcile.SeenEndpoint{}}
	for _, name := range a.words {
		found, err := reconcile.FindIn(w.y, sandboxOf(name))
		if err != nil {
			return "", err
		}
		for id, s := range found {
			s.Container, s.Attachment, s.IfName = runtime(name), name, "eth0"
			c.Endpoints[id] = s
		}
	}
	if err := reconcile.RebuildOwn(ctx, w.y, c); err != nil {
		return "", err
	}
	return "", reconcile.Rebuild(ctx, w.y, reconcile.Census{Engine: book.Docker}, nil)
}

func auditVerb(ctx context.Context, w *world, _ args) (string, error) { return w.audit(ctx) }

func sweep(ctx context.Context, w *world, _ args) (string, error) {
	w.now = w.now.Add(time.Minute)
	w.y.Retry(ctx)
	w.y.Sweep(ctx)
	return "", nil
}

func gc(ctx context.Context, w *world, _ args) (string, error) {
	found, err := reconcile.GC(ctx, w.y, nil, false)
	if err != nil {
		return "", err
	}
	return w.findings(found)
}

func repairVerb(ctx context.Context, w *world, _ args) (string, error) {
	return "", repair.All(ctx, w.y)
}
