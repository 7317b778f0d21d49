package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/integration/lab"
)

const (
	// backTime is how long it may take after a kill until everything is as before; the test's log says how long it
	// took.
	backTime = time.Minute
	// strictTime is the limit with NETYARD_KILLS_STRICT, for an otherwise idle machine.
	strictTime = 10 * time.Second
)

// TestKilled kills the engine, its containerd, the daemon and the host, alone and together, and starts them again. Each
// time, every container with a restart policy is back on its networks, with its ports, addresses, MAC and names.
// NETYARD_KILLS=3 repeats it three times, and on each engine with and without live-restore; otherwise each engine has
// one of the two.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, e := range lab.Chosen(lab.Engine2010, lab.Engine285, lab.Engine298, lab.Engine298nft) {
		for _, live := range []bool{false, true} {
			if os.Getenv("NETYARD_KILLS") == "" && live != (e == lab.Engine298nft) {
				continue
			}
			t.Run(fmt.Sprintf("engine=%s/live-restore=%t", e, live), func(t *testing.T) {
				k := newKills(t, e, live)
				for round := range rounds(t) {
					for _, c := range killings {
						if !live || c.ends != always { // a power loss is the same with live-restore
							t.Run(fmt.Sprintf("%d %s", round+1, c.name), func(t *testing.T) { k.row(t, c) })
							if !k.h.Dockerd.Running() || !k.h.Netyard.Running() {
								t.Fatalf("after the kill of %s the engine or the daemon did not start", c.name)
							}
						}
					}
				}
				t.Log("times until each works again, from the engine's answer on:\n" + k.table.String())
				healthy(t, k.h)
			})
		}
	}
}

// rounds returns NETYARD_KILLS, or 1.
func rounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("NETYARD_KILLS"))
	if os.Getenv("NETYARD_KILLS") == "" {
		n, err = 1, nil
	}
	if err != nil {
		t.Fatalf("NETYARD_KILLS: %v", err)
	}
	return n
}

// A killing says what is killed, and in which order it is started again. When do returns, the engine answers.
type killing struct {
	name string
	ends ending
	do   func(h *lab.Host)
}

// An ending says whether containers end by a killing.
type ending int

const (
	never  ending = iota
	mostly        // without live-restore
	always
)

var killings = []killing{
	{"engine", mostly, func(h *lab.Host) {
		h.Dockerd.Kill()
		h.Dockerd.Start()
	}},
	{"engine and containerd", mostly, func(h *lab.Host) {
		killEngine(h)
		h.Dockerd.Start()
	}},
	{"daemon", never, func(h *lab.Host) {
		h.Netyard.Kill()
		h.Netyard.Start()
	}},
	{"engine and daemon, which is back first", mostly, func(h *lab.Host) {
		h.Dockerd.Kill()
		h.Netyard.Kill()
		h.Netyard.Start()
		h.Dockerd.Start()
	}},
	{"daemon and engine, which is back first", mostly, func(h *lab.Host) {
		h.Netyard.Kill()
		h.Dockerd.Kill()
		h.Dockerd.Launch()
		h.Netyard.Start()
		h.Dockerd.WaitReady()
	}},
	{"all, the daemon is back first", mostly, func(h *lab.Host) {
		killEngine(h)
		h.Netyard.Kill()
		h.Netyard.Start()
		h.Dockerd.Start()
	}},
	{"all, the engine is back first", mostly, func(h *lab.Host) {
		h.Netyard.Kill()
		killEngine(h)
		h.Dockerd.Launch()
		h.Netyard.Start()
		h.Dockerd.WaitReady()
	}},
	{"host", always, func(h *lab.Host) {
		h.PowerLoss()
		h.Boot()
	}},
}

// killEngine kills the engine, and then the containerd that the engine would restart.
func killEngine(h *lab.Host) {
	h.Dockerd.Kill()
	kill(h, "cat /run/docker/containerd/containerd.pid")
}

// A capability is something that netyard provides to a container, with a test that it works.
type capability struct {
	name      string
	container string
	flags     string // of docker create
	mac       string
	cmd       string
	connect   string // arguments of docker network connect, for a second network
	works     func(k *kills) error
}

// serve returns a command that answers on ports, with the port's number, while the container runs.
func serve(ports ...int) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "nc -ll -p %d -e echo %[1]d & ", p)
	}
	return `sh -c "` + b.String() + `wait"`
}

