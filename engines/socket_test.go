package engines

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAwaitFile shows that a socket is found when it is made, with its directories or without, and that the wait ends
// with its context.
func TestAwaitFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	path := filepath.Join(root, "run", "containerd", "containerd.sock")
	found := make(chan error, 1)
	go func() { found <- awaitFile(t.Context(), path) }()
	for _, make := range []func() error{
		func() error { return os.WriteFile(filepath.Join(root, "other"), nil, 0o600) },
		func() error { return os.Mkdir(filepath.Join(root, "run"), 0o700) },
		func() error { return os.Mkdir(filepath.Join(root, "run", "containerd"), 0o700) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-found:
			t.Fatalf("found without a socket: %v", err)
		default:
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 { // the second time it is there already
		if err := <-found; err != nil {
			t.Error(err)
		}
		go func() { found <- awaitFile(t.Context(), path) }()
	}
	<-found
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitFile(ctx, path+".missing"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestContainerdMissing shows that a question to a containerd that is not there ends at once.
func TestContainerdMissing(t *testing.T) {
	t.Parallel()
	c, err := NewContainerd(filepath.Join(t.TempDir(), "containerd.sock"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Census(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("census: %v", err)
	}
}
