// Package integration tests netyard as a whole, with real engines, on hosts of package lab.
package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// engines runs a test on each engine that matters to it, see columns, in parallel as far as the lab has slots.
func engines(t *testing.T, test func(t *testing.T, e lab.Engine)) {
	t.Helper()
	t.Parallel()
	lab.Engines(t, enginesOf(t.Name()), func(t *testing.T, e lab.Engine) {
		t.Parallel()
		test(t, e)
	})
}

// host boots a host with the engine and netyard on it.
func host(t *testing.T, e lab.Engine, opts ...lab.Option) *lab.Host {
	t.Helper()
	h := lab.New(t, e, opts...)
	h.Netyard.Start()
	return h
}

// has checks that a text contains another.
func has(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%q does not contain %q", got, want)
	}
}

// eventually waits up to a minute until cond is true; what describes the condition in the failure.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	const limit, pause = 60 * time.Second, 100 * time.Millisecond
	for end := time.Now().Add(limit); !cond(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// parse decodes JSON.
func parse[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// ps returns what netyard ps shows.
func ps(t *testing.T, h *lab.Host) []api.Endpoint {
	t.Helper()
	return parse[[]api.Endpoint](t, h.Sh("netyard ps --json"))
}

// named waits until netyard ps shows these names of containers. It reads the JSON output, since in the text hexadecimal
// IDs may contain "c1", too.
func named(t *testing.T, h *lab.Host, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("ps shows %v", names), func() bool {
		var have []string
		for _, e := range ps(t, h) {
			have = append(have, e.Container)
		}
		return !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(have, name) })
	})
}

// healthy waits until netyard doctor finds nothing: records, kernel and engine agree.
func healthy(t *testing.T, h *lab.Host) {
	t.Helper()
	last := ""
	eventually(t, "doctor finds nothing", func() bool {
		out, err := h.TrySh("netyard doctor 2>&1")
		if out != last && out != "" {
			t.Logf("doctor: %s", out)
		}
		last = out
		return err == nil && out == ""
	})
}
