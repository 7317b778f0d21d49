package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

// A Sandbox gives access to the sockets of another network namespace. While it is open the namespace exists, even if
// its engine has removed it.
type Sandbox struct {
	ns          *os.File
	conn        *netlink.Conn // nil: to be opened
	first, last uint16        // its range of ephemeral ports
}

// OpenSandbox opens the namespace at a path: the one with that ID, if one is given.
func OpenSandbox(path string, id core.NamespaceID) (*Sandbox, error) {
	ns, err := core.OpenSandbox(path, id)
	if err == nil && ns == nil {
		err = fmt.Errorf("open sandbox: %s is not its network namespace", path)
	}
	if err != nil {
		return nil, err
	}
	var ports []byte
	err = core.Inside(int(ns.Fd()), func() (err error) {
		ports, err = os.ReadFile(ephemeralFile)
		return err
	})
	s := &Sandbox{ns: ns}
	if err == nil {
		s.first, s.last, err = parseEphemeral(strings.TrimSpace(string(ports)))
	}
	if err == nil {
		err = s.dial()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open sandbox %s: %w", path, err), ns.Close())
	}
	return s, nil
}

func (s *Sandbox) dial() (err error) {
	if s.conn != nil {
		return nil
	}
	if s.conn, err = netlink.Dial(unix.NETLINK_INET_DIAG, &netlink.Config{NetNS: int(s.ns.Fd())}); err != nil {
		s.conn = nil
		return fmt.Errorf("open sock_diag: %w", err)
	}
	return nil
}

// Listeners lists the sockets in the sandbox that listen for TCP connections, and its unconnected UDP sockets. After an
// error it replaces its netlink socket, so that an answer left in it is not taken as the next one, and tries once more.
func (s *Sandbox) Listeners() (all []Listener, err error) {
	for range 2 {
		if err = s.dial(); err != nil {
			return nil, err
		}
		if all, err = allListeners(s.conn); err == nil {
			break
		}
		err = errors.Join(err, s.conn.Close())
		s.conn = nil
	}
	for i, l := range all {
		all[i].Ephemeral = l.Proto == "udp" && s.first <= l.Port && l.Port <= s.last
	}
	return all, err
}

// Close closes the namespace.
func (s *Sandbox) Close() error {
	if s.conn == nil {
		return s.ns.Close()
	}
	return errors.Join(s.conn.Close(), s.ns.Close())
}
