// Package dhcp connects a DHCP client to the link: below IP on the host, and by sockets and addresses of a link in a
// sandbox. The protocol itself is in ipam/dhcp.
package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/sandbox"
)

// An SandboxLink is a link inside a sandbox. It keeps the namespace alive, so close it soon.
type SandboxLink struct {
	ns   *os.File
	nl   *netlink.Handle
	link netlink.Link
}

// OpenSandboxLink finds a link in the sandbox at a path, which is the namespace with that ID, if one is given: the link
// with that alias, or else the one without an alias that has that hardware address.
func OpenSandboxLink(path string, id core.NamespaceID, alias string, mac net.HardwareAddr) (*SandboxLink, error) {
	file, err := core.OpenSandbox(path, id)
	if err == nil && file == nil {
		err = errors.New("the path is not its network namespace")
	}
	if err != nil {
		return nil, fmt.Errorf("enter sandbox %s: %w", path, err)
	}
	s := &SandboxLink{ns: file}
	if s.nl, err = core.OpenNetlink(s.handle()); err != nil {
		return nil, errors.Join(fmt.Errorf("enter sandbox %s: %w", path, err), file.Close())
	}
	if s.link, err = s.find(alias, mac); err != nil {
		return nil, errors.Join(fmt.Errorf("find link %s in sandbox %s: %w", mac, path, err), s.Close())
	}
	return s, nil
}

func (s *SandboxLink) handle() netns.NsHandle { return netns.NsHandle(s.ns.Fd()) }

func (s *SandboxLink) find(alias string, mac net.HardwareAddr) (found netlink.Link, err error) {
	links, err := core.Retry(s.nl.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		switch a := l.Attrs(); {
		case a.Alias == alias && alias != "":
			return l, nil
		case a.Alias == "" && bytes.Equal(a.HardwareAddr, mac):
			found = l
		}
	}
	if found == nil {
		return nil, unix.ENODEV
	}
	return found, nil
}

// Close releases the namespace.
func (s *SandboxLink) Close() error {
	s.nl.Close()
	return s.ns.Close()
}

// Wire opens a Wire on the link.
func (s *SandboxLink) Wire() (*Wire, error) {
	ns, err := unix.FcntlInt(s.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of a network namespace: %w", err)
	}
	return openWire(netns.NsHandle(ns), s.link.Attrs().Index, s.link.Attrs().HardwareAddr)
}

// Readdress changes the link from one configuration to another: addresses, MTU, and routes in their order.
func (s *SandboxLink) Readdress(was, is sandbox.Plug) error {
	return sandbox.Change(s.nl, s.link, was, is)
}

// Faults returns what of the link is not as configured.
func (s *SandboxLink) Faults(is sandbox.Plug) ([]string, error) { return is.FaultsOf(s.nl, s.link) }

// Down sets the link down.
func (s *SandboxLink) Down() error {
	if err := s.nl.LinkSetDown(s.link); err != nil {
		return fmt.Errorf("set link %s down: %w", s.link.Attrs().Name, err)
	}
	return nil
}

// A Socket is a DHCP client's socket in a sandbox whose link has its address already: answers arrive by IP.
type Socket struct {
	file *os.File
	fd   int
}

// Socket opens a Socket. Close it once the server has answered, since the container may have a DHCP client of its own.
func (s *SandboxLink) Socket() (*Socket, error) {
	var fd int
	err := core.Inside(int(s.ns.Fd()), func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.link.Attrs().Name),
			// Not bound to the address, since a DHCPNAK is broadcast (RFC 2131, 4.1).
			unix.Bind(fd, &unix.SockaddrInet4{Port: clientPort}))
	})
	if err != nil {
		if fd > 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return nil, fmt.Errorf("open a DHCP socket in a sandbox: %w", err)
	}
	return &Socket{os.NewFile(uintptr(fd), "DHCP socket"), fd}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return s.file.Close() }

// Broadcast sends a message to every DHCP server on the link.
func (s *Socket) Broadcast(msg []byte) error {
	return s.Send(msg, nil, netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}

// Unicast sends a message to one DHCP server.
func (s *Socket) Unicast(msg []byte, from, to netip.Addr) error {
	return s.Send(msg, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()}), to)
}

// Send sends a message to a DHCP server; control is ancillary data of the socket (sendmsg(2)).
func (s *Socket) Send(msg, control []byte, to netip.Addr) error {
	if err := unix.Sendmsg(s.fd, msg, control, &unix.SockaddrInet4{Port: serverPort, Addr: to.As4()}, 0); err != nil {
		return fmt.Errorf("send DHCP message to %s: %w", to, err)
	}
	return nil
}

// Receive waits for the next message to a DHCP client.
func (s *Socket) Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error) {
	buf := make([]byte, maxFrame)
	n, err := read(ctx, s.file, buf)
	return buf[:n], nil, err
}

// OwnerOf always reports that an address is free: a link that has its address needs no probe.
func (*Socket) OwnerOf(context.Context, netip.Addr) (net.HardwareAddr, error) { return nil, nil }
