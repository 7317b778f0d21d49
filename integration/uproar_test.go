package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
	"netyard/kernel/core"
)

const (
	uproarSlots = 6 // containers of a runtime, and as many of the engine
	// uproarTime is how long the short one lasts; NETYARD_CHAOS sets another duration.
	uproarTime = 15 * time.Second
	// uproarSeed is the seed of the short one, so that a run that fails says something about what has changed.
	uproarSeed = 14
	// uproarRest is how long all that nobody reports may stay: netyard looks for it once a minute, and twice.
	uproarRest = 4 * time.Minute
)

// TestUproar: on one host, with an engine and without, containers come and go by CNI and by the engine, while plugins,
// the daemon and the engine are killed, links, sandboxes and rules are removed, and the records are lost. When that has
// ended, doctor finds nothing, and the kernel, the records and the engines have the same.
// NETYARD_SEED sets other operations; NETYARD_CHAOS=20m sets how long they go on.
func TestUproar(t *testing.T) {
	t.Parallel()
	t.Run("no engine", func(t *testing.T) {
		t.Parallel()
		h := lab.New(t, lab.Engine2010, lab.NoEngine())
		h.Netyard.Args = append(h.Netyard.Args, "--containerd-address", "")
		uproarOn(t, h, false)
	})
	for _, e := range lab.Chosen(lab.Engine285) {
		t.Run("engine="+string(e), func(t *testing.T) {
			t.Parallel()
			uproarOn(t, lab.New(t, e), true)
		})
	}
}

// An uproar is a host in uproar.
type uproar struct {
	t      *testing.T
	h      *lab.Host
	engine bool
	slots  [uproarSlots]struct {
		id       string // of the container that has the slot; empty: none
		made     int
		attached bool // a runtime has the answer of its ADD, and its link was left alone since
	}
	counts map[string]int
}

func uproarOn(t *testing.T, h *lab.Host, engine bool) {
	t.Helper()
	seed := uint64(number(t, "NETYARD_SEED", uproarSeed))
	long := uproarTime
	if text := os.Getenv("NETYARD_CHAOS"); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	u := &uproar{t: t, h: h, engine: engine, counts: map[string]int{}}
	h.Netyard.Start()
	h.StartContainerd() // it has netyard's plugin
	h.Sh("netyard network create web --subnet 10.77.0.0/24")
	if engine {
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.78.0.0/24 one")
		h.Docker("network create -d netyard --ipam-driver netyard --subnet 10.79.0.0/24 two")
	}
	t.Logf("NETYARD_SEED=%d NETYARD_CHAOS=%s", seed, long)
	rnd := rand.New(rand.NewPCG(seed, 14))
	kinds := u.kinds()
	for end := time.Now().Add(long); time.Now().Before(end) && !t.Failed(); {
		u.happen(kinds[rnd.IntN(len(kinds))], rnd)
	}
	t.Logf("%v", u.counts)
	u.rest()
	for at := range u.slots {
		u.del(at)
	}
	eventually(t, "no attachment is left", func() bool {
		return !slices.ContainsFunc(ps(t, h), func(e api.Endpoint) bool { return e.Attachment != "" })
	})
}

// kinds returns the kinds of operations, each as often as it is likely.
func (u *uproar) kinds() (all []string) {
	weights := map[string]int{
		"add": 30, "del": 10, "vanish": 6, "plugin": 8, "many": 6, "kill": 8, // by users and runtimes
		"link": 3, "bridge": 2, "rules": 3, "lose": 1, // by others
	}
	if u.engine {
		maps.Copy(weights, map[string]int{
			"run": 16, "rm": 8, "restart": 6, "connect": 8, "disconnect": 4, "engine": 1, "lose": 0,
		})
	}
	for _, kind := range slices.Sorted(maps.Keys(weights)) {
		all = append(all, slices.Repeat([]string{kind}, weights[kind])...)
	}
	return all
}

