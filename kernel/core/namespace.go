package core

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Visit gives f the network of a sandbox; it does nothing when there is none, or none any more.
func Visit(sandbox string, f func(nl *netlink.Handle) error) error {
	if sandbox == "" || !IsNamespace(sandbox) {
		return nil
	}
	file, err := os.Open(sandbox)
	if err != nil {
		return fmt.Errorf("open sandbox: %w", err)
	}
	defer file.Close() //nolint:errcheck // nothing is written
	nl, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look into sandbox %s: %w", sandbox, err)
	}
	defer nl.Close()
	if err := nl.SetSocketTimeout(NetlinkTimeout); err != nil {
		return fmt.Errorf("bound netlink's waits: %w", err)
	}
	return f(nl)
}

// InSandbox says whether a sandbox has the link of that alias: a link keeps its alias when it moves.
func InSandbox(sandbox, alias string) (has bool, err error) {
	err = Visit(sandbox, func(nl *netlink.Handle) error {
		link, err := ByAlias(nl, alias)
		has = link != nil
		return err
	})
	return has, err
}

// ByAlias finds the link that carries an alias; nil when there is none.
func ByAlias(nl *netlink.Handle, alias string) (netlink.Link, error) {
	links, err := Retry(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links of a sandbox: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias == alias {
			return l, nil
		}
	}
	return nil, nil //nolint:nilnil // nothing there is an answer
}

// Hostname is the name of the host that a process believes to be on (uts_namespaces(7)).
func (*Handle) Hostname(pid int) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/uts", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the UTS namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is lost
	var name unix.Utsname
	err = onThread(func() (back bool, err error) {
		if err := unix.Setns(fd, unix.CLONE_NEWUTS); err != nil {
			return true, err
		}
		return false, unix.Uname(&name)
	})
	if err != nil {
		return "", fmt.Errorf("read the host name of process %d: %w", pid, err)
	}
	return unix.ByteSliceToString(name.Nodename[:]), nil
}

// Inside runs f in the Handle's namespace. /proc/sys/net shows the namespace of the thread that opens it, so a thread
// has to move.
func (k *Handle) Inside(f func() error) error {
	if !k.Threads.IsOpen() {
		return f()
	}
	return Inside(int(k.Threads), f)
}

// Inside runs f on a thread inside the network namespace behind fd.
func Inside(fd int, f func() error) error {
	return onThread(func() (bool, error) { return enter(fd, f) })
}

// onThread runs f on a thread of its own; back says that f has left the thread as it was. Any other is thrown away: it
// would be a trap for others.
func onThread(f func() (back bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread does not end with its goroutine: it would stay inside for good, and /proc/self
			// with it. While this goroutine holds it, the next one is on another.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		back, err := f()
		if back {
			runtime.UnlockOSThread()
		} // or else the thread, still locked, ends with the goroutine
		done <- err
	}()
	return <-done
}

// enter runs f with this thread in another network namespace; back says that the thread is where it was.
func enter(fd int, f func() error) (back bool, err error) {
	own, err := netns.Get()
	if err != nil {
		return true, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer own.Close() //nolint:errcheck // nothing was written
	if err := netns.Set(netns.NsHandle(fd)); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	return netns.Set(own) == nil, err
}

// IsNamespace says whether there is a namespace behind a path (nsfs, fs/nsfs.c): an engine leaves the plain file that
// one was mounted on behind.
func IsNamespace(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return err == nil && st.Type == unix.NSFS_MAGIC
}

// A NamespaceID tells one network namespace from another while both live. The kernel gives numbers out again: two
// different ones are two namespaces, two equal ones need not be one.
type NamespaceID struct {
	Dev uint64 `json:",omitempty"`
	Ino uint64 `json:",omitempty"`
}

// SandboxID is the id of the network namespace behind fd. It refuses what is none, and the host's own.
func (k *Handle) SandboxID(fd int) (NamespaceID, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return NamespaceID{}, fmt.Errorf("sandbox: it is not a network namespace")
	}
	id, err := namespaceOf(fd)
	if err != nil {
		return id, err
	}
	own, err := namespaceOf(int(k.NS))
	if err == nil && own == id {
		err = fmt.Errorf("sandbox: it is the host's own network namespace")
	}
	return id, err
}

func namespaceOf(fd int) (NamespaceID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return NamespaceID{}, fmt.Errorf("look at the sandbox: %w", err)
	}
	return NamespaceID{st.Dev, st.Ino}, nil
}

// NamespaceAt is the id of the namespace behind a path; ok is false when there is none.
func NamespaceAt(path string) (id NamespaceID, ok bool) {
	if !IsNamespace(path) {
		return id, false
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return id, false
	}
	return NamespaceID{st.Dev, st.Ino}, true
}

// NetlinkIn opens a socket in the namespace behind an open descriptor.
func NetlinkIn(fd int) (*netlink.Handle, error) { return OpenNetlink(netns.NsHandle(fd)) }

// OpenNetlink opens a socket in a namespace of a sandbox; none is the one that the thread is in.
func OpenNetlink(ns netns.NsHandle) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the sandbox: %w", err)
	}
	if err := h.SetSocketTimeout(NetlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("bound netlink's waits: %w", err)
	}
	return h, nil
}