// The addresses are in the networks that newKills creates.
var capabilities = []capability{
	{name: "a port", container: "port", flags: "--network theirs -p 8080:80", works: func(k *kills) error {
		return answer(k.h.Outside.Net, k.h.IP+":8080", "80")
	}},
	{name: "a range", container: "range", flags: "--network own -p 8100-8103:8100-8103", cmd: serve(8100, 8101, 8102, 8103), works: func(k *kills) error {
		var errs []error
		for p := 8100; p <= 8103; p++ {
			errs = append(errs, answer(k.h.Outside.Net, fmt.Sprint(k.h.IP, ":", p), fmt.Sprint(p)))
		}
		return errors.Join(errs...)
	}},
	{name: "a port on loopback", container: "loopback", flags: "--network theirs -p 127.0.0.1:8090:80", works: func(k *kills) error {
		if got, err := k.h.Outside.TryDial("tcp", k.h.IP+":8090"); err == nil {
			return fmt.Errorf("the outside reaches a port on loopback: %s", got)
		}
		return answer(k.h.Net, "127.0.0.1:8090", "80")
	}},
	{name: "--ip, Docker's IPAM", container: "fixed", flags: "--network theirs --ip 10.81.0.50", works: func(k *kills) error {
		return answer(k.h.Net, "10.81.0.50:80", "80")
	}},
	{name: "--ip, netyard's IPAM", container: "kept", flags: "--network own --ip 10.82.0.50", mac: "02:82:00:00:00:50", works: func(k *kills) error {
		return answer(k.h.Net, "10.82.0.50:80", "80")
	}},
	{
		name: "two networks", container: "both", flags: "--network theirs --ip 10.81.0.60 -p 8070:80",
		connect: "--ip 10.83.0.60 other",
		works: func(k *kills) error {
			_, err1 := k.h.TryExec("both", "ping -c 1 -W 1 fixed")
			_, err2 := k.h.TryExec("fixed", "ping -c 1 -W 1 both")
			return errors.Join(answer(k.h.Net, "10.81.0.60:80", "80"), answer(k.h.Net, "10.83.0.60:80", "80"),
				answer(k.h.Outside.Net, k.h.IP+":8070", "80"), err1, err2)
		},
	},
	{name: "macvlan", container: "member", flags: "--network lan --ip 203.0.113.200", works: func(k *kills) error {
		return answer(k.h.Outside.Net, "203.0.113.200:80", "80")
	}},
	{name: "host", container: "exposed", flags: "--network exposed", cmd: serve(9090), works: func(k *kills) error {
		return answer(k.h.Outside.Net, k.h.IP+":9090", "9090")
	}},
	{name: "overlay", container: "blue", flags: "--network blue --ip 10.20.0.50 -p 8060:80", works: func(k *kills) error {
		out, err := k.far.TrySh("ip netns exec peer busybox nc -w 1 10.20.0.50 80 </dev/null")
		if err == nil && out != "80" {
			err = fmt.Errorf("its port answers %q", out)
		}
		return errors.Join(err, answer(k.h.Outside.Net, k.h.IP+":8060", "80"))
	}},
}

// answer checks that a port is answered with want.
func answer(from *lab.Net, addr, want string) error {
	got, err := from.TryDial("tcp", addr)
	if err == nil && got != want {
		err = fmt.Errorf("%s answers %q, want %q", addr, got, want)
	}
	return err
}

// kills is a host with a container of each capability, and another member of its overlay.
type kills struct {
	h     *lab.Host
	far   *lab.Node
	live  bool // with live-restore
	was   state
	table *strings.Builder
}

