package kernel

import (
	"fmt"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A Sandbox is a look into another network namespace. While it is open the namespace lives on, even when its engine has done with it.
type Sandbox struct {
	conn        *netlink.Conn
	first, last uint16 // its ephemeral ports
}

// OpenSandbox opens the namespace behind a path.
func OpenSandbox(path string) (*Sandbox, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open sandbox: %w", err)
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	var ports []byte
	err = Inside(int(ns.Fd()), func() (err error) {
		ports, err = os.ReadFile(ephemeralFile)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look into sandbox %s: %w", path, err)
	}
	s := &Sandbox{}
	if s.first, s.last, err = parseEphemeral(strings.TrimSpace(string(ports))); err != nil {
		return nil, err
	}
	if s.conn, err = netlink.Dial(unix.NETLINK_INET_DIAG, &netlink.Config{NetNS: int(ns.Fd())}); err != nil {
		return nil, fmt.Errorf("open sock_diag of sandbox %s: %w", path, err)
	}
	return s, nil
}

// Listeners lists the sockets in the sandbox that wait for TCP connections and UDP datagrams.
func (s *Sandbox) Listeners() ([]Listener, error) {
	all, err := allListeners(s.conn)
	for i, l := range all {
		all[i].Fleeting = l.Proto == "udp" && s.first <= l.Port && l.Port <= s.last
	}
	return all, err
}

// Close lets go of the namespace.
func (s *Sandbox) Close() error { return s.conn.Close() }
