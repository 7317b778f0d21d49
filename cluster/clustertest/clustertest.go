// Package clustertest gives tests an etcd of their own, which they can kill, restore and cut off.
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

// An Etcd is one member, on loopback, and what is before it: a wire that can be cut.
type Etcd struct {
	// URL is that of the wire.
	URL string
	// Dir has its data while it is stopped.
	Dir string

	args   []string
	client string // host:port, behind the wire
	peer   string
	cmd    *exec.Cmd
	said   bytes.Buffer
	wire   *wire
}

// Program is the etcd that tests run: NETYARD_ETCD, or that of the machine.
func Program() string {
	if p := os.Getenv("NETYARD_ETCD"); p != "" {
		return p
	}
	return "etcd"
}

// Start runs etcd until the test ends, with these arguments beside its own. With TLS in them scheme is https.
func Start(t testing.TB, scheme string, args ...string) *Etcd {
	t.Helper()
	if scheme == "" {
		scheme = "http"
	}
	own := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254)) //nolint:gosec // it need not be secret
	e := &Etcd{Dir: filepath.Join(t.TempDir(), "data"), client: own + ":2379", peer: own + ":2380", args: args}
	e.wire = newWire(t, e.client)
	e.URL = scheme + "://" + e.wire.l.Addr().String()
	e.args = append([]string{
		"--listen-client-urls", scheme + "://" + e.client, "--advertise-client-urls", scheme + "://" + e.client,
		"--listen-peer-urls", "http://" + e.peer, "--initial-advertise-peer-urls", "http://" + e.peer, "--initial-cluster", "default=http://" + e.peer,
		"--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "error", "--auto-compaction-retention", "0",
	}, args...)
	t.Cleanup(func() {
		e.Kill(t)
		if t.Failed() {
			t.Logf("etcd said:\n%s", e.said.String())
		}
	})
	e.Run(t)
	return e
}

// Run starts it again after Kill.
func (e *Etcd) Run(t testing.TB) {
	t.Helper()
	e.cmd = exec.Command(Program(), append([]string{"--data-dir", e.Dir}, e.args...)...)
	e.cmd.Stdout, e.cmd.Stderr = &e.said, &e.said
	if err := e.cmd.Start(); err != nil {
		t.Fatalf("start etcd (package etcd-server): %v", err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if e.serves() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("etcd does not serve on %s:\n%s", e.client, e.said.String())
		}
	}
}

// serves says whether it has a leader, or listens, where only who it knows may ask.
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

// Kill ends it as a power cut does.
func (e *Etcd) Kill(t testing.TB) {
	t.Helper()
	if e.cmd == nil {
		return
	}
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
	e.cmd = nil
}

// Wipe takes all its data away. It has to be stopped.
func (e *Etcd) Wipe(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(e.Dir); err != nil {
		t.Fatal(err)
	}
}

// Backup copies its data to a directory, or back. It has to be stopped.
func Backup(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// Version is what it says of itself.
func (e *Etcd) Version(t testing.TB) string {
	t.Helper()
	resp, err := http.Get("http://" + e.client + "/version")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Cut makes what is sent through the wire go nowhere, as a router does that has died; Mend has it pass again, on new
// connections.
func (e *Etcd) Cut() { e.wire.set(true) }

// Slow has whatever is sent through the wire take that long.
func (e *Etcd) Slow(d time.Duration) {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	e.wire.slow = d
}

// Mend undoes Cut.
func (e *Etcd) Mend() { e.wire.set(false) }

// A wire passes connections on.
type wire struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	cut   bool
	slow  time.Duration
	conns map[net.Conn]bool
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, to: to, conns: map[net.Conn]bool{}}
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
				w.pass(in)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		w.drop()
		all.Wait()
	})
	return w
}

// pass carries one connection until either end closes it.
func (w *wire) pass(in net.Conn) {
	defer in.Close() //nolint:errcheck // either end may have
	w.hold(in, true)
	defer w.hold(in, false)
	out, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer out.Close() //nolint:errcheck // either end may have
	w.hold(out, true)
	defer w.hold(out, false)
	done := make(chan struct{}, 2)
	for _, d := range []struct{ from, to net.Conn }{{in, out}, {out, in}} {
		go func() {
			w.carry(d.from, d.to)
			_, _ = d.from.Close(), d.to.Close()
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

func (w *wire) carry(from, to net.Conn) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		w.mu.Lock()
		cut, slow := w.cut, w.slow
		w.mu.Unlock()
		time.Sleep(slow)
		if cut {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (w *wire) hold(c net.Conn, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if delete(w.conns, c); on {
		w.conns[c] = true
	}
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	w.cut = cut
	w.mu.Unlock()
	if !cut {
		w.drop() // what was lost on the way would have been sent again by TCP; here it is not
	}
}

func (w *wire) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
}

// Eventually waits for something that takes its time on a busy machine.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute: %s", what)
		}
	}
}

// Direct is the URL past the wire.
func (e *Etcd) Direct() string { return "http://" + e.client }
