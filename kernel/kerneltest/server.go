package kerneltest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A Log collects the output of programs.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends output.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String returns all output so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Count returns how often words occur in it.
func (l *Log) Count(words string) int { return strings.Count(l.String(), words) }

// Start runs a program in the namespace until the test ends or stop is called.
func (h *Host) Start(t testing.TB, log *Log, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // a test's
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// Dnsmasq returns the command line of a DHCP server on a link, with an empty lease file.
func Dnsmasq(t testing.TB, link string, more ...string) []string {
	t.Helper()
	return append([]string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=" + link,
		"--log-dhcp", "--log-facility=-", "--user=root", "--pid-file=", "--no-ping",
		"--dhcp-authoritative", "--dhcp-leasefile=" + filepath.Join(t.TempDir(), "leases"),
	}, more...)
}
