package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/nft"
	"netyard/kernel/rule"
	"netyard/kernel/sandbox"
)

// ListenOn opens a UDP and a TCP socket at an address of the host, bound to one link (SO_BINDTODEVICE, socket(7)): they
// do not receive what comes to the address by another link or from the host itself. They receive nothing any more once
// the link is gone, not even when another link gets its name (LinkIndex). If the port is taken, the error names the
// program that has it.
func ListenOn(
	ctx context.Context, k *core.Handle, link string, at netip.AddrPort,
) (udp net.PacketConn, tcp net.Listener, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if ctl := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), link) }); ctl != nil {
			return ctl
		}
		return err
	}}
	err = k.Inside(func() (err error) {
		if udp, err = lc.ListenPacket(ctx, "udp", at.String()); err != nil {
			return err
		}
		if tcp, err = lc.Listen(ctx, "tcp", at.String()); err != nil {
			_ = udp.Close() // nothing was sent by it
		}
		return err
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, nil, fmt.Errorf("listen on %s at %s: %w%s", link, at, err, portOwner(k, at))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s at %s: %w", link, at, err)
	}
	return udp, tcp, nil
}

// portOwner returns ": " and who has a port at an address, or "" if that is not known.
func portOwner(k *core.Handle, at netip.AddrPort) string {
	all, err := sandbox.Listeners(k, "udp", "tcp")
	if err != nil {
		return ""
	}
	for _, l := range all {
		if !l.Bound && l.Receives(l.Proto, at.Addr(), at.Port(), 1) {
			return fmt.Sprintf(": %s has %s of %s", l.Owner(), l.Proto, netip.AddrPortFrom(l.Addr, l.Port))
		}
	}
	return ""
}

// RedirectPort returns the elements that redirect UDP and TCP for a port of one of the host's addresses to another port
// at the same address. So a listener there conflicts neither with another program that has the first port nor with a
// published port.
func RedirectPort(a netip.Addr, port, to uint16) (all []nft.Element) {
	for _, proto := range []string{"udp", "tcp"} {
		e := Publication{Proto: proto, Host: a, Port: port, Count: 1, To: a, ToPort: to}.Elements()[0]
		e.Set = rule.ByFamily(a.Is6(), own4, own6)
		all = append(all, e)
	}
	return all
}
