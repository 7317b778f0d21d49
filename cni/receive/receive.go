// Package receive is the daemon's side of the protocol in package cni, apart from it so that the plugin links nothing
// that only the daemon needs: what a program links, it initializes at each start.
package receive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"netyard/cni"
)

// ErrDescriptor is the error of a request whose descriptor was lost (recvmsg(2), MSG_CTRUNC). Its sandbox is unknown,
// which must not count as a request without one.
var ErrDescriptor = errors.New("receive the sandbox's descriptor: the daemon has no free descriptor, " +
	"or several were sent; raise LimitNOFILE= of netyard.service if this lasts")

// Request reads a request from a connection. netns is nil if no descriptor came with it; otherwise the caller closes
// it.
func Request(c *net.UnixConn) (r cni.Request, netns *os.File, err error) {
	const space = 64 // room for the control message of one descriptor (cmsg(3))
	first, rights := make([]byte, 1), make([]byte, space)
	n, size, flags, _, err := c.ReadMsgUnix(first, rights)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return r, nil, fmt.Errorf("read request: %w", err)
	}
	if netns, err = descriptor(rights[:size]); err != nil {
		return r, nil, err
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		if netns != nil {
			_ = netns.Close() // opened for reading only
		}
		return r, nil, ErrDescriptor
	}
	limited := io.LimitReader(io.MultiReader(bytes.NewReader(first), c), cni.MaxRequest)
	if err := json.NewDecoder(limited).Decode(&r); err != nil {
		if netns != nil {
			err = errors.Join(err, netns.Close())
		}
		return r, nil, fmt.Errorf("decode request: %w", err)
	}
	return r, netns, nil
}

// descriptor returns the first descriptor of a control message and closes all others.
func descriptor(control []byte) (*os.File, error) {
	if len(control) == 0 {
		return nil, nil //nolint:nilnil // no descriptor is not an error
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
		return nil, nil //nolint:nilnil // no descriptor is not an error
	}
	for _, fd := range fds[1:] {
		_ = syscall.Close(fd)
	}
	syscall.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "netns"), nil
}
