// Package clustertest runs an etcd for a test, which the test can kill, restore from a backup and cut off.
package clustertest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// An Etcd is a single-member etcd on loopback, behind a proxy that the test can cut.
type Etcd struct {
	// URL is the URL of the proxy.
	URL string
	// Dir is its data directory; a test may change it while etcd is stopped.
	Dir string

	args   []string
	client string // host:port, behind the proxy
	peer   string
	cmd    *exec.Cmd
	output bytes.Buffer
	proxy  *proxy
}

// Program returns the etcd that tests run: NETYARD_ETCD, or the one in PATH.
func Program() string {
	if p := os.Getenv("NETYARD_ETCD"); p != "" {
		return p
	}
	return "etcd"
}

// Start runs etcd until the test ends, with args beside its own. If args configure TLS, scheme is https.
func Start(t testing.TB, scheme string, args ...string) *Etcd {
	t.Helper()
	if scheme == "" {
		scheme = "http"
	}
	//nolint:gosec // it need not be secret
	own := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
	e := &Etcd{Dir: filepath.Join(t.TempDir(), "data"), client: own + ":2379", peer: own + ":2380", args: args}
	e.proxy = newProxy(t, e.client)
	e.URL = scheme + "://" + e.proxy.l.Addr().String()
	e.args = append([]string{
		"--listen-client-urls", scheme + "://" + e.client, "--advertise-client-urls", scheme + "://" + e.client,
		"--listen-peer-urls", "http://" + e.peer, "--initial-advertise-peer-urls", "http://" + e.peer,
		"--initial-cluster", "default=http://" + e.peer, "--heartbeat-interval", "50", "--election-timeout", "500",
		"--logger", "zap", "--log-level", "error", "--auto-compaction-retention", "0",
	}, args...)
	t.Cleanup(func() {
		e.Kill(t)
		if t.Failed() {
			t.Logf("output of etcd:\n%s", e.output.String())
		}
	})
	e.Run(t)
	return e
}

// Run starts etcd again after Kill.
func (e *Etcd) Run(t testing.TB) {
	t.Helper()
	e.cmd = exec.Command(Program(), append([]string{"--data-dir", e.Dir}, e.args...)...)
	e.cmd.Stdout, e.cmd.Stderr = &e.output, &e.output
	if err := e.cmd.Start(); err != nil {
		t.Fatalf("start etcd (package etcd-server): %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if e.serves() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("etcd does not serve on %s:\n%s", e.client, e.output.String())
		}
	}
}

// serves says whether etcd has a leader; with TLS, where only known clients may ask, whether it listens.
func (e *Etcd) serves() bool {
	if strings.HasPrefix(e.URL, "https:") {
		conn, err := net.Dial("tcp", e.client)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	resp, err := http.Get("http://" + e.client + "/health")
	if err == nil {
		_ = resp.Body.Close()
	}
	return err == nil && resp.StatusCode == http.StatusOK
}

// Kill ends etcd as a power cut would.
func (e *Etcd) Kill(t testing.TB) {
	t.Helper()
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
	e.cmd = nil
}

// Wipe deletes all its data. It must be stopped.
func (e *Etcd) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(e.Dir); err != nil {
		t.Fatal(err)
	}
}

// Backup copies its data to a directory, or back. It must be stopped.
func Backup(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// Version returns the version that etcd reports, as JSON.
func (e *Etcd) Version(t testing.TB) string {
	t.Helper()
	resp, err := http.Get("http://" + e.client + "/version")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Cut makes the proxy drop all data, as a dead router does; Mend lets it pass again, on new connections.
func (e *Etcd) Cut() { e.proxy.setCut(true) }

// Slow delays all data through the proxy by d.
func (e *Etcd) Slow(d time.Duration) {
	e.proxy.mu.Lock()
	defer e.proxy.mu.Unlock()
	e.proxy.slow = d
}

// Mend undoes Cut.
func (e *Etcd) Mend() { e.proxy.setCut(false) }

// A proxy forwards connections.
type proxy struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	cut   bool
	slow  time.Duration
	conns map[net.Conn]bool
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Add(1)
	go func() {
		defer all.Done()
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			all.Add(1)
			go func() {
				defer all.Done()
				p.serve(in)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		p.closeConns()
		all.Wait()
	})
	return p
}

// serve forwards one connection until either end closes it.
func (p *proxy) serve(in net.Conn) {
	defer in.Close() //nolint:errcheck // it may be closed already
	p.track(in, true)
	defer p.track(in, false)
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer out.Close() //nolint:errcheck // it may be closed already
	p.track(out, true)
	defer p.track(out, false)
	done := make(chan struct{}, 2)
	for _, d := range []struct{ from, to net.Conn }{{in, out}, {out, in}} {
		go func() {
			p.copy(d.from, d.to)
			_, _ = d.from.Close(), d.to.Close()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

func (p *proxy) copy(from, to net.Conn) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		cut, slow := p.cut, p.slow
		p.mu.Unlock()
		time.Sleep(slow)
		if cut {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) track(c net.Conn, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.conns, c); on {
		p.conns[c] = true
	}
}

func (p *proxy) setCut(cut bool) {
	p.mu.Lock()
	p.cut = cut
	p.mu.Unlock()
	if !cut {
		p.closeConns() // TCP would send dropped data again, but this proxy does not
	}
}

func (p *proxy) closeConns() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Eventually waits up to a minute until ok returns true; the failure message says what did not happen.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute: %s", what)
		}
	}
}

// Direct returns the URL that bypasses the proxy.
func (e *Etcd) Direct() string { return "http://" + e.client }
