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
)

// A Handle is the way to the network of one network namespace.
type Handle struct {
	Log *slog.Logger
	NL  *netlink.Handle
	// Sockets are for what NL has no words for.
	Sockets map[int]*nl.SocketHandle
	// NS is the namespace.
	NS netns.NsHandle
	// Threads is where a thread has to be to see its sysctls; closed (-1) when it is the process's own namespace.
	Threads netns.NsHandle
	// Poked makes the watcher look.
	Poked chan struct{}
	// Shared are the objects that several networks want.
	Shared SharedObjects
	// Sys is where the kernel tells of links what netlink does not.
	Sys string

	mu   sync.Mutex
	kept map[reflect.Type]any
}

// Open returns a handle of a namespace; threads is the same, or none when the process is in it.
func Open(log *slog.Logger, ns, threads netns.NsHandle) (*Handle, error) {
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := handle.SetSocketTimeout(NetlinkTimeout); err != nil {
		handle.Close()
		return nil, fmt.Errorf("bound netlink's waits: %w", err)
	}
	own, err := openSocket(ns)
	if err != nil {
		handle.Close()
		return nil, err
	}
	return &Handle{
		Log: log, NL: handle, Sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: own}, NS: ns, Threads: threads,
		Poked: make(chan struct{}, 1), Sys: "/sys/class/net", kept: map[reflect.Type]any{},
	}, nil
}

// Close gives up the sockets, and what rooms keep with the handle; what was made in the kernel stays.
func (h *Handle) Close() error {
	h.NL.Close()
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

// Keep has a handle keep what a package knows of the namespace and no object carries: one value of each type.
func Keep[T any](h *Handle, v *T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept[reflect.TypeFor[T]()] = v
}

// Kept is the value of a type that a handle keeps, which is made if there is none.
func Kept[T any](h *Handle) *T {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := reflect.TypeFor[T]()
	if h.kept[key] == nil {
		h.kept[key] = new(T)
	}
	return h.kept[key].(*T)
}
