package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// sockets opens the daemon's sockets. Those that systemd passes on activation are used as they are (sd_listen_fds(3)).
type sockets struct {
	activated map[string]net.Listener // by path
	log       *slog.Logger
}

func newSockets() (sockets, error) {
	ls, err := activation.Listeners()
	if err != nil {
		return sockets{}, fmt.Errorf("take sockets from systemd: %w", err)
	}
	s := sockets{activated: map[string]net.Listener{}}
	for _, l := range ls {
		if l != nil {
			s.activated[l.Addr().String()] = l
		}
	}
	return s, nil
}

// again returns the same sockets for one more daemon in this process, with its log.
func (s sockets) again(log *slog.Logger) sockets {
	return sockets{activated: maps.Clone(s.activated), log: log}
}

// unused returns systemd's sockets that the daemon does not serve. An engine that connects to one would wait forever.
func (s sockets) unused() []string { return slices.Sorted(maps.Keys(s.activated)) }

// listen opens a socket that only root may use. It replaces the socket of a dead daemon, never that of a live one.
func (s sockets) listen(ctx context.Context, path string, dirMode fs.FileMode) (net.Listener, error) {
	if l, ok := s.activated[path]; ok {
		delete(s.activated, path)
		again, err := duplicate(l)
		if err != nil {
			return nil, err
		}
		return s.patient(again), nil
	}
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return nil, fmt.Errorf("create socket directory: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o177) // others must never be able to connect
	defer syscall.Umask(old)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return s.patient(l), nil
}

func (s sockets) patient(l net.Listener) net.Listener {
	return &patientListener{Listener: l, log: s.log, closed: make(chan struct{})}
}

// A patientListener is a listener whose Accept fails only once it is closed. Other errors pass: the daemon or the host
// has no free descriptor or no memory (accept(2)), and callers wait in the socket's backlog meanwhile.
type patientListener struct {
	net.Listener
	log    *slog.Logger
	closed chan struct{}
	once   sync.Once
}

// Accept waits for the next connection.
func (l *patientListener) Accept() (net.Conn, error) {
	const pause = 100 * time.Millisecond
	for failed := false; ; failed = true {
		c, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		if !failed {
			l.log.Warn("connection not accepted; trying again", "socket", l.Addr().String(), "err", err)
		}
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case <-time.After(pause):
		}
	}
}

// Close ends a waiting Accept, too.
func (l *patientListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// duplicate returns another listener on a socket, so that the socket stays open when that listener is closed.
func duplicate(l net.Listener) (net.Listener, error) {
	of, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("take sockets from systemd: %s is not a Unix socket", l.Addr())
	}
	f, err := of.File()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	copied, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	return copied, nil
}

// removeStale removes a socket that no process listens on.
func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check for a stale socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: a file that is not a socket exists there", path)
	}
	const answerTime = time.Second
	c, err := (&net.Dialer{Timeout: answerTime}).DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("listen on %s: another daemon answers there", path), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: check whether the socket there is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
