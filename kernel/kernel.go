// Package kernel is the only part of netyard that talks to the Linux kernel's network: links, addresses, routes,
// sysctls and nftables. What it makes is described by Objects: plain data that can be made, removed and compared
// with what is there, each idempotently. Everything it makes says in its name or alias whose it is.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// netlinkTimeout bounds one exchange with the kernel, so that no request of an engine can hang on it for long.
	netlinkTimeout = 5 * time.Second

	// RouteProtocol marks the routes netyard puts in (rtnetlink(7), rtm_protocol); it is not in iproute2's rt_protos.
	RouteProtocol = 78
)

// ErrForeign says that an object of the wanted name is there and belongs to someone else.
var ErrForeign = errors.New("is not netyard's")

// A Kernel is the network side of one network namespace.
type Kernel struct {
	log *slog.Logger
	nl  *netlink.Handle
	// sockets are for what nl has no words for.
	sockets map[int]*nl.SocketHandle
	fw      *firewall
	// ns is where sysctls are set; closed (-1) when it is the process's own namespace.
	ns netns.NsHandle
	// subscribeNS is ns, or the namespace the Kernel was opened in.
	subscribeNS netns.NsHandle
	// spaces are the namespaces of sandboxes that have a card of the host's.
	spaces spaces
	// poked makes the watcher look.
	poked chan struct{}
	// stale says that flows may be known that are no longer so: the watcher looks through them.
	stale atomic.Bool
	// unsure says that somebody's rules changed: the watcher has the host's firewall asked anew, where it decides.
	unsure atomic.Bool
	shared sharedObjects
	// sys is where the kernel tells of links what netlink does not.
	sys string
}

// Open returns the Kernel of the namespace the process is in.
func Open(log *slog.Logger) (*Kernel, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return open(log, ns, netns.None())
}

// OpenAt returns the Kernel of the namespace behind an open descriptor, which the caller keeps.
func OpenAt(log *slog.Logger, fd int) (*Kernel, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	return open(log, netns.NsHandle(dup), netns.NsHandle(dup))
}

func open(log *slog.Logger, ns, sysctls netns.NsHandle) (*Kernel, error) {
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := handle.SetSocketTimeout(netlinkTimeout); err != nil {
		return nil, fmt.Errorf("bound netlink's waits: %w", err)
	}
	own, err := openSocket(ns)
	if err != nil {
		handle.Close()
		return nil, err
	}
	fw, err := openFirewall(log, ns)
	if err != nil {
		handle.Close()
		own.Close()
		return nil, err
	}
	k := &Kernel{
		log: log, nl: handle, sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: own}, fw: fw, ns: sysctls, subscribeNS: ns,
		poked: make(chan struct{}, 1), sys: "/sys/class/net",
	}
	fw.poke = k.poke
	return k, nil
}

func openSocket(ns netns.NsHandle) (*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	wait := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&wait), s.SetReceiveTimeout(&wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("bound netlink's waits: %w", err)
	}
	return &nl.SocketHandle{Socket: s}, nil
}

// Close gives up the sockets; what was made stays.
func (k *Kernel) Close() error {
	k.nl.Close()
	for _, s := range k.sockets {
		s.Close()
	}
	return errors.Join(k.fw.close(), k.subscribeNS.Close(), k.spaces.close())
}

// An Object is one thing netyard wants to be in the kernel.
type Object interface {
	fmt.Stringer
	// ensure makes the object be there as described.
	ensure(k *Kernel) error
	// remove undoes ensure; it never touches what netyard did not make.
	remove(k *Kernel) error
	// check says in words what is wrong with the object, nothing when it is as described.
	check(s *snapshot) []string
}

