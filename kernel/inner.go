package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// An InnerLink is a link inside a container. It keeps the namespace alive, so it is not to be kept.
type InnerLink struct {
	ns   netns.NsHandle
	nl   *netlink.Handle
	link netlink.Link
}

// EnterLink finds a link in the sandbox at a path: the one with that alias, or else the one without any that has that hardware address.
func EnterLink(path, alias string, mac net.HardwareAddr) (*InnerLink, error) {
	if !IsNamespace(path) {
		return nil, fmt.Errorf("enter sandbox %s: there is no namespace", path)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("enter sandbox %s: %w", path, err)
	}
	s := &InnerLink{ns: ns}
	if s.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("enter sandbox %s: %w", path, err), ns.Close())
	}
	err = s.nl.SetSocketTimeout(netlinkTimeout)
	if err == nil {
		s.link, err = s.find(alias, mac)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find link %s in sandbox %s: %w", mac, path, err), s.Close())
	}
	return s, nil
}

func (s *InnerLink) find(alias string, mac net.HardwareAddr) (found netlink.Link, err error) {
	links, err := retry(s.nl.LinkList)
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

// Close lets go of the namespace.
func (s *InnerLink) Close() error {
	s.nl.Close()
	return s.ns.Close()
}

// Wire is the link below its IP.
func (s *InnerLink) Wire() (*Wire, error) {
	ns, err := unix.FcntlInt(uintptr(s.ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	return openWire(netns.NsHandle(ns), s.link.Attrs().Index, s.link.Attrs().HardwareAddr)
}

// Readdress gives the link the address to in place of from, with what is to be reached by it. Either can be invalid: none. A default
// route by another link of the sandbox stays.
func (s *InnerLink) Readdress(from, to netip.Prefix, gateway netip.Addr, routes map[netip.Prefix]netip.Addr) error {
	if from.IsValid() && from != to {
		err := s.nl.AddrDel(s.link, &netlink.Addr{IPNet: ipNet(from)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", from, err)
		}
	}
	if !to.IsValid() {
		return nil
	}
	if err := s.nl.AddrReplace(s.link, &netlink.Addr{IPNet: ipNet(to)}); err != nil {
		return fmt.Errorf("add address %s: %w", to, err)
	}
	for dst, via := range routes {
		r := &netlink.Route{LinkIndex: s.link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice()}
		if via.IsUnspecified() {
			r.Gw, r.Scope = nil, unix.RT_SCOPE_LINK
		}
		if err := s.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("add route %s by %s: %w", dst, via, err)
		}
	}
	return s.defaultRoute(gateway)
}

func (s *InnerLink) defaultRoute(gateway netip.Addr) error {
	if !gateway.IsValid() {
		return nil
	}
	all, err := retry(func() ([]netlink.Route, error) { return s.nl.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	if slices.ContainsFunc(all, func(r netlink.Route) bool {
		return (r.Dst == nil || prefixOf(r.Dst).Bits() == 0) && r.LinkIndex != s.link.Attrs().Index
	}) {
		return nil
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if err := s.nl.RouteReplace(&netlink.Route{LinkIndex: s.link.Attrs().Index, Dst: ipNet(everywhere), Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route by %s: %w", gateway, err)
	}
	return nil
}

// Down takes the link down.
func (s *InnerLink) Down() error {
	if err := s.nl.LinkSetDown(s.link); err != nil {
		return fmt.Errorf("take link %s down: %w", s.link.Attrs().Name, err)
	}
	return nil
}

// A Socket is a DHCP client's in a sandbox whose link has its address: answers come by way of IP.
type Socket struct {
	file *os.File
	fd   int
}

// Socket opens it. It is there only while something is asked: a container may have a client of its own.
func (s *InnerLink) Socket() (*Socket, error) {
	var fd int
	err := Inside(int(s.ns), func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.link.Attrs().Name),
			// Not to the address: a DHCPNAK is broadcast (RFC 2131, 4.1).
			unix.Bind(fd, &unix.SockaddrInet4{Port: clientPort}))
	})
	if err != nil {
		if fd > 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return nil, fmt.Errorf("open a DHCP client's socket in a sandbox: %w", err)
	}
	return &Socket{os.NewFile(uintptr(fd), "DHCP socket"), fd}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return s.file.Close() }

// Broadcast sends a message to every DHCP server on the link.
func (s *Socket) Broadcast(msg []byte) error {
	return s.send(msg, nil, netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}

// Unicast sends a message to one DHCP server.
func (s *Socket) Unicast(msg []byte, from, to netip.Addr) error {
	return s.send(msg, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()}), to)
}

func (s *Socket) send(msg, control []byte, to netip.Addr) error {
	if err := unix.Sendmsg(s.fd, msg, control, &unix.SockaddrInet4{Port: serverPort, Addr: to.As4()}, 0); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// Receive waits for the next message to a DHCP client.
func (s *Socket) Receive(ctx context.Context) (msg []byte, from net.HardwareAddr, err error) {
	buf := make([]byte, maxFrame)
	n, err := read(ctx, s.file, buf)
	return buf[:n], nil, err
}

// InUse is not asked by who has the address.
func (*Socket) InUse(context.Context, netip.Addr) (net.HardwareAddr, error) { return nil, nil }

// SetLinkMTU sets the MTU of a link that waits on the host to be moved into a sandbox, bytes.
func (k *Kernel) SetLinkMTU(name string, mtu int) error {
	link, err := k.nl.LinkByName(name)
	if err == nil {
		err = k.nl.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU %d on link %s: %w", mtu, name, err)
	}
	return nil
}

// Hostname is the name of the host that a process believes to be on (uts_namespaces(7)).
func (*Kernel) Hostname(pid int) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/uts", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open the UTS namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is lost
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
