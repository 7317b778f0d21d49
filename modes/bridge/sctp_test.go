package bridge_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// sctp opens a socket of SCTP, which Go has no package for. It waits ten seconds for anything.
func sctp(h *kerneltest.Host, family int) (fd int, err error) {
	err = h.Do(func() error {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &unix.Timeval{Sec: 10}); err != nil {
				return err
			}
		}
		return nil
	})
	return fd, err
}

// telling is a server that tells so many clients which address it sees of them.
func telling(t *testing.T, h *kerneltest.Host, port, clients int) {
	t.Helper()
	fd, err := sctp(h, unix.AF_INET6) // of both families
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, clients); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range clients {
			c, from, err := unix.Accept(fd)
			if err != nil {
				return
			}
			a, _ := from.(*unix.SockaddrInet6)
			_, _ = unix.Write(c, []byte(netip.AddrFrom16(a.Addr).Unmap().String()))
			_ = unix.Close(c)
		}
	}()
}

// told is what such a server says to a client of one family: the addresses that SCTP has in its first packet no NAT translates, and with
// those of both in it there is no association.
func told(h *kerneltest.Host, to netip.AddrPort) string {
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := sctp(h, family)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd) //nolint:errcheck // it said what it had to say
	if err := unix.Connect(fd, at); err != nil {
		return fmt.Sprintf("connect to %s: %v", to, err)
	}
	said := make([]byte, 64)
	n, err := unix.Read(fd, said)
	if err != nil {
		return fmt.Sprintf("read from %s: %v", to, err)
	}
	return string(said[:n])
}

// TestSCTP: ports of SCTP are published as those of TCP are, and what containers open themselves goes out by the host's address.
func TestSCTP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	probe, err := sctp(l.host, unix.AF_INET)
	if err != nil {
		t.Skipf("this kernel has no SCTP: %v", err)
	}
	_ = unix.Close(probe)
	n := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	inside := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	e := endpoint(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		e.Ports = append(e.Ports, modes.Port{Proto: "sctp", HostIP: all, HostPort: 3868, ContainerPort: 868, Count: 1})
	}
	if _, err := l.mode.Attach(t.Context(), n, e); err != nil {
		t.Fatal(err)
	}
	telling(t, inside, 868, 3)
	telling(t, l.outside, 36412, 1)
	for _, c := range []struct {
		from     *kerneltest.Host
		to, want string
	}{
		{l.outside, "203.0.113.2:3868", "203.0.113.1"},
		{l.outside, "[2001:db8:113::2]:3868", "2001:db8:113::1"},
		{l.host, "203.0.113.2:3868", "203.0.113.2"},
		{inside, "203.0.113.1:36412", "203.0.113.2"},
	} {
		if got := told(c.from, netip.MustParseAddrPort(c.to)); got != c.want {
			t.Errorf("%s saw %q, want %q", c.to, got, c.want)
		}
	}
}
