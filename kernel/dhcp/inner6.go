package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
)

const (
	clientPort6, serverPort6 = 546, 547 // RFC 8415, 7.2

	// dadPause is how long to wait between two reads of an address while duplicate address detection runs.
	dadPause = 100 * time.Millisecond
)

// ErrDuplicate says that another host on the link has an address (RFC 4862, 5.4).
var ErrDuplicate = errors.New("another host on the link has it")

// IsUp reports whether the link is up, which means that it is plugged in completely.
func (s *SandboxLink) IsUp() bool { return s.link.Attrs().Flags&net.FlagUp != 0 }

// EnableIPv6 enables IPv6 on the link: a link-local address, and router advertisements. With auto, the kernel makes
// addresses from the advertised prefixes (SLAAC, RFC 4862). With routed, the advertising routers become default routes.
func (s *SandboxLink) EnableIPv6(auto, routed bool) error {
	const always = "2" // also where the container forwards (Documentation/networking/ip-sysctl.rst, accept_ra)
	name := s.link.Attrs().Name
	return core.Inside(int(s.ns.Fd()), func() error {
		for _, v := range []struct{ key, value string }{
			{"accept_ra", always},
			{"autoconf", digit(auto)},
			{"accept_ra_pinfo", "1"},
			{"accept_ra_defrtr", digit(routed)},
			{"disable_ipv6", "0"}, // last, since it makes the kernel solicit routers
		} {
			set := core.Sysctl{Path: []string{"net", "ipv6", "conf", name, v.key}, Value: v.value}
			if err := os.WriteFile(set.File(), []byte(set.Value), 0o644); err != nil {
				return fmt.Errorf("set %s in the sandbox: %w", set, err)
			}
		}
		return nil
	})
}

func digit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// awaitAddr waits until duplicate address detection has ended for an address of the link that matches. With given, the
// address has been added before and must not disappear: the kernel removes one with a limited lifetime when it finds a
// duplicate (addrconf_dad_stop, net/ipv6/addrconf.c).
func (s *SandboxLink) awaitAddr(ctx context.Context, given bool, matches func(netip.Addr) bool) (netip.Addr, error) {
	for {
		addrs, err := core.Retry(func() ([]netlink.Addr, error) { return s.nl.AddrList(s.link, unix.AF_INET6) })
		if err != nil {
			return netip.Addr{}, fmt.Errorf("list addresses in a sandbox: %w", err)
		}
		found := false
		for _, a := range addrs {
			addr := core.PrefixOf(a.IPNet).Addr()
			found = found || matches(addr)
			switch {
			case !matches(addr):
			case a.Flags&unix.IFA_F_DADFAILED != 0:
				return addr, ErrDuplicate
			case a.Flags&unix.IFA_F_TENTATIVE == 0:
				return addr, nil
			}
		}
		if given && !found {
			return netip.Addr{}, ErrDuplicate
		}
		select {
		case <-ctx.Done():
			return netip.Addr{}, fmt.Errorf("wait for an IPv6 address of link %s: %w", s.link.Attrs().Name, ctx.Err())
		case <-time.After(dadPause):
		}
	}
}

// SetAddr6 adds an address with its lifetimes to the link, and waits until duplicate address detection has ended. A
// lifetime of zero means for ever. The kernel removes the address when it expires, whether or not the daemon runs.
func (s *SandboxLink) SetAddr6(ctx context.Context, a netip.Prefix, preferred, valid time.Duration) error {
	addr := &netlink.Addr{
		IPNet: core.IPNet(a), Flags: unix.IFA_F_NOPREFIXROUTE,
		PreferedLft: int(preferred.Seconds()), ValidLft: int(valid.Seconds()),
	}
	if err := s.nl.AddrReplace(s.link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	if _, err := s.awaitAddr(ctx, true, func(b netip.Addr) bool { return b == a.Addr() }); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return nil
}

// RemoveAddr6 removes an address from the link.
func (s *SandboxLink) RemoveAddr6(a netip.Prefix) error {
	err := s.nl.AddrDel(s.link, &netlink.Addr{IPNet: core.IPNet(a)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s: %w", a, err)
	}
	return nil
}

// A Socket6 is a DHCPv6 client's socket on a link in a sandbox. Close it once the server has answered.
type Socket6 struct {
	conn net.PacketConn
	zone string
}

// Socket6 opens a Socket6 at the link-local address, which it waits for (RFC 8415, 17.1).
func (s *SandboxLink) Socket6(ctx context.Context) (*Socket6, error) {
	from, err := s.awaitAddr(ctx, false, netip.Addr.IsLinkLocalUnicast)
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 socket in a sandbox: %w", err)
	}
	var file *os.File
	err = core.Inside(int(s.ns.Fd()), func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "DHCPv6 socket")
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.link.Attrs().Name),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, s.link.Attrs().Index),
			unix.Bind(fd, &unix.SockaddrInet6{
				Port: clientPort6, Addr: from.As16(),
				ZoneId: uint32(s.link.Attrs().Index), //nolint:gosec // an index
			}))
	})
	if file != nil {
		defer file.Close() //nolint:errcheck // the connection has a descriptor of its own
	}
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 socket in a sandbox: %w", err)
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 socket in a sandbox: %w", err)
	}
	return &Socket6{conn: conn, zone: fmt.Sprint(s.link.Attrs().Index)}, nil
}

// Close closes the socket.
func (s *Socket6) Close() error { return s.conn.Close() }

// Multicast sends a message to every DHCPv6 server and relay on the link.
func (s *Socket6) Multicast(msg []byte) error {
	all := net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: serverPort6, Zone: s.zone}
	if _, err := s.conn.WriteTo(msg, &all); err != nil {
		return fmt.Errorf("send DHCPv6 message to all servers: %w", err)
	}
	return nil
}

// Receive waits for the next message to a DHCPv6 client.
func (s *Socket6) Receive(ctx context.Context) (msg []byte, from netip.Addr, err error) {
	if err := s.conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, from, fmt.Errorf("wait for an answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, maxFrame)
	n, addr, err := s.conn.ReadFrom(buf)
	if ctx.Err() != nil {
		return nil, from, fmt.Errorf("wait for an answer: %w", ctx.Err())
	}
	if err != nil {
		return nil, from, fmt.Errorf("wait for an answer: %w", err)
	}
	if u, ok := addr.(*net.UDPAddr); ok {
		from = u.AddrPort().Addr().WithZone("")
	}
	return buf[:n], from, nil
}
