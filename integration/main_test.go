// Package integration tests netyard as a whole: with real engines, on hosts of their own.
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

// engines runs a test on each engine that matters to it, see columns, beside each other as far as the machine has room.
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

func has(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%q does not say %q", got, want)
	}
}

// eventually waits for what the daemon does in the background; what is the complaint when it does not come.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	const limit, pause = 60 * time.Second, 100 * time.Millisecond
	for end := time.Now().Add(limit); !cond(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

func parse[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func ps(t *testing.T, h *lab.Host) []api.Endpoint {
	t.Helper()
	return parse[[]api.Endpoint](t, h.Sh("netyard ps --json"))
}

// named waits until netyard ps shows containers by their names. In its text there are hexadecimal names that have a c1
// in them, too.
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

// healthy wants record, kernel and engine to agree.
func healthy(t *testing.T, h *lab.Host) {
	t.Helper()
	said := ""
	eventually(t, "doctor is silent", func() bool {
		out, err := h.TrySh("netyard doctor 2>&1")
		if out != said && out != "" {
			t.Logf("doctor says: %s", out)
		}
		said = out
		return err == nil && out == ""
	})
}
