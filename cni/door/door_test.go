package door

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"netyard/cni"
	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/attach"
	"netyard/yard/book"
	"netyard/yard/own"
	"netyard/yard/reconcile"
	"netyard/yard/yardtest"
)

// A desk is the door of a host whose kernel records.
type desk struct {
	*Server
	t      *testing.T
	kernel *yardtest.Kernel
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, kernel: yardtest.New(modetest.Facts{
		Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500)},
		Addr: map[string][]netip.Prefix{"eth0": {netip.MustParsePrefix("192.0.2.1/24")}},
	})}
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db"), FlushDelay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	log := slog.New(slog.DiscardHandler)
	d.Server = &Server{Log: log, Yard: yard.New(book.Config{
		Log: log, Store: st, Kernel: d.kernel, Modes: all.On(modes.Env{}), BootID: "b", IPAM: ipam.New(ipam.Config{}),
		Background: func(f func()) { f() },
	})}
	if err := reconcile.Restore(t.Context(), d.Yard, false); err != nil {
		t.Fatal(err)
	}
	return d
}

// request returns the request of a runtime for a container's eth0.
func request(command, id, conf string) cni.Request {
	return cni.Request{
		Command: command, ContainerID: id, IfName: "eth0", Netns: "/run/netns/" + id, Config: json.RawMessage(conf),
	}
}

// ask makes a request for a container with a sandbox.
func (d *desk) ask(q cni.Request) (string, error) {
	a, err := d.answer(d.t.Context(), q, d.kernel.OpenSandbox(q.Netns))
	return string(a.result), err
}

