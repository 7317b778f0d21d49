package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"netyard/cli/api"
	"netyard/yard/book"
	"netyard/yard/event"
)

// TestMain lets scripts call netyard. TEST_WIDTH is the width of its terminal.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"netyard": func() {
		width, _ := strconv.Atoi(os.Getenv("TEST_WIDTH"))
		p := Program{Version: "v1.2.3", Stdout: os.Stdout, Stderr: os.Stderr, Width: width}
		os.Exit(p.Run(context.Background(), os.Args))
	}})
}

// TestScripts runs testdata/*.txtar. It adds two commands to those of testscript: daemon NAME starts the fake daemon of
// that name (see worlds), and exit CODE netyard … runs netyard and checks its exit code.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("NETYARD_RUN_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("TZ", "UTC")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // with -race, every command would take a second longer
			return os.Mkdir(filepath.Join(e.WorkDir, "run"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"daemon": startDaemon, "exit": exitWith},
	})
}

func exitWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE command…")
	}
	got, status := 0, &exec.ExitError{}
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &status) {
		got = status.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if args[0] != strconv.Itoa(got) {
		ts.Fatalf("exit code %d, not %s", got, args[0])
	}
}

// A world has the answers of a fake daemon.
type world struct {
	networks  []api.Network
	endpoints []api.Endpoint
	leases    []api.Lease
	ports     []api.Port
	findings  []book.Finding
	events    []event.Event
	broken    bool // every request fails
}

func worlds() map[string]world {
	return map[string]world{
		"busy": {
			networks: someNetworks(), endpoints: someEndpoints(), leases: someLeases(), ports: somePorts(),
			findings: someFindings(), events: someEvents(),
		},
		"empty": {
			networks: []api.Network{}, endpoints: []api.Endpoint{}, leases: []api.Lease{}, ports: []api.Port{},
			findings: []book.Finding{}, events: []event.Event{},
		},
		"broken": {broken: true},
		"noted":  {findings: []book.Finding{{Kind: book.Note, Text: "IPv4 from wg0 to eth0 is not forwarded"}}},
		"hostile": {endpoints: []api.Endpoint{
			{ID: id("e9"), Container: "a\x1b[31mb\nc", Network: "$(reboot)", State: "up"},
		}},
	}
}

func id(start string) string { return start + strings.Repeat("0", 64-len(start)) }

func someNetworks() []api.Network {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return []api.Network{
		{
			ID: id("aa11"), Name: "web", Mode: "bridge", State: "ready", Endpoints: 2, Created: at,
			Subnets: []api.Subnet{
				{Pool: "10.224.0.0/24", Gateway: "10.224.0.1"}, {Pool: "fd00:1::/64", Gateway: "fd00:1::1"},
			},
			Options: map[string]string{"mtu": "1400"},
			Objects: []string{"bridge nyb-aa1100000000", "address 10.224.0.1/24 on nyb-aa1100000000"},
		},
		{ID: id("bb22"), Mode: "none", State: "pending", Internal: true, Subnets: []api.Subnet{}, Created: at},
		{
			ID: id("cc33"), Name: "backend", Mode: "bridge", State: "ready", Endpoints: 2, Created: at,
			Subnets: []api.Subnet{{Pool: "10.224.1.0/24"}},
		},
	}
}