// newKills makes the host, its networks and its containers. An engine that starts calls a driver at once only if the
// IPAM driver of one of its networks has the same name, and tells only that driver to release what it had before: it
// tells netyard, but not netyard-bridge.
func newKills(t *testing.T, e lab.Engine, live bool) *kills {
	t.Helper()
	lan := lab.NewLAN(t)
	k := &kills{live: live, far: lan.Node("far"), table: &strings.Builder{}}
	var args []string
	if live {
		args = append(args, "--live-restore")
	}
	k.h = lab.New(t, e, lab.On(lan), lab.DockerdArgs(args...))
	k.cluster(t)
	for _, network := range []string{
		"-d netyard-bridge --subnet 10.81.0.0/24 theirs",
		"-d netyard-bridge --ipam-driver netyard --subnet 10.82.0.0/24 own",
		"-d netyard --ipam-driver netyard --subnet 10.83.0.0/24 other",
		"-d netyard-macvlan -o parent=eth0 --subnet 203.0.113.0/24 --gateway 203.0.113.1 --ip-range 203.0.113.128/25 lan",
		"-d netyard-host exposed",
		"-d netyard-overlay --ipam-driver netyard-overlay -o overlay=blue --ipam-opt overlay=blue --subnet 10.20.0.0/16 blue",
	} {
		k.h.Docker("network create", network)
	}
	k.peer(t)
	for _, c := range capabilities {
		k.make(c)
	}
	for _, c := range capabilities {
		eventually(t, c.name+" works", func() bool { return c.works(k) == nil })
	}
	healthy(t, k.h)
	k.remember(t)
	head := []string{"killed"}
	for _, c := range capabilities {
		head = append(head, c.name)
	}
	k.line(head...)
	return k
}

// cluster makes the host and the far node, which runs etcd, members of a cluster.
func (k *kills) cluster(t *testing.T) {
	t.Helper()
	url := "http://" + k.far.IP + ":2379"
	k.far.Service("etcd", "etcd", "--data-dir", filepath.Join(k.far.Dir, "etcd"), "--listen-client-urls", url,
		"--advertise-client-urls", url, "--log-level", "error").Launch()
	other := k.far.Netyard()
	for n, d := range map[*lab.Node]*lab.Daemon{k.h.Node: k.h.Netyard, k.far: other} {
		config := filepath.Join(n.Dir, "netyard.yaml")
		text := fmt.Sprintf("etcd:\n  endpoints: [%q]\n  insecure: true\noverlay:\n  address: %s\n", url, n.IP)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Start("--config", config)
	}
	for _, d := range []*lab.Daemon{k.h.Netyard, other} {
		eventually(t, "a host joins the cluster", func() bool {
			return strings.Contains(d.Log(), "joined the cluster")
		})
	}
}

// peer attaches a sandbox on the far node to the overlay, without an engine.
func (k *kills) peer(t *testing.T) {
	t.Helper()
	k.far.Sh("netyard network attach blue && netyard cni install blue && ip netns add peer && ip -n peer link set " +
		"lo up")
	list := parse[struct{ Plugins []map[string]any }](t, k.far.Sh("cat /etc/cni/net.d/netyard-blue.conflist"))
	k.far.Sh(fmt.Sprintf("CNI_COMMAND=ADD CNI_CONTAINERID=peer CNI_NETNS=/run/netns/peer CNI_IFNAME=eth0 CNI_PATH=/ "+
		"%s <<'END'\n%s\nEND",
		lab.BuildPlugin(t), asPlugin(t, list.Plugins[0], "blue", "1.0.0")))
}

// make creates and starts the container of a capability, with its networks connected before the first start.
func (k *kills) make(c capability) {
	cmd := c.cmd
	if cmd == "" {
		cmd = serve(80)
	}
	flags := c.flags
	if c.mac != "" && k.h.Engine != lab.Engine2010 { // the newer client cannot pass this to it
		flags += " --mac-address " + c.mac
	}
	k.h.Docker("create --restart always --name", c.container, flags, lab.Image, cmd)
	if c.connect != "" {
		k.h.Docker("network connect", c.connect, c.container)
	}
	k.h.Docker("start", c.container)
}

// row performs a killing and waits until every capability works again.
func (k *kills) row(t *testing.T, c killing) {
	t.Helper()
	k.h.Use(t)
	c.do(k.h)
	k.h.Docker("ps -q")
	answered := time.Now()
	took := make([]time.Duration, len(capabilities))
	errs := make([]error, len(capabilities))
	var wg sync.WaitGroup
	for i, want := range capabilities {
		wg.Go(func() {
			errs[i] = back(func() error { return want.works(k) })
			took[i] = time.Since(answered)
		})
	}
	wg.Wait()
	k.report(t, c, took, errs)
	if t.Failed() {
		for i, want := range capabilities {
			if errs[i] != nil { // so that the next row starts afresh
				_, _ = k.h.TryDocker("rm -f", want.container)
			}
		}
		k.h.Sh("netyard gc")
		for i, want := range capabilities {
			if errs[i] != nil {
				k.make(want)
			}
		}
		k.remember(t)
		return
	}
	if err := back(func() error { return k.compare(k.now(t), c) }); err != nil {
		t.Errorf("the state differs from before: %v", err)
	}
	healthy(t, k.h)
	k.remember(t)
}

