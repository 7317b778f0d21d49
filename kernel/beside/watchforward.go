package beside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/wake"
)

// A forwardWatch notices that another program turns forwarding on where netyard has done so before. Then no value
// changes, and the kernel reports nothing; but a file system reports each write to its files (inotify(7)).
type forwardWatch struct {
	mu      sync.Mutex // held while netyard itself writes
	events  int        // the descriptor of the inotify instance
	running bool
	six     map[int32]bool // by watch descriptor: the file is one of IPv6
	wrote   struct{ v4, v6 bool }
	written wake.Signal
}

func watchOf(k *core.Handle) *forwardWatch { return core.Stored[forwardWatch](k) }

// forwardFiles returns the files that turn forwarding on for the whole host; true: of IPv6.
func forwardFiles() map[string]bool {
	return map[string]bool{
		Forwarding{}.sysctl().File():             false,
		"/proc/sys/net/ipv4/conf/all/forwarding": false,
		Forwarding{IPv6: true}.sysctl().File():   true,
	}
}

// WatchForwarding reports that another program has written to the sysctls of forwarding, until ctx ends. StepBack then
// acts on it.
func WatchForwarding(ctx context.Context, k *core.Handle) (wake.Signal, error) {
	w := watchOf(k)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch forwarding: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	six := map[int32]bool{}
	// A file that is open keeps its inode, which is what is watched.
	var opened []*os.File
	end := func() {
		w.mu.Lock()
		w.running = false
		w.mu.Unlock() // Close waits for the reader, which waits for the lock
		_ = events.Close()
		for _, f := range opened {
			_ = f.Close()
		}
	}
	err = k.Inside(func() error {
		for file, isSix := range forwardFiles() {
			f, err := os.Open(file)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			opened = append(opened, f)
			wd, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY)
			if err != nil {
				return fmt.Errorf("watch %s: %w", file, err)
			}
			six[int32(wd)] = isSix //nolint:gosec // a small number
		}
		return nil
	})
	if err != nil {
		end()
		return nil, err
	}
	w.mu.Lock()
	w.events, w.six, w.written, w.running = fd, six, wake.New(), true
	w.mu.Unlock()
	go func() {
		<-ctx.Done()
		end()
	}()
	raw, err := events.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch forwarding: %w", err)
	}
	go func() {
		_ = raw.Read(func(uintptr) bool { return !w.readLocked() }) // until the file is closed
	}()
	return w.written, nil
}

// readLocked reads the events that are there, and reports whether the watch goes on.
func (w *forwardWatch) readLocked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read(true)
	return w.running
}

// read reads the events that are there; count: they are another program's.
func (w *forwardWatch) read(count bool) {
	buf := make([]byte, 4096)
	for w.running {
		n, err := unix.Read(w.events, buf)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for rest := buf[:n]; count && len(rest) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(rest)) //nolint:gosec // it is signed
			length := binary.NativeEndian.Uint32(rest[12:])
			six, known := w.six[wd]
			w.wrote.v4 = w.wrote.v4 || !six // an overflow of the queue has no descriptor
			w.wrote.v6 = w.wrote.v6 || six || !known
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(length)):]
			w.written.Send()
		}
	}
}

// unnoticed calls write, which writes to the files, and takes the events of it for netyard's own.
func (w *forwardWatch) unnoticed(write func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.read(true)
	defer w.read(false)
	return write()
}

// takeWrites returns which families' files other programs have written to since it was called last.
func (w *forwardWatch) takeWrites() []Forwarding {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Forwarding
	if w.wrote.v4 {
		all = append(all, Forwarding{})
	}
	if w.wrote.v6 {
		all = append(all, Forwarding{IPv6: true})
	}
	w.wrote.v4, w.wrote.v6 = false, false
	return all
}

// StepBack removes the guard of the families for which another program has turned forwarding on: the admin, an engine
// or a VPN wants the host to be a router, and its own firewall says for whom.
func StepBack(ctx context.Context, k *core.Handle) error {
	var errs []error
	for _, f := range watchOf(k).takeWrites() {
		s := f.sysctl()
		got, err := k.ReadSysctl(s.File())
		if err != nil || got == "0" || !restricts(k, f.IPv6) {
			errs = append(errs, err)
			continue
		}
		if err := setGuard(ctx, k, f.IPv6, false); err != nil {
			errs = append(errs, err)
			continue
		}
		k.Log.Warn("forwarding turned on by another program: guard of forwarding removed", "setting", s.String())
	}
	return errors.Join(errs...)
}

// restricts reports whether the host forwards a family for containers only.
func restricts(k *core.Handle, ipv6 bool) bool {
	if ipv6 {
		return RestrictedOf(k).V6
	}
	return RestrictedOf(k).V4
}
