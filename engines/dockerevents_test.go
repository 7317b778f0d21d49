package engines

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netyard/ipam"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/yardtest"
)

const eventNetwork = "aaaaaaaaaaaa01"

// A fakeEngine answers as dockerd does. After its first answer to a check it answers only what events ask for, so that
// names can come by no other way.
type fakeEngine struct {
	mu         sync.Mutex
	checks     int
	names      map[string]string // of containers, by ID
	endpoints  map[string]string // by ID of the container
	looked     map[string]int    // how often each container was listed alone
	events     chan map[string]any
	subscribed chan struct{}
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Api-Version", "1.41")
	switch {
	case strings.HasSuffix(r.URL.Path, "/_ping"):
	case path == "version":
		fmt.Fprint(w, `{"Version":"29.8.0"}`)
	case path == "networks":
		fmt.Fprintf(w, `[{"Id":%q,"Name":"web","Driver":"netyard-bridge"}]`, eventNetwork)
	case path == "containers/json":
		f.list(w, r.URL.Query().Get("filters"))
	case path == "images/one/json":
		fmt.Fprint(w, `{"Id":"one","Config":{"Labels":{"tier":"image"}}}`)
	case path == "events":
		f.stream(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeEngine) list(w http.ResponseWriter, filters string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var by struct{ ID map[string]bool }
	if filters == "" || filters == "{}" {
		if f.checks++; f.checks > 1 {
			http.Error(w, `{"message":"busy"}`, http.StatusInternalServerError)
			return
		}
	} else if err := json.Unmarshal([]byte(filters), &by); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for id := range by.ID {
		f.looked[id]++
	}
	listed := []map[string]any{}
	for id, name := range f.names {
		if by.ID[id] {
			listed = append(listed, map[string]any{
				"Id": id, "Names": []string{"/" + name}, "ImageID": "one",
				"Labels": map[string]string{"role": "own", "tier": "image"},
				"NetworkSettings": map[string]any{"Networks": map[string]any{
					"web": map[string]any{"NetworkID": eventNetwork, "EndpointID": f.endpoints[id]},
				}},
			})
		}
	}
	_ = json.NewEncoder(w).Encode(listed)
}

func (f *fakeEngine) stream(w http.ResponseWriter, r *http.Request) {
	flush := w.(http.Flusher)
	flush.Flush()
	f.subscribed <- struct{}{}
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-f.events:
			if e == nil {
				return
			}
			_ = json.NewEncoder(w).Encode(e)
			flush.Flush()
		}
	}
}

// set changes a container's name and endpoint.
func (f *fakeEngine) set(id, name, endpoint string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[id], f.endpoints[id] = name, endpoint
}

func (f *fakeEngine) tell(kind, action, id string, attributes map[string]string) {
	f.events <- map[string]any{
		"Type": kind, "Action": action, "Actor": map[string]any{"ID": id, "Attributes": attributes},
	}
}

// follow starts a watcher of a fake engine, with records of endpoints on one network.
func follow(t *testing.T, endpoints ...string) (*fakeEngine, *Docker) {
	t.Helper()
	f := &fakeEngine{
		names: map[string]string{}, endpoints: map[string]string{}, looked: map[string]int{},
		events: make(chan map[string]any), subscribed: make(chan struct{}, 1),
	}
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.Listener = l
	s.Start()
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	y := yard.New(book.Config{
		Log: log, Store: st, Kernel: yardtest.New(modetest.Facts{}), Modes: all.On(modes.Env{}), BootID: "b",
		IPAM: ipam.New(ipam.Config{ULA: ipam.HostULA("test")}), Background: func(f func()) { f() },
	})
	err = y.CreateNetwork(t.Context(), modes.Network{
		ID: eventNetwork, Mode: "bridge", Engine: book.Docker,
		Subnets: []modes.Subnet{{
			Pool: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParsePrefix("10.9.0.1/24"),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("10.9.0.2")
	for _, id := range endpoints {
		e := modes.Endpoint{
			ID: id, NetworkID: eventNetwork, Addrs: []netip.Prefix{netip.PrefixFrom(a, 24)},
			Container: modes.Container{Engine: book.Docker},
		}
		of := book.Holder{Network: eventNetwork, Endpoint: id}
		_, err := y.CreateEndpoint(t.Context(), of, func(modes.Network) (modes.Endpoint, error) { return e, nil })
		if err != nil {
			t.Fatal(err)
		}
		a = a.Next()
	}
	d := NewDocker("unix://"+sock, log)
	d.Yard = y
	done := make(chan error, 1)
	go func() { done <- d.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
		_ = st.Close()
	})
	<-f.subscribed
	return f, d
}

// eventually waits until cond is true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// expect waits until the records have these names of containers, by endpoint, and the labels of those that have one.
func expect(t *testing.T, y *yard.Yard, want map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("containers are named %v", want), func() bool {
		es, err := y.Endpoints()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, e := range es {
			got[e.ID] = e.Container.Name
			if c := e.Container; c.Name != "" && (c.Labels["role"] != "own" || c.ImageLabels["tier"] != "image") {
				return false
			}
		}
		return maps.Equal(got, want)
	})
}

// TestEvents shows that names follow the engine's events without a check of everything: a container is started,
// connected before the engine lists it, and two swap their names; also when the stream of events had ended.
func TestEvents(t *testing.T) {
	t.Parallel()
	const e1, e2, e3 = "eeeeeeeeeeee01", "eeeeeeeeeeee02", "eeeeeeeeeeee03"
	f, d := follow(t, e1, e2, e3)
	f.set("c1", "one", e1)
	f.tell("container", "start", "c1", nil)
	expect(t, d.Yard, map[string]string{e1: "one", e2: "", e3: ""})
	f.tell("network", "connect", eventNetwork, map[string]string{"container": "c2"})
	eventually(t, "the container was looked for", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.looked["c2"] > 0
	})
	f.set("c2", "two", e2)
	expect(t, d.Yard, map[string]string{e1: "one", e2: "two", e3: ""})
	for _, step := range [][2]string{{"c1", "tmp"}, {"c2", "one"}, {"c1", "two"}} {
		f.set(step[0], step[1], map[string]string{"c1": e1, "c2": e2}[step[0]])
		f.tell("container", "rename", step[0], nil)
	}
	expect(t, d.Yard, map[string]string{e1: "two", e2: "one", e3: ""})

	f.events <- nil // the engine restarts
	f.mu.Lock()
	f.checks = 0
	f.mu.Unlock()
	d.Poke()
	<-f.subscribed
	f.set("c3", "three", e3)
	f.tell("container", "start", "c3", nil)
	expect(t, d.Yard, map[string]string{e1: "two", e2: "one", e3: "three"})
	f.tell("network", "create", eventNetwork, map[string]string{"name": "renamed"})
	eventually(t, "the network is named", func() bool {
		ns, err := d.Yard.Networks()
		return err == nil && slices.ContainsFunc(ns, func(n modes.Network) bool { return n.Name == "renamed" })
	})
}
