package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// BenchmarkRowMany measures a daemon with 10,000 endpoints on 100 networks, made by the driver's protocol: how long one
// more takes, beside a daemon with 10; its listings, a policy about all, a restart, and its memory. Before that, with
// 1,000 endpoints, what it takes when nothing happens.
func BenchmarkRowMany(b *testing.B) {
	const networks = 100
	many, some := turns.Scaled(10_000, 1_000), turns.Scaled(1_000, 100)
	d := newMany(b, networks)
	d.grow(0, some)
	idle := turns.Row{
		Table: "many", What: fmt.Sprintf("idle, %d endpoints", some), Unit: "% of a core", AtMost: 0.2,
	}
	d.settle()
	during := time.Duration(turns.Scaled(10, 2)) * time.Second
	var shares []float64
	for range turns.Scaled(5, 2) {
		before := d.cpu()
		time.Sleep(during)
		shares = append(shares, 100*(d.cpu()-before)/during.Seconds())
	}
	idle.Report(b, shares...)

	d.grow(some, many)
	d.settle()
	few := newMany(b, 10)
	few.grow(0, 10)
	turns.Take(b, 12, d.more("many", many), few.more("few", 10)).Row(b, turns.Row{
		Table: "attach", What: fmt.Sprintf("`CreateEndpoint` + `Join`, bridge, %d endpoints", many), Unit: "ms",
		Beside: "10 endpoints", AtMost: 1.2,
	}, "many", "few")
	few.Stop()
	d.settle()
	row := func(what, unit string, atMost float64) turns.Row {
		return turns.Row{Table: "many", What: what, Unit: unit, AtMost: atMost}
	}
	d.listing(b, "netyard ps", 0.5)
	d.listing(b, "netyard doctor", 3)
	policy := filepath.Join(d.node.Dir, "all.yaml")
	text := "name: all\ningress: {allow: [{ports: [80]}]}\n"
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	wall, cpu := d.costs("netyard policy apply " + policy)
	row("a policy about all: the processor's time", "s", 3).Report(b, cpu)
	row("a policy about all: until it is in force", "s", 0).Report(b, wall)
	d.settle()
	row("memory", "MB", 150).Report(b, d.memory())

	d.Stop()
	told, start := len(d.Log()), time.Now()
	d.Launch()
	for out, err := "", os.ErrNotExist; err != nil; out, err = d.node.TrySh("netyard ps >/dev/null") {
		if time.Since(start) > time.Minute {
			b.Fatalf("ps after a restart: %v: %s", err, out)
		}
	}
	row("restart: until it answers `ps`", "s", 1).Report(b, time.Since(start).Seconds())
	for !strings.Contains(d.Log()[told:], "host restored from records") {
		if time.Since(start) > 5*time.Minute {
			b.Fatal("the host is not restored after a restart")
		}
		time.Sleep(20 * time.Millisecond)
	}
	row("restart: the processor's time until the host matches", "s", 5).Report(b, d.cpu())
	d.Stop()
}

// A many is a host without an engine, whose daemon gets the calls that an engine would make.
type many struct {
	*lab.Daemon

	tb       testing.TB
	node     *lab.Node
	client   *http.Client
	networks int
}

func newMany(b *testing.B, networks int) *many {
	b.Helper()
	n := lab.NewLAN(b).Node("many")
	d := &many{Daemon: n.Netyard(), tb: b, node: n, networks: networks}
	d.Program = lab.BuildShipped(b)
	d.Start()
	dial := func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", n.Inside("/run/docker/plugins/netyard-bridge.sock"))
	}
	d.client = &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 4}}
	return d
}

// call makes a call of the driver's protocol.
func (d *many) call(verb, body string) {
	r, err := d.client.Post("http://netyard/NetworkDriver."+verb, "application/json", strings.NewReader(body))
	if err != nil {
		d.tb.Errorf("%s: %v", verb, err)
		return
	}
	defer r.Body.Close()
	answer, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK || bytes.Contains(answer, []byte(`"Err"`)) {
		d.tb.Errorf("%s %s: %s %s, %v", verb, body, r.Status, answer, err)
	}
}

