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

	// dadPause is between two looks at an address that the kernel asks the link about.
	dadPause = 100 * time.Millisecond
)

// ErrDuplicate says that somebody else on the link has an address (RFC 4862, 5.4).
var ErrDuplicate = errors.New("somebody else on the link has it")

// IsUp says whether the link is up: who puts it in is through with it then.
func (s *InnerLink) IsUp() bool { return s.link.Attrs().Flags&net.FlagUp != 0 }

// EnableIPv6 gives the link IPv6: an address of the link, and what routers advertise. auto: the kernel makes itself
// addresses of their prefixes (SLAAC, RFC 4862). routed: they are default routes.
func (s *InnerLink) EnableIPv6(auto, routed bool) error {
	const also = "2" // where a container forwards, too (Documentation/networking/ip-sysctl.rst, accept_ra)
	name := s.link.Attrs().Name
	return core.Inside(int(s.ns), func() error {
		for _, v := range []struct{ key, value string }{
			{"accept_ra", also},
			{"autoconf", digit(auto)},
			{"accept_ra_pinfo", "1"},
			{"accept_ra_defrtr", digit(routed)},
			{"disable_ipv6", "0"}, // last: a solicitation of routers comes of it
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

// settled waits until the kernel knows whether anybody else has an address of the link that is so. given: it was there
// before. One that has an end is taken away when somebody else has it (addrconf_dad_stop, net/ipv6/addrconf.c).
func (s *InnerLink) settled(ctx context.Context, given bool, is func(netip.Addr) bool) (netip.Addr, error) {
	for {
		addrs, err := core.Retry(func() ([]netlink.Addr, error) { return s.nl.AddrList(s.link, unix.AF_INET6) })
		if err != nil {
			return netip.Addr{}, fmt.Errorf("list addresses of a sandbox: %w", err)
		}
		found := false
		for _, a := range addrs {
			addr := core.PrefixOf(a.IPNet).Addr()
			found = found || is(addr)
			switch {
			case !is(addr):
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

// SetAddr6 gives the link an address until then, and waits until nobody else says that it is theirs; zero times: for
// ever. The kernel takes it away when the time is up, whoever is there to see it.
func (s *InnerLink) SetAddr6(ctx context.Context, a netip.Prefix, preferred, valid time.Duration) error {
	addr := &netlink.Addr{IPNet: core.IPNet(a), PreferedLft: int(preferred.Seconds()), ValidLft: int(valid.Seconds()), Flags: unix.IFA_F_NOPREFIXROUTE}
	if err := s.nl.AddrReplace(s.link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	if _, err := s.settled(ctx, true, func(is netip.Addr) bool { return is == a.Addr() }); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return nil
}

// DropAddr6 takes an address away.
func (s *InnerLink) DropAddr6(a netip.Prefix) error {
	err := s.nl.AddrDel(s.link, &netlink.Addr{IPNet: core.IPNet(a)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s: %w", a, err)
	}
	return nil
}

// A Socket6 is a DHCPv6 client's on a link of a sandbox. It is there only while something is asked.
type Socket6 struct {
	conn net.PacketConn
	zone string
}

// Socket6 opens it, from the link's own address, which it waits for (RFC 8415, 17.1).
func (s *InnerLink) Socket6(ctx context.Context) (*Socket6, error) {
	from, err := s.settled(ctx, false, netip.Addr.IsLinkLocalUnicast)
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 client's socket in a sandbox: %w", err)
	}
	var file *os.File
	err = core.Inside(int(s.ns), func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "DHCPv6 socket")
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.link.Attrs().Name),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, s.link.Attrs().Index),
			unix.Bind(fd, &unix.SockaddrInet6{Port: clientPort6, Addr: from.As16(), ZoneId: uint32(s.link.Attrs().Index)})) //nolint:gosec // an index
	})
	if file != nil {
		defer file.Close() //nolint:errcheck // the connection has one of its own
	}
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 client's socket in a sandbox: %w", err)
	}
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 client's socket in a sandbox: %w", err)
	}
	return &Socket6{conn: conn, zone: fmt.Sprint(s.link.Attrs().Index)}, nil
}

// Close closes the socket.
func (s *Socket6) Close() error { return s.conn.Close() }

// Multicast sends a message to every DHCPv6 server and relay on the link.
func (s *Socket6) Multicast(msg []byte) error {
	all := net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: serverPort6, Zone: s.zone}
	if _, err := s.conn.WriteTo(msg, &all); err != nil {
		return fmt.Errorf("send to DHCPv6 servers: %w", err)
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
