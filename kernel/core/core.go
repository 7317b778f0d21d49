// Package core is what all other packages of kernel are built on: the handle of a network namespace, addresses, names
// and aliases of links, finding and deleting links, access to other namespaces, objects that several networks share,
// and the view that objects are compared with.
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
	// NetlinkTimeout limits one exchange with the kernel, so that no request of an engine waits for it for long.
	NetlinkTimeout = 5 * time.Second

	// RouteProtocol marks the routes that netyard adds (rtnetlink(7), rtm_protocol). iproute2's rt_protos does not use
	// the number.
	RouteProtocol = 78
)

// ErrForeign means that an object of the wanted name exists and netyard did not make it.
var ErrForeign = errors.New("is not netyard's")

func openSocket(ns netns.NsHandle) (*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	wait := unix.NsecToTimeval(NetlinkTimeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&wait), s.SetReceiveTimeout(&wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return &nl.SocketHandle{Socket: s}, nil
}

// Retry repeats a dump that a change interrupted (the kernel sets NLM_F_DUMP_INTR), or whose answers were lost.
func Retry[T any](dump func() (T, error)) (v T, err error) {
	const tries = 10
	for range tries {
		if v, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) && !answerLost(err) {
			return v, err
		}
	}
	return v, err
}

// RetryIdempotent repeats an idempotent operation once when the kernel's answer was late or lost. The operation must
// look at what the kernel has and do what is missing.
func RetryIdempotent(do func() error) error {
	err := do()
	if answerLost(err) {
		err = do()
	}
	return err
}

// answerLost reports whether an error means that the kernel's answer did not arrive: the exchange may have succeeded.
// The next exchange on the same socket skips late answers by their sequence numbers (NetlinkRequest.ExecuteIter,
// vishvananda/netlink). But the kernel refuses a dump while an earlier one was not read to its end (EBUSY,
// __netlink_dump_start); the refused attempt reads on, so a later one succeeds.
func answerLost(err error) bool {
	for _, one := range []error{unix.EAGAIN, unix.ENOBUFS, unix.EBUSY, unix.EINTR, os.ErrDeadlineExceeded} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// RequestCheck asks the watcher to compare soon.
func (k *Handle) RequestCheck() {
	k.CheckRequested.Send()
}