func someEndpoints() []api.Endpoint {
	at := time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	return []api.Endpoint{
		{
			ID: id("e1"), Container: "shop-frontend-1", ContainerID: id("c1"), Image: "nginx:1.27", PID: 4711,
			Engine: "docker", Network: "web", NetworkID: id("aa11"), Mode: "bridge",
			Addresses: []string{"10.224.0.2/24", "fd00:1::2/64"}, MAC: "02:42:0a:e0:00:02",
			Interface: "nyv-e10000000000", Ports: []string{"0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"},
			State: "up", Sandbox: "/var/run/docker/netns/c1c1c1c1c1c1", Created: at, Joined: at.Add(time.Second),
		},
		{
			ID: id("e2"), ContainerID: id("c2"), Engine: "docker", Network: "web", NetworkID: id("aa11"),
			Mode: "bridge", Addresses: []string{"10.224.0.3/24"}, MAC: "02:42:0a:e0:00:03",
			Interface: "nyv-e20000000000", Ports: []string{}, State: "dead", Created: at,
		},
		{
			ID: id("e3"), NetworkID: id("bb22"), Mode: "none", Addresses: []string{}, Ports: []string{},
			State: "created", Created: at,
		},
		{
			ID: id("e5"), Container: "worker", Engine: "docker", Network: "backend", NetworkID: id("cc33"),
			Mode: "bridge", Addresses: []string{"10.224.1.10/24"}, MAC: "02:42:0a:e0:01:0a",
			Interface: "nyv-e50000000000", Ports: []string{}, State: "up", Created: at,
		},
		{
			ID: id("e4"), Container: "db", Engine: "docker", Network: "backend", NetworkID: id("cc33"),
			Mode: "bridge", Addresses: []string{"10.224.1.9/24"}, MAC: "02:42:0a:e0:01:09",
			Interface: "nyv-e40000000000", Ports: []string{}, State: "up", Created: at,
		},
	}
}

func someLeases() []api.Lease {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return []api.Lease{
		{
			Pool: "10.224.0.0/24", Address: "10.224.0.10", Network: "web", Kind: "dynamic", State: "active",
			MAC: "02:42:0a:e0:00:0a", Since: at,
		},
		{
			Pool: "10.224.0.0/24", Address: "10.224.0.9", Network: "web", Kind: "static", State: "held",
			Name: "db", MAC: "02:42:0a:e0:00:09", Since: at,
		},
		{Pool: "10.224.0.0/24", Address: "10.224.0.1", Network: "web", Kind: "gateway", State: "active", Since: at},
		{Pool: "10.20.0.0/16", Address: "10.20.0.7", Kind: "reserved", State: "reserved", Since: at},
	}
}

func somePorts() []api.Port {
	return []api.Port{
		{
			Proto: "udp", HostIP: "0.0.0.0", HostPort: 10000, HostPortEnd: 19999,
			Address: "10.224.1.10", Port: 10000, PortEnd: 19999,
			Container: "worker", Engine: "docker", Network: "backend", State: api.PortPublished,
		},
		{
			Proto: "tcp", HostIP: "::", HostPort: 8080, HostPortEnd: 8080,
			Address: "fd00:1::2", Port: 80, PortEnd: 80,
			Container: "shop-frontend-1", Engine: "docker", Network: "web", State: api.PortPublished,
		},
		{
			Proto: "tcp", HostIP: "0.0.0.0", HostPort: 8080, HostPortEnd: 8080,
			Address: "10.224.0.2", Port: 80, PortEnd: 80,
			Container: "shop-frontend-1", Engine: "docker", Network: "web", State: api.PortPublished,
		},
		{
			Proto: "tcp", HostIP: "127.0.0.1", HostPort: 5432, HostPortEnd: 5432,
			Address: "10.224.1.9", Port: 5432, PortEnd: 5432,
			EndpointID: id("e4"), NetworkID: id("cc33"), State: api.PortConflict, Owner: "process postgres (pid 612)",
		},
		{
			Proto: "tcp", HostIP: "10.224.2.2", HostPort: 443, HostPortEnd: 443,
			Address: "10.224.2.2", Port: 443, PortEnd: 443, Routed: true,
			Container: "edge", Engine: "docker", Network: "routed", State: api.PortPublished,
		},
	}
}

func someEvents() []event.Event {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return []event.Event{
		{
			ID: 1, Time: at, Type: event.NetworkCreated, NetworkID: id("aa11"),
			Text: "network aa1100000000 of mode host is up",
		},
		{
			ID: 2, Time: at.Add(time.Minute), Type: event.PortConflict, Network: "web", NetworkID: id("aa11"),
			EndpointID: id("e1"), Container: "shop", Port: "0.0.0.0:80->80/tcp", Owner: "process nginx (pid 612)",
			Text: "port 0.0.0.0:80->80/tcp is not container shop's: process nginx (pid 612) has it",
		},
	}
}

