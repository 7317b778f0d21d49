package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListen: the socket of a dead daemon is replaced, and what a live one or something else has is refused.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "netyard.sock")
	listen := func() (net.Listener, error) { return sockets{}.listen(t.Context(), path, 0o700) }
	l, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("others can connect: %v, %v", st, err)
	}
	if _, err := listen(); err == nil || !strings.Contains(err.Error(), "another daemon answers there") {
		t.Errorf("the socket of a live daemon was taken: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := listen()
	if err != nil {
		t.Fatalf("the socket of a dead daemon was not replaced: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(); err == nil || !strings.Contains(err.Error(), "a file that is not a socket exists there") {
		t.Errorf("a file was replaced: %v", err)
	}
}

// TestActivated: a socket that systemd passes on is used, and one that nothing serves is named.
func TestActivated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "netyard.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all := sockets{activated: map[string]net.Listener{path: l, "/run/other.sock": nil}}
	s := all.again()
	got, err := s.listen(t.Context(), path, 0o700)
	if err != nil {
		t.Fatalf("listen on systemd's socket: %v", err)
	}
	if err := got.Close(); err != nil {
		t.Fatal(err)
	}
	// A client that connects while a daemon ends and the next one starts waits for the latter.
	client, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("connect between two daemons: %v", err)
	}
	defer client.Close()
	next, err := all.again().listen(t.Context(), path, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if c, err := next.Accept(); err != nil || c.Close() != nil {
		t.Errorf("accept on systemd's socket: %v", err)
	}
	if unused := s.unused(); len(unused) != 1 || unused[0] != "/run/other.sock" {
		t.Errorf("got the unused sockets %v", unused)
	}
}