// happen does one operation. It takes the same numbers from rnd whatever the results.
func (u *uproar) happen(kind string, rnd *rand.Rand) {
	at, wait := rnd.IntN(uproarSlots), rnd.IntN(40)
	u.counts[kind]++
	h, name := u.h, fmt.Sprint("d", at)
	try := func(line string) { _, _ = h.TrySh(line) }
	docker := func(words ...string) { // while the engine or netyard is away, this fails
		if _, err := h.TryDocker(words...); err != nil {
			u.counts[kind+" failed"]++
		}
	}
	switch kind {
	case "add":
		u.add(at)
	case "del":
		u.del(at)
	case "vanish":
		u.vanish(at)
	case "plugin": // it is killed while it waits for the answer
		u.vanish(at)
		u.prepare(at)
		try(fmt.Sprintf("(%s) >/dev/null 2>&1 & sleep 0.0%02d; kill -9 $(pgrep -f '^/opt/cni/bin/netyard'); wait",
			u.command("ADD", at), wait))
	case "many":
		var all sync.WaitGroup
		for i := range uproarSlots {
			u.vanish(i)
			u.prepare(i)
			all.Go(func() { u.slots[i].attached = u.call("ADD", i) == nil })
		}
		all.Wait()
	case "kill", "lose":
		u.killDaemon(kind == "lose", wait, at)
	case "link":
		if u.slots[at].id != "" {
			try("ip -n " + u.slots[at].id + " link del eth0")
			u.slots[at].attached = false
		}
	case "bridge":
		try("for l in $(ls /sys/class/net | grep ^nyb- | head -1); do ip link del $l; done")
	case "rules":
		try("nft delete table inet netyard; nft delete table bridge netyard; ip neigh flush all")
		if !u.engine { // an engine does not make its own rules again
			try("nft flush ruleset")
		}
	case "run":
		docker("run -d --name", name, "--network one -p", fmt.Sprint(8000+at, ":80"), lab.Image, "sleep 1d")
	case "rm":
		docker("rm -f", name)
	case "restart":
		docker("restart -t 0", name)
	case "connect", "disconnect":
		docker("network", kind, "two", name)
	case "engine":
		killEngine(h)
		h.Dockerd.Start()
	}
}

// killDaemon kills the daemon, at once or while it answers, and starts it again; lose: its records are lost meanwhile.
func (u *uproar) killDaemon(lose bool, wait, at int) {
	u.vanish(at)
	u.prepare(at)
	answered := make(chan error, 1)
	go func() { answered <- u.call("ADD", at) }()
	<-time.After(time.Duration(wait) * time.Millisecond) // the moment is what is random
	u.h.Netyard.Kill()
	if lose {
		u.h.Sh("rm -f", u.h.Dir+"/state/netyard.db")
	}
	u.h.Netyard.Start()
	if err := <-answered; err == nil && !lose {
		u.slots[at].attached = true
	}
	if lose { // without an engine nobody knows them: their runtimes make them again
		for i := range u.slots {
			u.vanish(i)
		}
	}
}

// prepare makes a new container's sandbox.
func (u *uproar) prepare(at int) {
	s := &u.slots[at]
	s.made++
	s.id, s.attached = fmt.Sprintf("s%d-%d", at, s.made), false
	u.h.Sh("ip netns add", s.id)
}