func someFindings() []book.Finding {
	return []book.Finding{
		{Kind: book.Stray, Text: "link nyv-dead00000000 belongs to no network or endpoint", Removable: true},
		{
			Kind: book.Orphan, Network: "backend", Removable: true,
			Text: "endpoint e40000000000 (db): its sandbox /var/run/docker/netns/x is gone",
		},
		{Kind: book.Fault, Network: "web", Text: "bridge nyb-aa1100000000 is missing"},
	}
}

// startDaemon serves a world on the script's admin socket until the script ends, and records the requests in the file
// requests.
func startDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: daemon WORLD")
	}
	w, ok := worlds()[args[0]]
	if !ok {
		ts.Fatalf("unknown world %s", args[0])
	}
	l, err := net.Listen("unix", filepath.Join(ts.Getenv("NETYARD_RUN_DIR"), api.SocketName))
	ts.Check(err)
	s := &http.Server{Handler: &recorder{next: w.handler(), file: ts.MkAbs("requests")}, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	ts.Defer(func() { _ = s.Close(); <-done })
}

// A recorder writes each request to a file.
type recorder struct {
	next http.Handler
	file string
	mu   sync.Mutex
}

func (c *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if f, err := os.OpenFile(c.file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err == nil {
		_, _ = fmt.Fprintln(f, strings.TrimSpace(r.Method+" "+r.URL.String()+" "+string(body)))
		_ = f.Close()
	}
	c.next.ServeHTTP(w, r)
}

func (w world) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request) (any, int)) {
		mux.HandleFunc(pattern, func(rw http.ResponseWriter, r *http.Request) {
			v, status := f(r)
			if w.broken {
				v, status = refuse(http.StatusInternalServerError, "read the database: disk on fire\nlook out")
			}
			rw.WriteHeader(status)
			_ = json.NewEncoder(rw).Encode(v)
		})
	}
	always := func(v any) func(*http.Request) (any, int) {
		return func(*http.Request) (any, int) { return v, http.StatusOK }
	}
	answer("GET /v1/version", always(api.Version{Version: "v1.2.2", PID: 4242}))
	answer("GET /v1/networks", always(w.networks))
	answer("GET /v1/endpoints", always(w.endpoints))
	answer("GET /v1/leases", always(w.leases))
	answer("GET /v1/ports", always(w.ports))
	answer("GET /v1/events", func(r *http.Request) (any, int) {
		if r.URL.Query().Get("follow") != "" && len(w.events) > 0 { // a stream of values
			return w.events[len(w.events)-1], http.StatusOK
		}
		return w.events, http.StatusOK
	})
	answer("GET /v1/doctor", always(w.findings))
	answer("GET /v1/cluster", always(api.ClusterStatus{
		Host: "c1", Reason: "etcd is unreachable\nlook out", Advice: "wait", Down: time.Unix(1e9, 0).UTC(),
		Hosts: 2, Rejected: 1, Clear: "this kernel has no WireGuard",
		Networks: []api.ClusterNetwork{
			{Name: "blue", Peers: 4, Warm: 8, Waiting: 1},
			{Name: "red", Encrypted: true, Left: []string{"two", "three"}},
			{
				Name: "green", Warm: 1, Lost: 1, Fenced: []string{"container web: address 10.20.0.5 is host b's now"},
				Refused: map[string]string{"10.20.0.1": "it is the gateway of every host"},
			},
		},
	}))
	answer("GET /v1/cluster/hosts", always([]api.ClusterHost{
		{Name: "two", Address: "192.0.2.2", Networks: []string{}},
		{
			Name: "one", Address: "192.0.2.1", Alive: true, Encrypts: true, Networks: []string{"blue", "green"},
			Version: "v1",
		},
	}))
	answer("POST /v1/networks", func(r *http.Request) (any, int) {
		var q api.NetworkRequest
		_ = json.NewDecoder(r.Body).Decode(&q)
		return api.Network{ID: "made of " + q.Mode + " " + q.Name}, http.StatusOK
	})
	answer("GET /v1/cluster/networks", always([]api.Overlay{
		{
			Name: "blue", VNI: 4660, MTU: 1450, Internal: true, Hosts: []string{"one", "two"},
			Subnets: []api.Subnet{{Pool: "10.20.0.0/16"}, {Pool: "fd20::/64"}},
		},
		{Name: "green", VNI: 4661, MTU: 1450, Subnets: []api.Subnet{{Pool: "10.30.0.0/16"}}},
	}))
	answer("DELETE /v1/cluster/networks/{name}", func(*http.Request) (any, int) {
		return refuse(http.StatusInternalServerError, "network blue is in use on one, two")
	})
	answer("POST /v1/cluster/rejoin", always(struct{}{}))
	answer("DELETE /v1/cluster/hosts/{host}", always(api.ClusterHost{Name: "two", Address: "192.0.2.2"}))
	answer("POST /v1/cluster/key", always(api.ClusterKey{Public: "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}))
	policies(answer)
	network := func(r *http.Request) (any, int) {
		return find("network", r, w.networks, func(n api.Network) []string { return []string{n.ID, n.Name} })
	}
	endpoint := func(r *http.Request) (any, int) {
		names := func(e api.Endpoint) []string { return []string{e.ID, e.Container} }
		return find("endpoint", r, w.endpoints, names)
	}
	change := func(f func(*http.Request) (any, int)) func(*http.Request) (any, int) {
		return func(r *http.Request) (any, int) {
			var q api.Change
			_ = json.NewDecoder(r.Body).Decode(&q)
			if _, fixed := q.Options["mtu"]; fixed {
				return refuse(http.StatusBadRequest, "mtu cannot be changed in place; recreate the network")
			}
			return f(r)
		}
	}
	answer("GET /v1/networks/{ref}", network)
	answer("GET /v1/endpoints/{ref}", endpoint)
	answer("PATCH /v1/networks/{ref}", change(network))
	answer("PATCH /v1/endpoints/{ref}", change(endpoint))
	removable := slices.DeleteFunc(slices.Clone(w.findings), func(f book.Finding) bool { return !f.Removable })
	answer("POST /v1/gc", always(removable))
	answer("POST /v1/leases/{verb}", func(r *http.Request) (any, int) {
		var q api.Request
		_ = json.NewDecoder(r.Body).Decode(&q)
		if q.Address == "10.224.0.1" {
			return refuse(http.StatusConflict, "address 10.224.0.1 of pool 10.224.0.0/24: in use as gateway")
		}
		if q.Pool == "" {
			q.Pool = "10.224.0.0/24"
		}
		return q, http.StatusOK
	})
	return mux
}

// refuse is the answer to a request that fails.
func refuse(status int, text string) (any, int) { return map[string]string{"error": text}, status }

func find[T any](kind string, r *http.Request, all []T, names func(T) []string) (any, int) {
	for _, v := range all {
		if slices.Contains(names(v), r.PathValue("ref")) {
			return v, http.StatusOK
		}
	}
	return refuse(http.StatusNotFound, fmt.Sprintf("%s %q: not found", kind, r.PathValue("ref")))
}

// policies answers requests about one policy.
func policies(answer func(string, func(*http.Request) (any, int))) {
	app := api.Policy{
		Name: "app", Selects: "network=web, container=app*", Ingress: "default deny, 1 allow, 0 deny",
		Endpoints: []string{"app1", "app2"},
		Text: `name: app
select:
    network: web
    container: app*
ingress:
    allow:
        - container: proxy
          ports: [80/tcp]
`,
	}
	one := func(r *http.Request) (any, int) {
		if r.PathValue("name") != app.Name {
			text := fmt.Sprintf("policy %q: not found; did you mean app?", r.PathValue("name"))
			return refuse(http.StatusNotFound, text)
		}
		return app, http.StatusOK
	}
	answer("GET /v1/policies", func(*http.Request) (any, int) { return []api.Policy{app}, http.StatusOK })
	answer("GET /v1/policies/{name}", one)
	answer("DELETE /v1/policies/{name}", one)
	answer("POST /v1/policies", func(r *http.Request) (any, int) {
		var q api.PolicyRequest
		_ = json.NewDecoder(r.Body).Decode(&q)
		if strings.Contains(q.Text, "igress") {
			return refuse(http.StatusBadRequest, `line 2: unknown field "igress" in policy; did you mean ingress?`)
		}
		done, none := app, app
		done.Change, none.Change, none.Name, none.Endpoints = "created", "unchanged", "empty", nil
		return []api.Policy{done, none}, http.StatusOK
	})
}
