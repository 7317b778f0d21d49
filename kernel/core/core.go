// Package core is the ground that every other part of kernel stands on: the handle of a network namespace, addresses,
// names and aliases, links found and deleted, other namespaces, what several networks share, and the view that
// objects are compared with.
package core

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// NetlinkTimeout bounds one exchange with the kernel, so that no request of an engine can hang on it for long.
	NetlinkTimeout = 5 * time.Second

	// RouteProtocol marks the routes netyard puts in (rtnetlink(7), rtm_protocol); it is not in iproute2's rt_protos.
	RouteProtocol = 78
)

// ErrForeign says that an object of the wanted name is there and belongs to someone else.
var ErrForeign = errors.New("is not netyard's")

func openSocket(ns netns.NsHandle) (*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	wait := unix.NsecToTimeval(NetlinkTimeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&wait), s.SetReceiveTimeout(&wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("bound netlink's waits: %w", err)
	}
	return &nl.SocketHandle{Socket: s}, nil
}

// Retry repeats a dump that the kernel says was interrupted by a change (NLM_F_DUMP_INTR), and one whose answers got
// lost.
func Retry[T any](dump func() (T, error)) (v T, err error) {
	const tries = 10
	for range tries {
		if v, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) && !unheard(err) {
			return v, err
		}
	}
	return v, err
}

// Again repeats what is the same if done twice, when the kernel's answer was late or lost: what it has is looked at,
// and what is missing is done.
func Again(do func() error) error {
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

// Poke asks the watcher to look soon.
func (k *Handle) Poke() {
	select {
	case k.Poked <- struct{}{}:
	default:
	}
}
