package core

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/wake"
)

// A Handle gives access to one network namespace, that of the host.
type Handle struct {
	Log *slog.Logger
	NL  *netlink.Handle
	// Filtered is a handle whose dumps the kernel filters by what the request names.
	Filtered *netlink.Handle
	// Sockets are for requests that NL cannot express, by netlink family.
	Sockets map[int]*nl.SocketHandle
	// NS is the namespace.
	NS netns.NsHandle
	// Threads is the namespace that a thread must enter to see the sysctls of NS; closed (-1) if the process is in NS.
	Threads netns.NsHandle
	// CheckRequested makes the watcher compare.
	CheckRequested wake.Signal
	// Shared records the objects that several networks want.
	Shared SharedObjects
	// Sys is the sysfs directory that shows what netlink does not show of links.
	Sys string

	mu   sync.Mutex
	kept map[reflect.Type]any
}

// Open returns a handle of a namespace. threads is the same namespace, or netns.None() if the process is in it.
func Open(log *slog.Logger, ns, threads netns.NsHandle) (*Handle, error) {
	handle, err := OpenNetlink(ns)
	if err != nil {
		return nil, err
	}
	own, err := openSocket(ns)
	if err != nil {
		handle.Close()
		return nil, err
	}
	filtered, err := openFiltered(ns)
	if err != nil {
		handle.Close()
		own.Close()
		return nil, err
	}
	return &Handle{
		Log: log, NL: handle, Filtered: filtered, Sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: own},
		NS: ns, Threads: threads,
		CheckRequested: wake.New(), Sys: "/sys/class/net", kept: map[reflect.Type]any{},
	}, nil
}

// openFiltered opens a handle whose dumps the kernel filters by what the request has, where it can (Linux 4.20). An
// older kernel returns all, and the library filters.
func openFiltered(ns netns.NsHandle) (*netlink.Handle, error) {
	handle, err := OpenNetlink(ns)
	if err != nil {
		return nil, err
	}
	if err := handle.SetStrictCheck(true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		handle.Close()
		return nil, fmt.Errorf("let the kernel filter dumps: %w", err)
	}
	return handle, nil
}

// Close closes the sockets, and those of the kept values that can be closed. What netyard made in the kernel stays.
func (h *Handle) Close() error {
	h.NL.Close()
	h.Filtered.Close()
	for _, s := range h.Sockets {
		s.Close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := []error{h.NS.Close()}
	for _, v := range h.kept {
		if c, ok := v.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Store stores a value with a handle: the state that a package has about the namespace and that no object carries.
// There is one value of each type.
func Store[T any](h *Handle, v *T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept[reflect.TypeFor[T]()] = v
}

// Stored returns the value of a type that is stored with a handle. It stores a zero value if there is none.
func Stored[T any](h *Handle) *T {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := reflect.TypeFor[T]()
	if h.kept[key] == nil {
		h.kept[key] = new(T)
	}
	return h.kept[key].(*T)
}
