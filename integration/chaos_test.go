package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"netyard/integration/lab"
)

const (
	chaosHosts    = 3
	chaosNetworks = 3
	chaosSlots    = 10 // containers that a host can have on a network
)

// TestChaos: three hosts, real daemons and a real etcd; random containers and networks are created and removed by the
// driver's protocol, as an engine would, while daemons and etcd are killed and cut off, and the kernels are tampered
// with. No address is granted twice at any moment, and at the end the kernels, etcd and the requests agree.
// NETYARD_SEED repeats the operations of another run; NETYARD_OPERATIONS sets their number.
func TestChaos(t *testing.T) {
	t.Parallel()
	number := func(name string, otherwise uint64) uint64 {
		n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
		if err != nil {
			return otherwise
		}
		return n
	}
	seed := number("NETYARD_SEED", uint64(time.Now().UnixNano()))
	ops := operations(seed, int(number("NETYARD_OPERATIONS", 500)))
	t.Logf("NETYARD_SEED=%d NETYARD_OPERATIONS=%d: operations %08x", seed, len(ops),
		crc32.ChecksumIEEE([]byte(fmt.Sprint(ops))))
	c := newChaos(t)
	start := time.Now()
	c.play(ops)
	t.Logf("%d operations in %s: %v", len(ops), time.Since(start).Round(time.Second), c.counts)
	c.rest()
}

// An operation is one event. The seed alone determines the operations, whatever their results.
type operation struct {
	Kind          string
	Host, On, At  int // On is the network of a container, and At its slot there
	Named, Longer int
}

// operations returns the operations of a seed.
func operations(seed uint64, many int) (ops []operation) {
	rnd := rand.New(rand.NewPCG(seed, 42))
	kinds := map[string]int{
		"container": 860, "network": 20, "restart": 50, "address": 20, // by users
		// faults
		"kill": 8, "stop": 2, "etcd": 2, "cut": 4, "link": 10, "peers": 5, "bridge": 5, "down": 8, "freeze": 2,
	}
	var names []string
	for _, kind := range []string{
		"container", "network", "restart", "address",
		"kill", "stop", "etcd", "cut", "link", "peers", "bridge", "down", "freeze",
	} {
		for range kinds[kind] {
			names = append(names, kind)
		}
	}
	for range many {
		ops = append(ops, operation{
			Kind: names[rnd.IntN(len(names))], Host: rnd.IntN(chaosHosts), On: rnd.IntN(chaosNetworks),
			At: rnd.IntN(chaosSlots), Named: rnd.IntN(400), Longer: rnd.IntN(40),
		})
	}
	return ops
}

// A chaosHost is a host with what its engine would know. Only its own worker accesses that.
type chaosHost struct {
	*lab.Node
	netyard  *lab.Daemon
	client   *http.Client
	networks [chaosNetworks]string // their IDs; empty: not on this host
	slots    [chaosNetworks][chaosSlots]*chaosContainer
	made     int
	away     bool // its daemon is stopped, or frozen
}

type chaosContainer struct {
	id   string
	addr netip.Prefix
	mac  string
}

type chaos struct {
	t     *testing.T
	etcd  *lab.Node
	store *lab.Service
	hosts []*chaosHost

	mu     sync.Mutex
	counts map[string]int
	why    map[string]int
	book   map[string]string // the host of each granted address, as this test recorded it
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	lab.Alone(t)
	c := &chaos{t: t, counts: map[string]int{}, why: map[string]int{}, book: map[string]string{}}
	lan := lab.NewLAN(t)
	c.etcd = lan.Node("etcd")
	url := "http://" + c.etcd.IP + ":2379"
	c.store = c.etcd.Service("etcd", "etcd", "--data-dir", filepath.Join(c.etcd.Dir, "etcd"),
		"--listen-client-urls", url, "--advertise-client-urls", url, "--log-level", "error")
	c.store.Launch()
	for i := range chaosHosts {
		h := &chaosHost{Node: lan.Node(fmt.Sprint("h", i+1))}
		h.netyard = h.Netyard()
		config := filepath.Join(h.Dir, "netyard.yaml")
		text := fmt.Sprintf("cooldown: 2s\nmodes: [overlay]\n"+
			"etcd:\n  endpoints: [%q]\n  insecure: true\noverlay:\n  address: %s\n", url, h.IP)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h.netyard.Start("--config", config)
		h.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", h.Inside("/run/docker/plugins/netyard-overlay.sock"))
			},
		}}
		c.hosts = append(c.hosts, h)
	}
	for _, h := range c.hosts {
		eventually(t, h.Name+" joins the cluster", func() bool {
			return strings.Contains(h.netyard.Log(), "joined the cluster")
		})
		h.Sh("netyard gc") // otherwise a new database waits for an engine before strays are removed
	}
	return c
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// failed counts an operation that failed, and logs each reason once.
func (c *chaos) failed(what string, err error) {
	c.count(what + " failed")
	c.mu.Lock()
	defer c.mu.Unlock()
	key := what + ": " + digits.ReplaceAllString(err.Error(), "0")
	if c.why[key]++; c.why[key] == 1 {
		c.t.Logf("%s: %v", what, err)
	}
}

