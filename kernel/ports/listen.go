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

// ListenOn opens sockets for UDP and TCP at an address of the host that hear one link only (SO_BINDTODEVICE,
// socket(7)): what comes to the address by another one, or from the host itself, is not for them. They hear nothing any
// more when the link is gone, also when one of its name comes again (LinkIndex). If somebody has the port, the error
// says who.
func ListenOn(ctx context.Context, k *core.Handle, link string, at netip.AddrPort) (udp net.PacketConn, tcp net.Listener, err error) {
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
			_ = udp.Close() // nothing was sent
		}
		return err
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, nil, fmt.Errorf("listen on %s at %s: %w%s", link, at, err, holder(k, at))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s at %s: %w", link, at, err)
	}
	return udp, tcp, nil
}

// holder says who has a port at an address.
func holder(k *core.Handle, at netip.AddrPort) string {
	all, err := sandbox.Listeners(k, "udp", "tcp")
	if err != nil {
		return ""
	}
	for _, l := range all {
		if !l.Bound && l.Takes(l.Proto, at.Addr(), at.Port(), 1) {
			return fmt.Sprintf(": %s has %s of %s", l.Owner(), l.Proto, netip.AddrPortFrom(l.Addr, l.Port))
		}
	}
	return ""
}

// AnswerAt are the elements that lead what comes for a port of one of the host's addresses, by UDP and TCP, to another
// of its ports there: so nobody else's program, and no published port, is in the way of it, nor it in theirs.
func AnswerAt(a netip.Addr, port, to uint16) (all []nft.Element) {
	for _, proto := range []string{"udp", "tcp"} {
		e := Publication{Proto: proto, Host: a, Port: port, Count: 1, To: a, ToPort: to}.Elements()[0]
		e.Set = rule.Either(a.Is6(), own4, own6)
		all = append(all, e)
	}
	return all
}