// report reports what does not work again, and adds the times to the table.
func (k *kills) report(t *testing.T, c killing, took []time.Duration, errs []error) {
	t.Helper()
	words := []string{c.name}
	for i, want := range capabilities {
		switch {
		case errs[i] != nil:
			t.Errorf("%s does not work again: %v\n%s", want.name, errs[i], k.why(want.container))
			words = append(words, "never")
		case os.Getenv("NETYARD_KILLS_STRICT") != "" && took[i] > strictTime:
			t.Errorf("%s works again only after %v", want.name, took[i])
			fallthrough
		default:
			words = append(words, took[i].Round(10*time.Millisecond).String())
		}
	}
	k.line(words...)
}

// why returns the engine's status and error of a container.
func (k *kills) why(container string) string {
	out, err := k.h.TryDocker("inspect -f '{{.State.Status}} {{.State.Error}}'", container)
	if err != nil {
		return err.Error()
	}
	return out
}

// line adds a line to the table.
func (k *kills) line(words ...string) {
	fmt.Fprintf(k.table, "%-40s", words[0])
	for _, w := range words[1:] {
		fmt.Fprintf(k.table, "%22s", w)
	}
	k.table.WriteByte('\n')
}

// back retries f for backTime, and returns its last error.
func back(f func() error) error {
	for end := time.Now().Add(backTime); ; time.Sleep(50 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// A state is what must be the same after a killing.
type state struct {
	networks map[string]string // networks of each container, with its fixed addresses and MAC
	ports    []string
	started  []string // when the containers were started
}

// dynamic matches an address and a MAC that may change with a restart.
var dynamic = regexp.MustCompile(`=\S*`)

// remember records the state before the next killing, once netyard ports shows all containers by their names.
func (k *kills) remember(t *testing.T) {
	t.Helper()
	eventually(t, "netyard ports shows all containers by their names", func() bool {
		k.was = k.now(t)
		return !slices.ContainsFunc(k.was.ports, func(p string) bool { return strings.HasPrefix(p, ":") })
	})
}

// now returns the current state.
func (k *kills) now(t *testing.T) state {
	t.Helper()
	s := state{networks: map[string]string{}}
	cmd := []string{"inspect -f '{{.State.StartedAt}} {{.Name}}" +
		"{{range $n, $e := .NetworkSettings.Networks}} {{$n}}={{$e.IPAddress}},{{$e.MacAddress}}{{end}}'"}
	for _, c := range capabilities {
		cmd = append(cmd, c.container)
	}
	for i, line := range strings.Split(k.h.Docker(cmd...), "\n") {
		started, networks, _ := strings.Cut(line, " ")
		if !strings.Contains(capabilities[i].flags, "--ip ") {
			networks = dynamic.ReplaceAllString(networks, "")
		}
		s.networks[capabilities[i].container] = networks
		s.started = append(s.started, started)
	}
	for _, p := range ports(t, k.h) {
		s.ports = append(s.ports, fmt.Sprintf("%s: %s %s:%d-%d %s",
			p.Container, p.Proto, p.HostIP, p.HostPort, p.HostPortEnd, p.State))
	}
	slices.Sort(s.ports)
	return s
}

// compare returns what differs from the state before.
func (k *kills) compare(now state, c killing) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(k.was.networks)) {
		if was, is := k.was.networks[name], now.networks[name]; was != is {
			errs = append(errs, fmt.Errorf("container %s: networks were %s and are %s", name, was, is))
		}
	}
	if !slices.Equal(k.was.ports, now.ports) {
		errs = append(errs, fmt.Errorf("the ports were %q and are %q", k.was.ports, now.ports))
	}
	goOn := c.ends == never || c.ends == mostly && k.live
	if same := slices.Equal(k.was.started, now.started); same != goOn {
		errs = append(errs, fmt.Errorf("the containers kept running: %t, want %t", same, goOn))
	}
	return errors.Join(errs...)
}
