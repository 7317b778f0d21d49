// Package cni is the protocol between the plugin that a CNI runtime starts and the daemon: one request and one answer,
// as JSON on a unix socket. With the request comes an open descriptor of the container's network namespace (SCM_RIGHTS,
// unix(7)). A path would not be enough: the daemon may see other mounts than the runtime, and a process ID may have
// been reused by the time the daemon opens it.
//
// The plugin knows nothing of networks, so that it starts fast and a new daemon needs no new plugin.
package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	// SocketName is the file name of the socket, in the daemon's run_dir.
	SocketName = "cni.sock"
	// DefaultSocket is the path of the socket if the network configuration does not name one ("socket").
	DefaultSocket = "/run/netyard/" + SocketName
	// Deadline is the longest time that a runtime waits for a sign of the daemon: the answer, or that the request waits
	// for its turn. So it counts from the request's turn on. Meanwhile nerdctl holds a lock over all containers of the
	// host.
	Deadline = 10 * time.Second
	// SignInterval is the time between two signs that a request waits for its turn.
	SignInterval = 2 * time.Second
	// MaxWait is the longest time that a request waits for its turn. A runtime that serves Kubernetes gives up after
	// two minutes.
	MaxWait = 100 * time.Second
	// MaxRequest is the largest size of a request in bytes; a network configuration is some kilobytes.
	MaxRequest = 1 << 20
	// MaxName is the largest length of a container ID and of a network's name. Runtimes' IDs have 64 characters, and
	// those of nerdctl the namespace before.
	MaxName = 255
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
	CodeFailed      = 100 // the first code for a plugin's own errors
)

// A Request is a call of the plugin as the runtime made it.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	Netns       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config"`
}

// An Answer is what the plugin prints.
type Answer struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// An Error is an error in CNI's form.
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error returns the message and the details in one line.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// Shorten returns a text as errors name it: what is very long is cut.
func Shorten(text string) string {
	const most = 80
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// Abridge returns the text of an error, which may quote what a runtime has written: the middle of a very long one is
// left out.
func Abridge(text string) string {
	const most = 1024
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most/2]+"…"+text[len(text)-most/2:], "")
}

// errNotRunning returns the error of a call that found no daemon.
func errNotRunning(socket string) error {
	return &Error{
		Code: CodeTryAgain, Msg: fmt.Sprintf("the netyard daemon is not running (no answer on %s)", socket),
		Details: "start it with: systemctl start netyard, or netyard serve",
	}
}

// Sign is what the daemon sends before the answer while a request waits for its turn, and when the turn comes. An older
// plugin takes it for the space that may be before JSON.
const Sign = "\n"

// Call sends a request to the daemon and waits for the answer until the deadline, and from each sign on for Deadline
// again. netns may be nil.
//
// It uses blocking system calls: the poller that package net starts, to wait for many connections at once, would be a
// good part of the run time of a process that lives for one call.
func Call(deadline time.Time, socket string, r Request, netns *os.File) (json.RawMessage, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	if len(raw) > MaxRequest {
		return nil, &Error{Code: CodeConfig, Msg: fmt.Sprintf(
			"network configuration: too large: the call has %d bytes, at most %d are allowed", len(raw), MaxRequest)}
	}
	fd, err := connect(deadline, socket)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNotRunning(socket)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the netyard daemon on %s: %w", socket, err)
	}
	defer syscall.Close(fd) //nolint:errcheck // the answer was read, or the call failed
	if err := send(fd, raw, netns); err != nil {
		return nil, fmt.Errorf("send request to the netyard daemon on %s: %w", socket, err)
	}
	raw, err = receiveAnswer(fd, deadline)
	var a Answer
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		return nil, fmt.Errorf("read the netyard daemon's answer on %s: %w", socket, err)
	}
	if a.Error != nil {
		return nil, a.Error
	}
	return a.Result, nil
}

// connect opens a connection on which each system call ends by the deadline.
func connect(deadline time.Time, socket string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join( // SO_SNDTIMEO bounds connect(2) too (socket(7))
		bound(fd, syscall.SO_SNDTIMEO, deadline), bound(fd, syscall.SO_RCVTIMEO, deadline))
	if err == nil {
		err = retry(func() error { return syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}) })
	}
	if err != nil {
		return -1, errors.Join(err, syscall.Close(fd))
	}
	return fd, nil
}

// bound makes system calls on a socket end by the deadline; which is SO_SNDTIMEO or SO_RCVTIMEO.
func bound(fd, which int, deadline time.Time) error {
	left := syscall.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, which, &left)
}

// retry repeats a system call that a signal interrupted: the Go runtime sends itself signals. EAGAIN means that the
// socket's time-out has passed (socket(7), SO_RCVTIMEO).
func retry(call func() error) error {
	for {
		switch err := call(); {
		case errors.Is(err, syscall.EAGAIN):
			return os.ErrDeadlineExceeded
		case !errors.Is(err, syscall.EINTR):
			return err
		}
	}
}

// send writes a request, in one call if possible, so that the daemon wakes once. The descriptor goes with the first
// byte.
func send(fd int, raw []byte, netns *os.File) error {
	var rights []byte
	if netns != nil {
		rights = syscall.UnixRights(int(netns.Fd()))
	}
	for len(raw) > 0 {
		n := 0
		err := retry(func() (err error) {
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

// receiveAnswer reads until the daemon closes the connection.
func receiveAnswer(fd int, deadline time.Time) (raw []byte, err error) {
	buf, last := make([]byte, 1<<14), time.Now().Add(MaxWait+Deadline)
	for {
		n := 0
		err := retry(func() (err error) {
			n, err = syscall.Read(fd, buf)
			return err
		})
		switch {
		case err != nil:
			return nil, err
		case n == 0 && len(raw) == 0:
			return nil, io.ErrUnexpectedEOF
		case n == 0:
			return raw, nil
		case time.Now().After(deadline):
			return nil, os.ErrDeadlineExceeded
		case len(raw) == 0 && len(bytes.Trim(buf[:n], Sign)) == 0:
			deadline = time.Now().Add(Deadline)
			if deadline.After(last) {
				deadline = last
			}
			if err := bound(fd, syscall.SO_RCVTIMEO, deadline); err != nil {
				return nil, err
			}
			continue
		}
		raw = append(raw, buf[:n]...)
	}
}
