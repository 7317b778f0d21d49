// Package cni is what the plugin that a CNI runtime starts and the daemon say to each other: one request and one
// answer, JSON on a unix socket, and with the request an open descriptor of the container's network namespace
// (SCM_RIGHTS, unix(7)). A path would not do: the daemon may see other mounts than the runtime, and a process may be
// another one by the time it looks.
//
// The plugin knows nothing of networks, so that a new daemon needs no new plugin, and one that starts in a moment.
package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	// SocketName is the socket's, in the daemon's run_dir.
	SocketName = "cni.sock"
	// DefaultSocket is where it is unless the network configuration says otherwise ("socket").
	DefaultSocket = "/run/netyard/" + SocketName
	// Deadline is how long a runtime waits for an answer at most. nerdctl holds a lock over all containers of the host
	// meanwhile.
	Deadline = 10 * time.Second
	// MaxRequest bounds a request; a network configuration is some kilobytes.
	MaxRequest = 1 << 20
)

// The error codes of netyard's answers (CNI specification 1.1.0, section 5, "Error").
const (
	CodeVersion     = 1
	CodeUnsupported = 2
	CodeUnknown     = 3
	CodeEnvironment = 4
	CodeIO          = 5
	CodeDecoding    = 6
	CodeConfig      = 7
	CodeNamespace   = 8
	CodeTryAgain    = 11
	CodeUnavailable = 50
	CodeFailed      = 100 // the first of a plugin's own
)

// A Request is a call of the plugin, as the runtime made it.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	Netns       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config"`
}

// An Answer is what the plugin is to print.
type Answer struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// An Error is a refusal, in CNI's words.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error says it in one line.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// errAway is how a call ends that found no daemon.
func errAway(socket string) error {
	return &Error{
		Code: CodeTryAgain, Msg: fmt.Sprintf("the netyard daemon is not running (no answer on %s)", socket),
		Details: "start it with: systemctl start netyard, or netyard serve",
	}
}

// Call sends a request to the daemon and waits for the answer, until the deadline. netns may be nil.
//
// It waits in plain system calls: what package net needs to wait for many at once, a process that lives for one call
// would spend a good part of its life on.
func Call(deadline time.Time, socket string, r Request, netns *os.File) (json.RawMessage, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	fd, err := connect(deadline, socket)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errAway(socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the netyard daemon on %s: %w", socket, err)
	}
	defer syscall.Close(fd) //nolint:errcheck // all is read by then
	if err := send(fd, raw, netns); err != nil {
		return nil, fmt.Errorf("ask the netyard daemon on %s: %w", socket, err)
	}
	said, err := hear(fd, deadline)
	var a Answer
	if err == nil {
		err = json.Unmarshal(said, &a)
	}
	if err != nil {
		return nil, fmt.Errorf("hear the netyard daemon's answer on %s: %w", socket, err)
	}
	if a.Error != nil {
		return nil, a.Error
	}
	return a.Result, nil
}

// connect opens a connection on which no call waits for longer than until the deadline.
func connect(deadline time.Time, socket string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	left := syscall.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	err = errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &left), // bounds connect(2), too (socket(7))
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &left))
	if err == nil {
		err = again(func() error { return syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}) })
	}
	if err != nil {
		return -1, errors.Join(err, syscall.Close(fd))
	}
	return fd, nil
}

// again repeats a call that a signal interrupted: Go sends itself some. What is not ready by then has taken too long
// (socket(7), SO_RCVTIMEO).
func again(call func() error) error {
	for {
		switch err := call(); {
		case errors.Is(err, syscall.EAGAIN):
			return os.ErrDeadlineExceeded
		case !errors.Is(err, syscall.EINTR):
			return err
		}
	}
}

// send writes a request, at once if it can: the daemon is woken once. The descriptor goes with the first byte.
func send(fd int, raw []byte, netns *os.File) error {
	var rights []byte
	if netns != nil {
		rights = syscall.UnixRights(int(netns.Fd()))
	}
	for len(raw) > 0 {
		n := 0
		err := again(func() (err error) {
			n, err = syscall.SendmsgN(fd, raw, rights, nil, syscall.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return err
		}
		raw, rights = raw[n:], nil
	}
	return nil
}

// hear reads until the daemon has said all.
func hear(fd int, deadline time.Time) (said []byte, err error) {
	buf := make([]byte, 1<<14)
	for {
		n := 0
		err := again(func() (err error) {
			n, err = syscall.Read(fd, buf)
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case n == 0 && len(said) == 0:
			return nil, io.ErrUnexpectedEOF
		case n == 0:
			return said, nil
		case time.Now().After(deadline):
			return nil, os.ErrDeadlineExceeded
		}
		said = append(said, buf[:n]...)
	}
}

// Receive reads a request from a connection. The file is nil when none came with it; otherwise the caller closes it.
func Receive(c *net.UnixConn) (r Request, netns *os.File, err error) {
	const space = 64 // for one descriptor: cmsg(3)
	first, rights := make([]byte, 1), make([]byte, space)
	n, size, _, _, err := c.ReadMsgUnix(first, rights)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return r, nil, fmt.Errorf("read request: %w", err)
	}
	if netns, err = descriptor(rights[:size]); err != nil {
		return r, nil, err
	}
	limited := io.LimitReader(io.MultiReader(bytes.NewReader(first), c), MaxRequest)
	if err := json.NewDecoder(limited).Decode(&r); err != nil {
		if netns != nil {
			err = errors.Join(err, netns.Close())
		}
		return r, nil, fmt.Errorf("decode request: %w", err)
	}
	return r, netns, nil
}

// descriptor takes the one descriptor out of a control message, and closes whatever else came with it.
func descriptor(control []byte) (*os.File, error) {
	if len(control) == 0 {
		return nil, nil //nolint:nilnil // none came
	}
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("read control message: %w", err)
	}
	var fds []int
	for i := range messages {
		got, err := syscall.ParseUnixRights(&messages[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	if len(fds) == 0 {
		return nil, nil //nolint:nilnil // none came
	}
	for _, fd := range fds[1:] {
		_ = syscall.Close(fd) // nobody asked for it
	}
	syscall.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "netns"), nil
}
