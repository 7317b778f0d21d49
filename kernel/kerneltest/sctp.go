package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// sctp opens a socket of SCTP, which Go has no package for. It waits ten seconds for anything.
func sctp(h *Host, family int) (fd int, err error) {
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

// ServeSCTP tells so many clients which address it sees of them; without SCTP in the kernel the test is skipped.
func (h *Host) ServeSCTP(t testing.TB, port, clients int) {
	t.Helper()
	fd, err := sctp(h, unix.AF_INET6) // of both families
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skipf("this kernel has no SCTP: %v", err)
	}
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

// AskSCTP is what such a server says to a client of one family: the addresses that SCTP has in its first packet no NAT
// translates, and with those of both in it there is no association.
func (h *Host) AskSCTP(to netip.AddrPort) string {
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
