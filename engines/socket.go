package engines

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
)

// dialOnce connects to a socket in one attempt. containerd's own dialer looks a hundred times a second for a socket
// that does not exist.
func dialOnce(path string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// exists reports whether there is a file at a path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// awaitFile waits until there is a file at a path. It watches the directory, or the nearest one above it that exists.
func awaitFile(ctx context.Context, path string) error {
	for {
		dir := filepath.Dir(path)
		for !exists(dir) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
		}
		done, err := awaitIn(ctx, dir, path)
		if done || err != nil {
			return err
		}
	}
}

// awaitIn waits until something is made in a directory. done: there is a file at the path.
func awaitIn(ctx context.Context, dir, path string) (done bool, err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return false, fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close() //nolint:errcheck // nothing was written
	if err := w.Add(dir); err != nil {
		return false, fmt.Errorf("watch %s: %w", dir, err)
	}
	if exists(path) { // it was made before the watch began
		return true, nil
	}
	if next := filepath.Dir(path); dir != next && exists(next) {
		return false, nil
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-w.Events:
		return exists(path), nil
	case err := <-w.Errors:
		return false, fmt.Errorf("watch %s: %w", dir, err)
	}
}
