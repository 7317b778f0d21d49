package kerneltest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// sctp opens an SCTP socket, which package net does not support. Each operation times out after ten seconds.
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

// ServeSCTP starts a server that sends each client the address it came from, and ends after that many clients. It skips
// the test if the kernel has no SCTP.
func (h *Host) ServeSCTP(t testing.TB, port, clients int) {
	t.Helper()
	fd, err := sctp(h, unix.AF_INET6) // accepts both families
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

// AskSCTP connects to such a server and returns what it sent, or the error. The socket has only the family of to:
// NAT does not translate the addresses listed in SCTP's first packet, and if it listed those of both families, there
// would be no association.
func (h *Host) AskSCTP(to netip.AddrPort) string {
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := sctp(h, family)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is written
	if err := unix.Connect(fd, at); err != nil {
		return fmt.Sprintf("connect to %s: %v", to, err)
	}
	answer := make([]byte, 64)
	n, err := unix.Read(fd, answer)
	if err != nil {
		return fmt.Sprintf("read from %s: %v", to, err)
	}
	return string(answer[:n])
}
