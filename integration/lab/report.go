package lab

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// skipsEnv names the file that gets a line for each skipped test.
const skipsEnv = "NETYARD_SKIPS"

// Main runs a package's tests and then prints why tests were skipped, which go test hides. Use it in TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
// A script that wants the reasons of several packages sets NETYARD_SKIPS to a file, to which each test adds its line.
func Main(m *testing.M) int {
	if os.Getenv(skipsEnv) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "netyard-skips-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "skips")
	os.Setenv(skipsEnv, path)
	code := m.Run()
	if file, err := os.Open(path); err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			fmt.Fprintln(os.Stderr, "skipped:", lines.Text())
		}
	}
	return code
}

// Skip skips the test and records the reason for Main, or for the script that runs the tests.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if path := os.Getenv(skipsEnv); path != "" {
		if file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
			fmt.Fprintf(file, "%s: %s\n", t.Name(), reason)
			file.Close()
		}
	}
	t.Skip(reason)
}

// A reporter holds the test that failures are reported to. The parts of a host share one, so that a subtest can take
// over a host that its parent made: a subtest must not fail its parent from its own goroutine.
type reporter struct {
	mu sync.Mutex
	tb testing.TB
}

// TB returns the test that failures are reported to now.
func (r *reporter) TB() testing.TB {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tb
}

// redirect reports failures to t until t ends.
func (r *reporter) redirect(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.tb
	r.tb = t
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tb = before
	})
}

// chatter matches lines that engines log a hundred times at each start.
var chatter = regexp.MustCompile(`msg="?(loading plugin|skip loading plugin|\[core\]|serving\.\.\.)`)

// tail returns the last lines of a log, without chatter.
func tail(log string, lines int) string {
	all := slices.DeleteFunc(strings.Split(strings.TrimSpace(log), "\n"), chatter.MatchString)
	if cut := len(all) - lines; cut > 0 {
		all = append([]string{fmt.Sprintf("… %d lines before", cut)}, all[cut:]...)
	}
	return strings.Join(all, "\n")
}