// attached makes an ADD, which must succeed, and returns the MAC and the addresses in its result.
func (d *desk) attached(q cni.Request) string {
	d.t.Helper()
	out, err := d.ask(q)
	if err != nil {
		d.t.Errorf("%s %s: %v", q.Args, q.Config, err)
		return ""
	}
	var r struct {
		Interfaces []struct{ Mac, Sandbox string }
		IPs        []struct{ Address string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		d.t.Fatal(err)
	}
	var words []string
	for _, i := range r.Interfaces {
		if i.Sandbox != "" {
			words = append(words, i.Mac)
		}
	}
	for _, ip := range r.IPs {
		words = append(words, ip.Address)
	}
	return strings.Join(words, " ")
}

// code returns the code of CNI's error; 0: there is none.
func code(err error) uint {
	if err == nil {
		return 0
	}
	return cniError(err).Code
}

// TestRefusedParameters shows that parameters that cannot be right are refused with the code of their kind and an
// error that stays short, and that a runtime can delete with them.
func TestRefusedParameters(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	long := strings.Repeat("x", 100_000)
	const conf = `{"cniVersion":"1.0.0","name":"web","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}`
	ns := d.kernel.OpenSandbox("/run/netns/c")
	for name, test := range map[string]struct {
		id, ifName string
		ns         int
		code       uint
	}{
		"no sandbox":                      {"c", "eth0", -1, cni.CodeNamespace},
		"what is not a network namespace": {"c", "eth0", 1 << 20, cni.CodeNamespace},
		"a long ID":                       {long, "eth0", ns, cni.CodeEnvironment},
		"a long interface name":           {"c", long, ns, cni.CodeEnvironment},
		"the loopback's name":             {"c", "lo", ns, cni.CodeEnvironment},
		"an ID with a slash":              {"c/" + long[:90], "eth0", ns, cni.CodeEnvironment},
	} {
		q := request("ADD", test.id, conf)
		q.IfName = test.ifName
		if _, err := d.answer(t.Context(), q, test.ns); code(err) != test.code || len(err.Error()) > 400 {
			t.Errorf("ADD with %s: %v; want code %d", name, err, test.code)
		}
	}
	if _, err := d.answer(t.Context(), request("DEL", "c", conf), 1<<20); err != nil {
		t.Errorf("DEL with what is not a network namespace: %v", err)
	}
	if _, err := d.ask(request("ADD", "c", conf)); err != nil {
		t.Errorf("ADD with none of them: %v", err)
	}
}

// TestLongValues shows that an error stays short whatever a runtime has written, and names the key.
func TestLongValues(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	long := strings.Repeat("x", 100_000)
	const subnet = `"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}`
	for _, test := range []struct {
		args, conf, want string
		code             uint
	}{
		{"IP=" + long, subnet, "IP in CNI_ARGS", cni.CodeEnvironment},
		{"MAC=" + long, subnet, "MAC", cni.CodeEnvironment},
		{"IP=10.9.0.5/24;GATEWAY=" + long, `"ipam":{"type":"static"}`, "GATEWAY in CNI_ARGS", cni.CodeEnvironment},
		{"", `"` + long + `":1`, "unknown to netyard, which would ignore it; remove it", cni.CodeConfig},
		{"", `"ipam":{"type":"` + long + `"}`, "is not dhcp, host-local, static or netyard", cni.CodeConfig},
		{"", `"ipam":{"type":"host-local","subnet":"` + long + `"}`, "key ipam.subnet", cni.CodeConfig},
		{"", `"options":{"` + long + `":"1"}`, "unknown option", cni.CodeConfig},
		{"", `"runtimeConfig":{"ips":["` + long + `"]},` + subnet, "key runtimeConfig.ips", cni.CodeConfig},
		{long, `"prevResult":null,` + subnet, "", 0},
	} {
		q := request("ADD", "c", `{"cniVersion":"1.0.0","name":"web",`+test.conf+`}`)
		q.Args = test.args
		_, err := d.ask(q)
		if code(err) != test.code {
			t.Errorf("%.90s %.90s: code %d, want %d: %.300v", test.args, test.conf, code(err), test.code, err)
		}
		if err == nil {
			continue
		}
		if text := cniError(err).Msg; len(text) > 1100 || !strings.Contains(text, test.want) {
			t.Errorf("%.90s %.90s: %d bytes: %.300s; want %s", test.args, test.conf, len(text), text, test.want)
		}
	}
}

// TestPrecedence shows that, of several sources of a MAC or an address, the one counts that counts in the upstream
// plugins: the runtime before args, args before CNI_ARGS.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	const (
		fromArgs    = `"args":{"cni":{"mac":"02:00:00:00:00:02","ips":["10.9.0.22","fd09::22"]}},`
		fromRuntime = `"runtimeConfig":{"mac":"02:00:00:00:00:03","ips":["10.9.0.33","fd09::33"]},`
		env         = "IgnoreUnknown=1;MAC=02:00:00:00:00:01;IP=10.9.0.11"
	)
	for i, test := range []struct{ args, conf, want string }{
		{env, "", "02:00:00:00:00:01 10.9.0.11/24 fd09::2/64"},
		{env, fromArgs, "02:00:00:00:00:02 10.9.0.22/24 fd09::22/64"},
		{"", fromRuntime, "02:00:00:00:00:03 10.9.0.33/24 fd09::33/64"},
		{env, fromRuntime, "02:00:00:00:00:03 10.9.0.33/24 fd09::33/64"},
		{env, fromArgs + fromRuntime, "02:00:00:00:00:03 10.9.0.33/24 fd09::33/64"},
	} {
		q := request("ADD", fmt.Sprint("c", i), `{"cniVersion":"1.0.0","name":"web",`+test.conf+
			`"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd09::/64"}]]}}`)
		q.Args = test.args
		if got := d.attached(q); got != test.want {
			t.Errorf("%s %s: %s; want %s", test.args, test.conf, got, test.want)
		}
		q.Command = "DEL"
		if _, err := d.ask(q); err != nil {
			t.Error(err)
		}
	}
}

