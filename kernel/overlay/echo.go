// Package overlay is about networks across hosts: VXLAN devices, their peers, the WireGuard device that encrypts
// them, and the rules that keep others out.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"netyard/kernel/core"
	"netyard/kernel/rule"
)

// An Echo is one packet to an address that should come back: an echo request of a size that nobody on the way may cut
// in pieces.
type Echo struct {
	To   netip.Addr
	Size int // of the packet, bytes; the least there is if that is more
}

const (
	echoRounds = 3 // a packet may be lost
	echoTime   = 400 * time.Millisecond

	ipHeader4, ipHeader6, icmpHeader = 20, 40, 8 // bytes (RFC 791, RFC 8200, RFC 792)
	protoICMP, protoICMPv6           = 1, 58
)

// Echoes sends them and says which came back.
func Echoes(ctx context.Context, k *core.Handle, all []Echo) (back []bool, err error) {
	back = make([]bool, len(all))
	return back, k.Inside(func() error {
		for _, f := range rule.Families() {
			if err := echoes(ctx, f.V6(), all, back); err != nil {
				return err
			}
		}
		return nil
	})
}

// echoes is Echoes for those of one family.
func echoes(ctx context.Context, v6 bool, all []Echo, back []bool) error {
	waiting := func() (at []int) {
		for i, e := range all {
			if e.To.Is6() == v6 && !back[i] {
				at = append(at, i)
			}
		}
		return at
	}
	if len(waiting()) == 0 {
		return nil
	}
	network := "ip4:icmp"
	if v6 {
		network = "ip6:ipv6-icmp"
	}
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return whole(c, v6) }}
	conn, err := listen.ListenPacket(ctx, network, "")
	if err != nil {
		return fmt.Errorf("open an ICMP socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing was promised
	id := os.Getpid() & 0xffff
	for range echoRounds {
		at := waiting()
		if len(at) == 0 || ctx.Err() != nil {
			break
		}
		for _, i := range at {
			_, _ = conn.WriteTo(echo(id, i, all[i].Size, v6), &net.IPAddr{IP: all[i].To.AsSlice()}) // what did not go does not come back
		}
		if err := hear(conn, id, v6, back, len(at)); err != nil {
			return err
		}
	}
	return nil
}

// whole has the kernel send packets in one piece, whatever it thinks of the way (ip(7), IP_PMTUDISC_PROBE).
func whole(c syscall.RawConn, v6 bool) error {
	var err error
	bad := c.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	return errors.Join(bad, err)
}

func echo(id, seq, size int, v6 bool) []byte {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho}
	header := ipHeader4
	if v6 {
		m.Type, header = ipv6.ICMPTypeEchoRequest, ipHeader6
	}
	m.Body = &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, max(size-header-icmpHeader, 0))}
	raw, _ := m.Marshal(nil) // of IPv6 the kernel makes the checksum; an Echo always fits
	return raw
}

// hear reads until as many came back as are waited for, or the round is over.
func hear(conn net.PacketConn, id int, v6 bool, back []bool, left int) error {
	if err := conn.SetReadDeadline(time.Now().Add(echoTime)); err != nil {
		return err
	}
	proto := protoICMP
	if v6 {
		proto = protoICMPv6
	}
	buf := make([]byte, 1<<16)
	for left > 0 {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from an ICMP socket: %w", err)
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && e.Seq < len(back) && !back[e.Seq] {
			back[e.Seq] = true
			left--
		}
	}
	return nil
}