// command is the call of the plugin for a slot's container, which has two host ports.
func (u *uproar) command(verb string, at int) string {
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"web","type":"netyard","network":"web","runtimeConfig":{`+
		`"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"},`+
		`{"hostPort":%[1]d,"containerPort":80,"protocol":"udp"}]}}`, 9000+at)
	return fmt.Sprintf("echo '%s' | CNI_COMMAND=%s CNI_CONTAINERID=%s CNI_NETNS=/run/netns/%[3]s CNI_IFNAME=eth0 "+
		"CNI_PATH=/opt/cni/bin /opt/cni/bin/netyard", conf, verb, u.slots[at].id)
}

func (u *uproar) call(verb string, at int) error {
	_, err := u.h.TrySh(u.command(verb, at))
	return err
}

// add attaches a container, which succeeds: who had its ports and address is gone. Right after the removal of a bridge
// it may not, so the runtime tries once more, as one of Kubernetes does.
func (u *uproar) add(at int) {
	if u.slots[at].attached {
		return
	}
	u.vanish(at)
	u.prepare(at)
	err := u.call("ADD", at)
	if err != nil {
		u.counts["add failed"]++
		<-time.After(time.Second)
		err = u.call("ADD", at)
	}
	if err != nil {
		u.t.Errorf("ADD %s: %v", u.slots[at].id, err)
	}
	u.slots[at].attached = true
}

// del removes a container as a runtime does.
func (u *uproar) del(at int) {
	if u.slots[at].id == "" {
		return
	}
	if err := u.call("DEL", at); err != nil {
		u.t.Errorf("DEL %s: %v", u.slots[at].id, err)
	}
	u.vanish(at)
}

// vanish removes a container's sandbox, and nobody tells netyard.
func (u *uproar) vanish(at int) {
	s := &u.slots[at]
	if s.id != "" {
		u.h.Sh("ip netns del", s.id)
	}
	s.id, s.attached = "", false
}

// rest waits until doctor is silent and everything agrees.
func (u *uproar) rest() {
	u.t.Helper()
	for at := range u.slots {
		if !u.slots[at].attached {
			u.vanish(at)
		}
	}
	var wrong []string
	for end := time.Now().Add(uproarRest); time.Now().Before(end); time.Sleep(time.Second) {
		if wrong = u.differences(); len(wrong) == 0 {
			return
		}
	}
	u.t.Errorf("differences at the end:\n%s", strings.Join(wrong, "\n"))
}

// differences returns what doctor says, and what the kernel, the records and the engines do not agree about.
func (u *uproar) differences() (wrong []string) {
	ask := func(line string) []string {
		out, err := u.h.TrySh(line)
		if err != nil {
			wrong = append(wrong, line+": "+err.Error())
		}
		return strings.Split(strings.TrimSpace(out), "\n")
	}
	for _, line := range ask("netyard doctor 2>&1; true") {
		if line != "" {
			wrong = append(wrong, "doctor: "+line)
		}
	}
	var have, want []string
	for at := range u.slots {
		if u.slots[at].attached {
			want = append(want, "ps: "+u.slots[at].id+" on web", fmt.Sprint("port ", 9000+at))
		}
	}
	if u.engine {
		want = append(want, u.running()...)
	}
	for _, e := range parse[[]api.Endpoint](u.t, strings.Join(ask("netyard ps --json"), "\n")) {
		who := e.Container
		if e.Attachment != "" {
			who = e.Attachment
		}
		have = append(have, "ps: "+who+" on "+e.Network)
		want = append(want, "link "+core.Name(core.VethPrefix, e.ID))
		if e.State != "up" {
			wrong = append(wrong, fmt.Sprintf("ps: %s is %s", who, e.State))
		}
	}
	for _, link := range ask("ls /sys/class/net") {
		if strings.HasPrefix(link, "nyv-") {
			have = append(have, "link "+link)
		}
	}
	have = append(have, u.portsInKernel(ask("nft list set inet netyard loop4"))...)
	slices.Sort(want)
	return append(wrong, differ(have, want)...)
}

// running returns the containers that the engine runs, with their networks and ports, as differences compares them.
func (u *uproar) running() (all []string) {
	out, err := u.h.TryDocker(`ps --format '{{.Names}} {{.Networks}}'`)
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(out) {
		name, networks, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" {
			continue
		}
		for n := range strings.SplitSeq(networks, ",") {
			all = append(all, "ps: "+name+" on "+n)
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "d")); err == nil {
			all = append(all, fmt.Sprint("port ", 8000+n))
		}
	}
	return all
}

// portsInKernel returns the TCP ports in the lines of a set of ports.
func (*uproar) portsInKernel(lines []string) (all []string) {
	_, elements, _ := strings.Cut(strings.Join(lines, " "), "elements = {")
	elements, _, _ = strings.Cut(elements, "}")
	for e := range strings.SplitSeq(elements, ",") {
		if proto, port, ok := strings.Cut(strings.TrimSpace(e), " . "); ok && proto == "tcp" {
			all = append(all, "port "+port)
		}
	}
	return all
}
