package driver_test

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"netyard/driver"
	"netyard/ipam"
	"netyard/kernel/core"
	"netyard/modes"
	"netyard/modes/all"
	"netyard/modes/modetest"
	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/yardtest"
)

// reads counts how often each record of a network or an endpoint is read.
type reads struct {
	mu    sync.Mutex
	count map[string]int
}

func (r *reads) note(bucket, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bucket == book.Networks.Name || bucket == book.Endpoints.Name {
		r.count[key]++
	}
}

// taken returns the counts, and starts anew.
func (r *reads) taken() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.count
	r.count = map[string]int{}
	return taken
}

// TestReadOnce shows that each verb reads the records of its network and its endpoint once, if they exist.
func TestReadOnce(t *testing.T) {
	t.Parallel()
	r := &reads{count: map[string]int{}}
	st, err := store.Open(t.Context(), store.Config{NoSync: true, Path: filepath.Join(t.TempDir(), "db"), Read: r.note})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	kernel := yardtest.New(modetest.Facts{Link: map[string]core.LinkInfo{"eth0": modetest.Ethernet(1500)}})
	kernel.OpenSandbox("/run/netns/c1")
	log := slog.New(slog.DiscardHandler)
	y := yard.New(book.Config{
		Log: log, Store: st, Kernel: kernel, Modes: all.On(modes.Env{}), BootID: "b",
		IPAM:       ipam.New(ipam.Config{}),
		Background: func(func()) {}, // what follows a deletion
	})
	door := (&driver.Door{Name: "netyard", Mode: "bridge", Yard: y, Log: log}).Handler()
	published := strings.Replace(ids, "}",
		`,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080}]}}`, 1)
	sandbox := strings.Replace(ids, "}", `,"SandboxKey":"/run/netns/c1","Options":{}}`, 1)
	const network, both = "aaaaaaaaaaaa01", "aaaaaaaaaaaa01/eeeeeeeeeeee01"
	once := map[string]int{network: 1, both: 1}
	for _, c := range []struct {
		verb, body string
		want       map[string]int
	}{
		{"CreateNetwork", plain(), map[string]int{}},
		{"CreateEndpoint", endpoint, map[string]int{network: 1}},
		{"Join", sandbox, map[string]int{network: 1, both: 2}}, // all endpoints: what routes its sandbox has
		{"ProgramExternalConnectivity", published, once},
		{"RevokeExternalConnectivity", ids, map[string]int{network: 2, both: 1}}, // before, whether it is routed
		{"Leave", ids, once},
		{"DeleteEndpoint", ids, once},
	} {
		r.taken()
		w := httptest.NewRecorder()
		door.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/NetworkDriver."+c.verb, strings.NewReader(c.body)))
		if strings.Contains(w.Body.String(), "Err") {
			t.Fatalf("%s: %s", c.verb, w.Body)
		}
		if got := r.taken(); !maps.Equal(got, c.want) {
			t.Errorf("%s reads %v, want %v", c.verb, got, c.want)
		}
	}
}
