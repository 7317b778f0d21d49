package daemon

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
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
	l.(*patientListener).Listener.(*net.UnixListener).SetUnlinkOnClose(false)
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
	s := all.again(slog.New(slog.DiscardHandler))
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
	next, err := all.again(slog.New(slog.DiscardHandler)).listen(t.Context(), path, 0o700)
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

// A failingListener fails with each of these errors, and then has a connection.
type failingListener struct {
	net.Listener
	errs []error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		c, _ := net.Pipe()
		return c, nil
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
}

func (l *failingListener) Addr() net.Addr { return &net.UnixAddr{Name: "/run/test.sock", Net: "unix"} }
func (l *failingListener) Close() error   { return nil }

// TestPatient: whatever the host lacks for a moment, the daemon goes on serving, and still ends when it is told to.
func TestPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := []error{
			syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPERM,
		}
		s := sockets{log: slog.New(slog.DiscardHandler)}
		l := s.patient(&failingListener{errs: errs})
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("the daemon would have ended: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		l = s.patient(&failingListener{errs: errs})
		done := make(chan error)
		go func() {
			_, err := l.Accept()
			done <- err
		}()
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v from a closed socket", err)
		}
	})
}