// TestResultLinks shows that a result lists the container's link, and before it the host's end if there is one: for the
// plugins after netyard in a chain, a link without a sandbox is the container's own on the host.
func TestResultLinks(t *testing.T) {
	t.Parallel()
	for keys, links := range map[string]int{
		``:                             2,
		`"options":{"mode":"host"},`:   2,
		`"master":"eth0",`:             1,
		`"master":"eth0","mode":"l2",`: 1,
		`"master":"eth0","mode":"l3",`: 1,
	} {
		d := newDesk(t)
		out, err := d.ask(request("ADD", "c", `{"cniVersion":"1.0.0","name":"web",`+keys+
			`"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}`))
		var r struct {
			Interfaces []struct{ Name, Sandbox string }
			IPs        []struct{ Interface int }
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		last := len(r.Interfaces) - 1
		if err != nil || last+1 != links || r.Interfaces[last].Sandbox == "" || r.IPs[0].Interface != last ||
			links == 2 && !strings.HasPrefix(r.Interfaces[0].Name, core.VethPrefix) {
			t.Errorf("%s: %s %v", keys, out, err)
		}
	}
}

// TestRenamed shows that the error about a network that was renamed in its file names the former one, which has the
// subnet, and how to remove it.
func TestRenamed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	conf := func(name, subnet string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","ipam":{"type":"host-local","subnet":"` + subnet + `"}}`
	}
	if _, err := d.ask(request("ADD", "c1", conf("old", "10.9.0.0/24"))); err != nil {
		t.Fatal(err)
	}
	for _, subnet := range []string{"10.9.0.0/24", "10.9.0.0/16"} {
		want := "subnet " + subnet + " overlaps pool 10.9.0.0/24 of network old; " +
			"if nothing needs that network, remove it: netyard network rm old"
		_, err := d.ask(request("ADD", "c2", conf("new", subnet)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// TestStatic shows that a container gets the address of ipam type static that its runtime asks for, as from the
// upstream plugin, also several of one subnet, and of a subnet that no container before it had.
func TestStatic(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for i, test := range []struct{ args, runtime, env, want string }{
		{"", "", "IP=10.9.0.5/24", "10.9.0.5/24"},
		{"", `"10.9.0.6/24"`, "", "10.9.0.6/24"},
		{`"10.9.0.7/24","fd09::7/64"`, "", "", "10.9.0.7/24 fd09::7/64"},
		{`"10.9.0.8/24"`, "", "IP=10.9.0.9/24,fd09::9/64", "10.9.0.8/24"},
		{`"10.9.0.8/24"`, `"fd09::a/64"`, "IP=10.9.0.9/24", "fd09::a/64"},
		{"", `"10.9.0.11/24","10.9.0.12/24"`, "", "10.9.0.11/24 10.9.0.12/24"},
		{"", `"10.8.0.5/24"`, "", "10.8.0.5/24"},
		{"", `"10.7.0.5/32"`, "", "10.7.0.5/32"},
		{"", `"10.9.0.13/24"`, "IP=nonsense;GATEWAY=", "!IP"},
		{"", `"10.9.0.13"`, "", "!needs an address with a prefix length"},
		{"", "", "IP=10.9.0.14/24;GATEWAY=nonsense", "!GATEWAY"},
		{"", "", "", "!needs an address with a prefix length"},
		{"", `"10.9.0.5/24"`, "", "!10.9.0.5"}, // the first container has it
	} {
		conf := `{"cniVersion":"1.0.0","name":"web","ipam":{"type":"static"}`
		if test.args != "" {
			conf += `,"args":{"cni":{"ips":[` + test.args + `]}}`
		}
		if test.runtime != "" {
			conf += `,"runtimeConfig":{"ips":[` + test.runtime + `]}`
		}
		q := request("ADD", fmt.Sprint("c", i), conf+"}")
		q.Args = test.env
		if want, refused := strings.CutPrefix(test.want, "!"); refused {
			if _, err := d.ask(q); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v; want %s", q.Args, q.Config, err, want)
			}
			continue
		}
		_, got, _ := strings.Cut(d.attached(q), " ")
		if got != test.want {
			t.Errorf("%s %s: %s; want %s", q.Args, q.Config, got, test.want)
		}
	}
	status := request("STATUS", "", `{"cniVersion":"1.1.0","name":"web","ipam":{"type":"static"}}`)
	if _, err := d.ask(status); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	for i := range 8 {
		q := request("CHECK", fmt.Sprint("c", i), `{"cniVersion":"1.0.0","name":"web","ipam":{"type":"static"}}`)
		if _, err := d.ask(q); err != nil {
			t.Errorf("CHECK c%d: %v", i, err)
		}
		q.Command = "DEL"
		if _, err := d.ask(q); err != nil {
			t.Errorf("DEL c%d: %v", i, err)
		}
	}
	if _, err := own.RemoveNetwork(t.Context(), d.Yard, "web"); err != nil {
		t.Error(err)
	}
}

// TestConmon shows that the monitor of a container is found by the container's ID.
func TestConmon(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	monitor := exec.CommandContext(t.Context(), "/bin/sh")
	monitor.Args = []string{"/usr/bin/conmon", "-c", "read end", "-c", id}
	monitor.Stdin = in
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	if got := conmon(id); got != monitor.Process.Pid {
		t.Errorf("found process %d; want %d", got, monitor.Process.Pid)
	}
	if got := conmon(id[1:]); got != 0 {
		t.Errorf("found process %d for another container", got)
	}
	out.Close()
	_ = monitor.Wait()
}

// TestReserved shows that an ADD succeeds if somebody listens on its port who reserves it for this container, and is
// refused otherwise.
func TestReserved(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	h, err := core.Open(slog.New(slog.DiscardHandler), netns.None(), netns.None())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	all, err := sandbox.Listeners(h, "tcp")
	if err != nil {
		t.Fatal(err)
	}
	d.kernel.Listening = slices.DeleteFunc(all, func(l sandbox.Listener) bool { return l.Port != port })
	q := request("ADD", "c", `{"cniVersion":"1.0.0","name":"web","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}`)
	if _, err := d.ask(q); err != nil {
		t.Fatal(err)
	}
	n, err := own.NetworkNamed(d.Yard, "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		reserver func() int
		ok       bool
	}{{os.Getpid, true}, {os.Getppid, false}, {func() int { return 0 }, false}, {nil, false}} {
		_, err := attach.Attach(t.Context(), d.Yard, book.AttachRequest{
			Network: n, Attachment: "c", IfName: "eth0", Sandbox: q.Netns, NS: d.kernel.OpenSandbox(q.Netns),
			Reserver: test.reserver, Container: modes.Container{Engine: book.CNI},
			Ports: []book.PortRequest{{
				Proto: "tcp", HostPort: port, HostPortEnd: port, ContainerPort: 80,
			}},
		})
		if (err == nil) != test.ok {
			t.Errorf("with reserver %t: %v", test.ok, err)
		}
	}
}

// TestHairpin shows that hairpinMode is done: the ports of a chained portmap are not netyard's.
func TestHairpin(t *testing.T) {
	t.Parallel()
	for keys, want := range map[string]bool{`"hairpinMode":true,`: true, `"hairpinMode":false,`: false, ``: false} {
		d := newDesk(t)
		d.attached(request("ADD", "c", `{"cniVersion":"1.0.0","name":"web",`+keys+
			`"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}`))
		made := strings.Join(d.kernel.Journal(), "\n")
		if got := strings.Contains(made, " hairpin"); got != want {
			t.Errorf("%s: hairpin %t\n%s", keys, got, made)
		}
	}
}

// TestTwice shows that a second interface on the network that the container is on already is refused, unless the
// container may send from any address or has none, and that one of a former sandbox is not in the way.
func TestTwice(t *testing.T) {
	t.Parallel()
	const ipam = `"ipam":{"type":"host-local","subnet":"10.9.0.0/24"}`
	for keys, twice := range map[string]bool{
		ipam: false,
		ipam + `,"options":{"antispoof":"false"}`: true,
		ipam + `,"master":"eth0"`:                 true,
		`"mtu":1500`:                              true,
	} {
		d := newDesk(t)
		q := request("ADD", "c", `{"cniVersion":"1.0.0","name":"web",`+keys+`}`)
		for range 2 { // the same interface again is no second one
			if _, err := d.ask(q); err != nil {
				t.Fatal(err)
			}
		}
		q.IfName = "eth1"
		_, err := d.ask(q)
		if (err == nil) != twice || err != nil &&
			(code(err) != cni.CodeConfig || !strings.Contains(err.Error(), "network web already, by interface eth0")) {
			t.Errorf("%s: eth1: %v", keys, err)
		}
		q.Netns = "/run/netns/restarted"
		if _, err := d.ask(q); err != nil {
			t.Errorf("%s: eth1 in another sandbox: %v", keys, err)
		}
	}
}
