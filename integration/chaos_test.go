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

// TestChaos: three hosts, real daemons and a real etcd; random containers and networks come and go by the driver's
// protocol, as an engine sends it, while daemons and etcd are killed, cut off from each other and tampered with. No
// address is given twice at any moment, and when all is quiet, the kernels, etcd and what was asked for are one.
// NETYARD_SEED does the operations of another run again, NETYARD_OPERATIONS more of them.
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
	t.Logf("NETYARD_SEED=%d NETYARD_OPERATIONS=%d: operations %08x", seed, len(ops), crc32.ChecksumIEEE([]byte(fmt.Sprint(ops))))
	c := newChaos(t)
	start := time.Now()
	c.play(ops)
	t.Logf("%d operations in %s: %v", len(ops), time.Since(start).Round(time.Second), c.counts)
	c.rest()
}

// An operation is one thing that happens. Which ones do is in the seed alone, whatever comes of them.
type operation struct {
	Kind          string
	Host, On, At  int // of containers: the network, and which one of it
	Named, Longer int
}

func operations(seed uint64, many int) (ops []operation) {
	rnd := rand.New(rand.NewPCG(seed, 42))
	kinds := map[string]int{
		"container": 860, "network": 20, "restart": 50, "address": 20, // what users do
		"kill": 8, "stop": 2, "etcd": 2, "cut": 4, "link": 10, "peers": 5, "bridge": 5, "down": 8, "freeze": 2, // and what happens
	}
	var names []string
	for _, kind := range []string{"container", "network", "restart", "address", "kill", "stop", "etcd", "cut", "link", "peers", "bridge", "down", "freeze"} {
		for range kinds[kind] {
			names = append(names, kind)
		}
	}
	for range many {
		ops = append(ops, operation{
			Kind: names[rnd.IntN(len(names))], Host: rnd.IntN(chaosHosts), On: rnd.IntN(chaosNetworks), At: rnd.IntN(chaosSlots),
			Named: rnd.IntN(400), Longer: rnd.IntN(40),
		})
	}
	return ops
}

// A chaosHost is a host, and what its engine would know of it. Only its own worker touches that.
type chaosHost struct {
	*lab.Node
	netyard  *lab.Daemon
	client   *http.Client
	networks [chaosNetworks]string // their ids; empty: not on this host
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
	book   map[string]string // who has an address: this test's own word
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	lab.Alone(t)
	c := &chaos{t: t, counts: map[string]int{}, why: map[string]int{}, book: map[string]string{}}
	lan := lab.NewLAN(t)
	c.etcd = lan.Node("etcd")
	url := "http://" + c.etcd.IP + ":2379"
	c.store = c.etcd.Service("etcd", "etcd", "--data-dir", filepath.Join(c.etcd.Dir, "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url, "--log-level", "error")
	c.store.Launch()
	for i := range chaosHosts {
		h := &chaosHost{Node: lan.Node(fmt.Sprint("h", i+1))}
		h.netyard = h.Netyard()
		config := filepath.Join(h.Dir, "netyard.yaml")
		text := fmt.Sprintf("cooldown: 2s\nmodes: [overlay]\netcd:\n  endpoints: [%q]\n  insecure: true\noverlay:\n  address: %s\n", url, h.IP)
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
		h.Sh("netyard gc") // or a new file would wait for an engine to say what it may have lost, and let strays alone
	}
	return c
}

func (c *chaos) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what]++
}

// failed counts what was refused or came to nothing; the log has why, once.
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

// play hands the operations out in their order: what a user does to a host, to the host's worker; what happens, happens
// here.
func (c *chaos) play(ops []operation) {
	const ahead = 4 // how far a worker may be behind
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
			case <-time.After(patience): // its worker may be waiting for what was taken away
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

// users are the kinds of operations that users do; the others happen to them.
var users = []string{"container", "network", "restart", "address"}

// happen does something to a host or to etcd; undo is done later.
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
		h.Sh(fmt.Sprintf("nft 'table inet %s { chain o { type filter hook output priority -300 ; ip daddr %s drop ; } ; chain i { type filter hook input priority -300 ; ip saddr %[2]s drop ; } ; }'", name, c.etcd.IP))
		return func() { h.Sh("nft delete table inet", name, "2>/dev/null; true") }
	case "link":
		try(fmt.Sprintf(some, "nyx-", 1+op.On, "ip link del $l"))
	case "bridge":
		try(fmt.Sprintf(some, "nyb-", 1+op.On, "ip link del $l"))
	case "down":
		try(fmt.Sprintf(some, "ny[bvx]-", 1+op.At, "ip link set $l down"))
	case "peers":
		try(fmt.Sprintf(some, "nyx-", 1+op.On, "ip neigh flush dev $l nud permanent; bridge fdb show dev $l | while read m x y r; do bridge fdb del $m dev $l; done"))
	}
	return nil
}

// use does what a user does on a host.
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
	case h.networks[op.On] == "": // a container wants it
		c.createNetwork(h, op.On)
	case op.Kind == "restart" && is != nil:
		if _, err := h.call("NetworkDriver.Leave", is.ids(h, op.On)); err == nil {
			_, err = h.call("NetworkDriver.Join", is.join(h, op.On))
			if err == nil {
				return
			}
		}
		c.remove(h, op.On, op.At)
	case op.Kind == "address" && is == nil: // asked for, and given back without having been used
		if a, err := c.request(h, op.On, ""); err == nil {
			c.release(h, op.On, a)
		}
	case is != nil:
		c.remove(h, op.On, op.At)
	default:
		c.start(h, op)
	}
}

// call is one call of an engine's: as an engine does, it is tried again while nobody listens, and only then.
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

// sure makes a call that takes something away until it is answered.
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
	_, err := h.call("IpamDriver.RequestPool", map[string]any{"AddressSpace": "netyard-overlay", "Pool": chaosPool(on), "Options": map[string]string{"overlay": chaosName(on)}})
	if err == nil {
		_, err = h.call("NetworkDriver.CreateNetwork", map[string]any{
			"NetworkID": id, "Options": map[string]any{"com.docker.network.generic": map[string]string{"overlay": chaosName(on)}},
			"IPv4Data": []any{map[string]any{"AddressSpace": "netyard-overlay", "Pool": chaosPool(on), "Gateway": gateway}},
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

// request asks for an address, and notes whose it is. Nobody else may have it.
func (c *chaos) request(h *chaosHost, on int, want string) (netip.Prefix, error) {
	answer, err := h.call("IpamDriver.RequestAddress", map[string]any{"PoolID": chaosPoolID(on), "Address": want, "Options": map[string]string{}})
	if err != nil {
		return netip.Prefix{}, err
	}
	text, _ := answer["Address"].(string)
	a, err := netip.ParsePrefix(text)
	if err != nil || want != "" && a.Addr().String() != want {
		c.t.Errorf("%s: asked for address %q and got %q", h.Name, want, text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := fmt.Sprint(on, " ", a.Addr())
	if has := c.book[key]; has != "" {
		c.t.Errorf("%s of network %d is %s's, and was given to %s", a, on, has, h.Name)
	}
	c.book[key] = h.Name
	return a, err
}

func (c *chaos) release(h *chaosHost, on int, a netip.Prefix) {
	c.mu.Lock()
	delete(c.book, fmt.Sprint(on, " ", a.Addr())) // from the moment it is said
	c.mu.Unlock()
	c.sure(h, "IpamDriver.ReleaseAddress", map[string]any{"PoolID": chaosPoolID(on), "Address": a.Addr().String()})
}

// start runs a container, one in four with an address of its choice.
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
	if err != nil { // as docker rm does afterwards
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