var digits = regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-f]*`)

// play performs the operations in order: those of users are passed to their host's worker, and faults happen here.
func (c *chaos) play(ops []operation) {
	const ahead = 4 // operations that a worker may lag behind
	var workers sync.WaitGroup
	var queues []chan operation
	for _, h := range c.hosts {
		q := make(chan operation, ahead)
		queues = append(queues, q)
		workers.Add(1)
		go func() {
			defer workers.Done()
			for op := range q {
				c.use(h, op)
			}
		}()
	}
	later := map[int][]func(){}
	mend := func(until int) {
		for i, fs := range later {
			for _, f := range fs {
				if i <= until {
					f()
				}
			}
			if i <= until {
				delete(later, i)
			}
		}
	}
	for i, op := range ops {
		mend(i)
		if !slices.Contains(users, op.Kind) {
			if undo := c.happen(op); undo != nil {
				later[i+1+op.Longer] = append(later[i+1+op.Longer], undo)
			}
			continue
		}
		const patience = 2 * time.Second
		for sent := false; !sent; {
			select {
			case queues[op.Host] <- op:
				sent = true
			case <-time.After(patience): // its worker may be waiting for a fault to be undone
				mend(len(ops) + i)
			}
		}
	}
	mend(2 * len(ops))
	for _, q := range queues {
		close(q)
	}
	workers.Wait()
}

// users are the kinds of operations by users; the others are faults.
var users = []string{"container", "network", "restart", "address"}

// happen causes a fault of a host or of etcd; undo, if any, is to be called later.
func (c *chaos) happen(op operation) (undo func()) {
	h := c.hosts[op.Host]
	c.count(op.Kind)
	try := func(cmd string) { _, _ = h.TrySh(cmd) } // there may be no such link
	const some = "for l in $(ls /sys/class/net | grep ^%s | tail -n +%d | head -1); do %s; done"
	switch op.Kind {
	case "kill", "stop", "freeze":
		if h.away {
			return nil
		}
		h.away = op.Kind != "kill"
		if op.Kind == "freeze" {
			h.netyard.Signal(syscall.SIGSTOP)
			return func() { h.netyard.Signal(syscall.SIGCONT); h.away = false }
		}
		h.netyard.Kill()
		if !h.away {
			h.netyard.Launch()
			return nil
		}
		return func() { h.netyard.Launch(); h.away = false }
	case "etcd":
		if !c.store.Running() {
			return nil
		}
		c.store.Kill()
		return func() { c.store.Launch() }
	case "cut":
		name := fmt.Sprint("cut", op.Longer)
		h.Sh(fmt.Sprintf("nft 'table inet %s { "+
			"chain o { type filter hook output priority -300 ; ip daddr %s drop ; } ; "+
			"chain i { type filter hook input priority -300 ; ip saddr %[2]s drop ; } ; }'", name, c.etcd.IP))
		return func() { h.Sh("nft delete table inet", name, "2>/dev/null; true") }
	case "link":
		try(fmt.Sprintf(some, "nyx-", 1+op.On, "ip link del $l"))
	case "bridge":
		try(fmt.Sprintf(some, "nyb-", 1+op.On, "ip link del $l"))
	case "down":
		try(fmt.Sprintf(some, "ny[bvx]-", 1+op.At, "ip link set $l down"))
	case "peers":
		try(fmt.Sprintf(some, "nyx-", 1+op.On, "ip neigh flush dev $l nud permanent; "+
			"bridge fdb show dev $l | while read m x y r; do bridge fdb del $m dev $l; done"))
	}
	return nil
}

// use performs an operation of a user on a host.
func (c *chaos) use(h *chaosHost, op operation) {
	c.count(op.Kind)
	is := h.slots[op.On][op.At]
	switch {
	case op.Kind == "network" && h.networks[op.On] == "":
		c.createNetwork(h, op.On)
	case op.Kind == "network":
		for at := range h.slots[op.On] {
			c.remove(h, op.On, at)
		}
		c.removeNetwork(h, op.On)
	case h.networks[op.On] == "": // a container needs the network
		c.createNetwork(h, op.On)
	case op.Kind == "restart" && is != nil:
		if _, err := h.call("NetworkDriver.Leave", is.ids(h, op.On)); err == nil {
			_, err = h.call("NetworkDriver.Join", is.join(h, op.On))
			if err == nil {
				return
			}
		}
		c.remove(h, op.On, op.At)
	case op.Kind == "address" && is == nil: // requested, and released without being used
		if a, err := c.request(h, op.On, ""); err == nil {
			c.release(h, op.On, a)
		}
	case is != nil:
		c.remove(h, op.On, op.At)
	default:
		c.start(h, op)
	}
}

// call makes one call of an engine: like an engine, it retries while nobody listens, and only then.
func (h *chaosHost) call(verb string, body map[string]any) (answer map[string]any, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := h.client.Post("http://x/"+verb, "application/json", bytes.NewReader(raw))
		if err != nil {
			var dial *net.OpError
			if errors.As(err, &dial) && dial.Op == "dial" && time.Now().Before(end) {
				continue
			}
			return nil, err
		}
		raw, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &answer); err != nil {
			return nil, err
		}
		if text, _ := answer["Err"].(string); text != "" {
			return answer, errors.New(text)
		}
		return answer, nil
	}
}

// sure repeats a call that removes something until it succeeds, for two minutes.
func (c *chaos) sure(h *chaosHost, verb string, body map[string]any) {
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err = h.call(verb, body); err == nil {
			return
		}
	}
	c.t.Errorf("%s: %s %v: %v", h.Name, verb, body, err)
}

func chaosName(on int) string   { return fmt.Sprint("net", on) }
func chaosPool(on int) string   { return fmt.Sprintf("10.%d.0.0/24", 50+on) }
func chaosPoolID(on int) string { return "overlay-" + chaosName(on) + "@" + chaosPool(on) }

func (h *chaosHost) newID() string {
	h.made++
	return fmt.Sprintf("%02x%09x%053x", h.Name[1], h.made, 0)
}

func (c *chaos) createNetwork(h *chaosHost, on int) {
	id := h.newID()
	gateway := fmt.Sprintf("10.%d.0.1/24", 50+on)
	options := map[string]string{"overlay": chaosName(on)}
	_, err := h.call("IpamDriver.RequestPool", map[string]any{
		"AddressSpace": "netyard-overlay", "Pool": chaosPool(on), "Options": options,
	})
	if err == nil {
		_, err = h.call("NetworkDriver.CreateNetwork", map[string]any{
			"NetworkID": id, "Options": map[string]any{"com.docker.network.generic": options},
			"IPv4Data": []any{map[string]any{
				"AddressSpace": "netyard-overlay", "Pool": chaosPool(on), "Gateway": gateway,
			}},
		})
	}
	if err == nil {
		h.networks[on] = id
		return
	}
	c.failed("network", err)
	c.sure(h, "NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": id})
}

func (c *chaos) removeNetwork(h *chaosHost, on int) {
	c.sure(h, "NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": h.networks[on]})
	c.sure(h, "IpamDriver.ReleasePool", map[string]any{"PoolID": chaosPoolID(on)})
	h.networks[on] = ""
}

func (is *chaosContainer) ids(h *chaosHost, on int) map[string]any {
	return map[string]any{"NetworkID": h.networks[on], "EndpointID": is.id}
}

func (is *chaosContainer) join(h *chaosHost, on int) map[string]any {
	body := is.ids(h, on)
	body["SandboxKey"] = "/var/run/docker/netns/" + is.id[:12]
	return body
}

// request requests an address, records its host, and fails the test if another host has it.
func (c *chaos) request(h *chaosHost, on int, want string) (netip.Prefix, error) {
	answer, err := h.call("IpamDriver.RequestAddress",
		map[string]any{"PoolID": chaosPoolID(on), "Address": want, "Options": map[string]string{}})
	if err != nil {
		return netip.Prefix{}, err
	}
	text, _ := answer["Address"].(string)
	a, err := netip.ParsePrefix(text)
	if err != nil || want != "" && a.Addr().String() != want {
		c.t.Errorf("%s: requested address %q and got %q", h.Name, want, text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := fmt.Sprint(on, " ", a.Addr())
	if has := c.book[key]; has != "" {
		c.t.Errorf("%s of network %d is %s's, and was granted to %s", a, on, has, h.Name)
	}
	c.book[key] = h.Name
	return a, err
}

func (c *chaos) release(h *chaosHost, on int, a netip.Prefix) {
	c.mu.Lock()
	delete(c.book, fmt.Sprint(on, " ", a.Addr())) // free from the time of the request on
	c.mu.Unlock()
	c.sure(h, "IpamDriver.ReleaseAddress", map[string]any{"PoolID": chaosPoolID(on), "Address": a.Addr().String()})
}

// start starts a container, one in four with a requested address.
func (c *chaos) start(h *chaosHost, op operation) {
	want := ""
	if op.Named < 100 {
		want = fmt.Sprintf("10.%d.0.%d", 50+op.On, 2+op.Named)
	}
	a, err := c.request(h, op.On, want)
	if err != nil {
		c.failed("address", err)
		return
	}
	b := a.Addr().As4()
	is := &chaosContainer{id: h.newID(), addr: a, mac: fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])}
	h.slots[op.On][op.At] = is
	body := is.ids(h, op.On)
	body["Interface"] = map[string]string{"Address": a.String()}
	if _, err = h.call("NetworkDriver.CreateEndpoint", body); err == nil {
		_, err = h.call("NetworkDriver.Join", is.join(h, op.On))
	}
	if err != nil { // removed as by docker rm
		c.failed("start", err)
		c.remove(h, op.On, op.At)
	}
}

func (c *chaos) remove(h *chaosHost, on, at int) {
	is := h.slots[on][at]
	if is == nil {
		return
	}
	c.sure(h, "NetworkDriver.Leave", is.ids(h, on))
	c.sure(h, "NetworkDriver.DeleteEndpoint", is.ids(h, on))
	c.release(h, on, is.addr)
	h.slots[on][at] = nil
}
