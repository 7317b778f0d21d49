package core

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// OpenSandbox opens the network namespace at a path: the one with that ID, if one is given. It returns nil if that is
// no longer there, or not yet. A path by a process ID may stand for another sandbox by now, or for the host itself,
// which is no sandbox.
func OpenSandbox(path string, id NamespaceID) (*os.File, error) {
	if path == "" || !IsNamespace(path) {
		return nil, nil //nolint:nilnil // no namespace is a valid answer
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil //nolint:nilnil // likewise
	}
	if err != nil {
		return nil, fmt.Errorf("open sandbox: %w", err)
	}
	now, err := namespaceOf(int(file.Fd()))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	host, found := NamespaceAt("/proc/self/ns/net")
	if err != nil || kind != unix.CLONE_NEWNET || id != (NamespaceID{}) && id != now || !found || host == now {
		return nil, file.Close()
	}
	return file, nil
}

// InNamespace calls f with a netlink handle inside a sandbox. It does nothing if the sandbox does not exist, or no
// longer does, see OpenSandbox.
func InNamespace(sandbox string, id NamespaceID, f func(nl *netlink.Handle) error) error {
	file, err := OpenSandbox(sandbox, id)
	if err != nil || file == nil {
		return err
	}
	defer file.Close() //nolint:errcheck // nothing is written
	nl, err := NetlinkIn(int(file.Fd()))
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", sandbox, err)
	}
	defer nl.Close()
	return f(nl)
}

// InSandbox reports whether a sandbox has the link with an alias. A link keeps its alias when it moves.
func InSandbox(sandbox string, id NamespaceID, alias string) (has bool, err error) {
	err = InNamespace(sandbox, id, func(nl *netlink.Handle) error {
		link, err := ByAlias(nl, alias)
		has = link != nil
		return err
	})
	return has, err
}

// ByAlias finds the link of a sandbox that carries an alias. It returns nil if there is none.
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
	return nil, nil //nolint:nilnil // no such link is a valid answer
}

// Hostname returns the host name that a process sees, that of its UTS namespace (uts_namespaces(7)).
func (*Handle) Hostname(pid int) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/uts", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the UTS namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is written
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

// Inside runs f on a thread in the Handle's namespace: /proc/sys/net shows the namespace of the thread that opens it.
func (k *Handle) Inside(f func() error) error {
	if !k.Threads.IsOpen() {
		return f()
	}
	return Inside(int(k.Threads), f)
}

// Inside runs f on a thread in the network namespace that fd refers to.
func Inside(fd int, f func() error) error {
	return onThread(func() (bool, error) { return enter(fd, f) })
}

// onThread runs f on a locked thread. f returns back = true if it left the thread in the namespaces it found it in. Any
// other thread ends with the call, so that no goroutine runs in the wrong namespace.
func onThread(f func() (back bool, err error)) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread does not end with its goroutine: it could stay in the other namespace for
			// good, and /proc/self shows that thread. While this goroutine holds it, a new one gets another thread.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		back, err := f()
		if back {
			runtime.UnlockOSThread()
		} // otherwise the thread is still locked, and ends with the goroutine
		done <- err
	}()
	return <-done
}

// enter runs f with this thread in another network namespace. back is true if the thread returned to its own.
func enter(fd int, f func() error) (back bool, err error) {
	own, err := netns.Get()
	if err != nil {
		return true, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	defer own.Close() //nolint:errcheck // nothing is written
	if err := netns.Set(netns.NsHandle(fd)); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	return netns.Set(own) == nil, err
}

// IsNamespace reports whether a path refers to a namespace (nsfs, fs/nsfs.c). When a namespace is gone, an engine
// leaves the plain file behind that it was mounted on.
func IsNamespace(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return err == nil && st.Type == unix.NSFS_MAGIC
}

// A NamespaceID identifies a network namespace while it exists. The kernel reuses inode numbers: two different IDs are
// two namespaces, but two equal IDs seen at different times need not be the same one.
type NamespaceID struct {
	Dev uint64 `json:",omitempty"`
	Ino uint64 `json:",omitempty"`
}

// SandboxID returns the ID of the network namespace that fd refers to. It refuses anything else, and the host's own
// network namespace.
func (k *Handle) SandboxID(fd int) (NamespaceID, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return NamespaceID{}, errors.New("identify sandbox: it is not a network namespace")
	}
	id, err := namespaceOf(fd)
	if err != nil {
		return id, err
	}
	own, err := namespaceOf(int(k.NS))
	if err == nil && own == id {
		err = errors.New("identify sandbox: it is the host's own network namespace")
	}
	return id, err
}

func namespaceOf(fd int) (NamespaceID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return NamespaceID{}, fmt.Errorf("identify sandbox: %w", err)
	}
	return NamespaceID{st.Dev, st.Ino}, nil
}

// NamespaceAt returns the ID of the namespace that a path refers to; ok is false if it refers to none.
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

// NetlinkIn opens a netlink handle in the namespace that fd refers to.
func NetlinkIn(fd int) (*netlink.Handle, error) { return OpenNetlink(netns.NsHandle(fd)) }

// OpenNetlink opens a netlink handle in a namespace, whose requests end after NetlinkTimeout. netns.None() means the
// thread's own namespace.
func OpenNetlink(ns netns.NsHandle) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := h.SetSocketTimeout(NetlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return h, nil
}