// grow makes endpoints, evenly on the networks, by four clients at a time.
func (d *many) grow(from, to int) {
	const clients = 4
	for i := range d.networks {
		if from > 0 {
			break
		}
		d.call("CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{},"IPv4Data":[{"AddressSpace":"LocalDefault",`+
			`"Pool":"10.%d.0.0/16","Gateway":"10.%[2]d.0.1/16"}],"IPv6Data":[]}`, id("a", i), 10+i))
	}
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for i := from + c; i < to && !d.tb.Failed(); i += clients {
				d.start(i)
			}
		})
	}
	all.Wait()
	if d.tb.Failed() {
		d.tb.FailNow()
	}
}

// id returns an ID whose first eleven digits, which name links, differ.
func id(kind string, i int) string { return fmt.Sprintf("%s%010x000", kind, i) }

func (d *many) start(i int) {
	network, endpoint, k := id("a", i%d.networks), id("e", i), i/d.networks
	d.call("CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"10.%d.%d.%d/16"},`+
		`"Options":{}}`, network, endpoint, 10+i%d.networks, 1+k/250, 2+k%250))
	d.call("Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/run/docker/netns/%012x"}`, network,
		endpoint, i))
}

func (d *many) stop(i int) {
	body := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, id("a", i%d.networks), id("e", i))
	d.call("Leave", body)
	d.call("DeleteEndpoint", body)
}

// more is the start of one more endpoint, each time another one.
func (d *many) more(name string, i int) turns.Side {
	rest := func() {
		d.stop(i)
		i++
		d.quiet(20*time.Millisecond, time.Second)
	}
	return turns.Timed(name, func() { d.start(i) }, rest)
}

// listing reports what a command costs the daemon, and how long its user waits.
func (d *many) listing(b *testing.B, command string, goal float64) {
	b.Helper()
	var walls, cpus []float64
	for range turns.Scaled(5, 2) {
		wall, cpu := d.costs(command + " >/dev/null")
		walls, cpus = append(walls, wall), append(cpus, cpu)
	}
	turns.Row{
		Table: "many", What: "`" + command + "`: the daemon's processor time", Unit: "s", AtMost: goal,
	}.Report(b, cpus...)
	turns.Row{Table: "many", What: "`" + command + "`: until it is done", Unit: "s"}.Report(b, walls...)
}

// costs returns how long a command takes, and the processor's time that the daemon needs for it, in seconds.
func (d *many) costs(command string) (wall, cpu float64) {
	before, start := d.cpu(), time.Now()
	if out, err := d.node.TrySh(command); err != nil && !strings.Contains(command, "doctor") { // which may find things
		d.tb.Fatalf("%s: %v: %s", command, err, out)
	}
	return time.Since(start).Seconds(), d.cpu() - before
}

// settle waits until the daemon has nothing left to do.
func (d *many) settle() {
	const limit = 2 * time.Minute
	if !d.quiet(time.Second, limit) {
		d.tb.Errorf("the daemon is still busy after %v", limit)
	}
}

// quiet waits until the daemon does next to nothing for a while, and says whether it did within the limit.
func (d *many) quiet(while, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		before := d.cpu()
		time.Sleep(while)
		if d.cpu()-before < while.Seconds()/100 {
			return true
		}
	}
	return false
}

// cpu returns the processor's time of the daemon in seconds.
func (d *many) cpu() (seconds float64) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.PID()))
	if err != nil || len(tasks) == 0 {
		d.tb.Fatalf("no daemon: %v", err)
	}
	for _, task := range tasks {
		raw, _ := os.ReadFile(task) // a thread may end
		ns, _, _ := strings.Cut(string(raw), " ")
		n, _ := strconv.ParseFloat(ns, 64)
		seconds += n / 1e9
	}
	return seconds
}

// memory returns how much of its memory is resident, in MB.
func (d *many) memory() float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		d.tb.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), "VmRSS:")
	kb, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
	if err != nil {
		d.tb.Fatal(err)
	}
	return kb / 1024
}