// Ensure makes all objects be there, in order. It stops at the first it cannot make.
func (k *Kernel) Ensure(ctx context.Context, objects ...Object) error {
	var elements []Element
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("make %s: %w", o, err)
		}
		if e, ok := o.(Element); ok { // one transaction for all of them, at the end: links come first
			elements = append(elements, e)
			continue
		}
		if err := again(func() error { return o.ensure(k) }); err != nil {
			return err
		}
	}
	if len(elements) > 0 {
		defer k.staleFlows(elements)
		return k.fw.add(ctx, elements)
	}
	return nil
}

// Remove undoes Ensure, last object first. It goes on after an error and returns them all.
func (k *Kernel) Remove(objects ...Object) error {
	var errs []error
	var elements []Element
	for _, o := range objects {
		if e, ok := o.(Element); ok {
			elements = append(elements, e)
		}
	}
	if len(elements) > 0 {
		errs = append(errs, k.fw.remove(elements))
		k.staleFlows(elements)
	}
	for i := len(objects) - 1; i >= 0; i-- {
		if _, ok := objects[i].(Element); !ok {
			errs = append(errs, again(func() error { return objects[i].remove(k) }))
		}
	}
	return errors.Join(errs...)
}

// retry repeats a dump that the kernel says was interrupted by a change (NLM_F_DUMP_INTR), and one whose answers got
// lost.
func retry[T any](dump func() (T, error)) (v T, err error) {
	const tries = 10
	for range tries {
		if v, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) && !unheard(err) {
			return v, err
		}
	}
	return v, err
}

// again repeats what is the same if done twice, when the kernel's answer was late or lost: what it has is looked at,
// and what is missing is done.
func again(do func() error) error {
	err := do()
	if unheard(err) {
		err = do()
	}
	return err
}

// unheard says whether an error tells of an exchange that may have succeeded. The next one by the same socket skips
// what it left, by the number of each answer (NetlinkRequest.ExecuteIter, vishvananda/netlink); but a dump that was not
// read to its end has the kernel refuse the next one (EBUSY, __netlink_dump_start), which reads on.
func unheard(err error) bool {
	for _, one := range []error{unix.EAGAIN, unix.ENOBUFS, unix.EBUSY, unix.EINTR, os.ErrDeadlineExceeded} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// A Sysctl is the wanted value of a setting below /proc/sys. Once set it stays: others may have come to rely on it.
type Sysctl struct {
	Path  []string // "net", "ipv4", "ip_forward"
	Value string
	// Optional: a kernel without this setting is as good as one where it has the value.
	Optional bool
}

func (s Sysctl) file() string { return filepath.Join(append([]string{"/proc/sys"}, s.Path...)...) }

// String names the setting as sysctl(8) does.
func (s Sysctl) String() string { return "sysctl " + strings.Join(s.Path, ".") + "=" + s.Value }

func (s Sysctl) ensure(k *Kernel) error {
	got, err := k.readSysctl(s.file())
	if err == nil && got == s.Value {
		return nil
	}
	if err == nil {
		err = k.inside(func() error { return os.WriteFile(s.file(), []byte(s.Value), 0o644) })
	}
	if errors.Is(err, os.ErrNotExist) && s.Optional {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", s, err)
	}
	return nil
}

func (Sysctl) remove(*Kernel) error { return nil }

func (s Sysctl) check(snap *snapshot) []string {
	got, err := snap.k.readSysctl(s.file())
	if (err != nil && s.Optional) || (err == nil && got == s.Value) {
		return nil
	}
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", s, err)}
	}
	return []string{fmt.Sprintf("%s: it is %s", s, got)}
}

func (k *Kernel) readSysctl(file string) (string, error) {
	var raw []byte
	err := k.inside(func() (err error) {
		raw, err = os.ReadFile(file)
		return err
	})
	return strings.TrimSpace(string(raw)), err
}

// inside runs f in the Kernel's namespace. /proc/sys/net shows the namespace of the thread that opens it, so a thread
// has to move.
func (k *Kernel) inside(f func() error) error {
	if !k.ns.IsOpen() {
		return f()
	}
	return Inside(int(k.ns), f)
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
