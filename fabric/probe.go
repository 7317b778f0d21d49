package fabric

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
)

// A question is one packet to an address: an echo request of a size that nobody on the way may cut in pieces.
type question struct {
	to   netip.Addr
	size int // of the packet, bytes
}

const (
	rounds    = 3 // a packet may be lost
	roundTime = 400 * time.Millisecond

	ipHeader4, ipHeader6, icmpHeader = 20, 40, 8 // bytes (RFC 791, RFC 8200, RFC 792)
	protoICMP, protoICMPv6           = 1, 58
)

// ask sends the questions of one family and says which were answered. It works in the network namespace of its thread.
func ask(ctx context.Context, v6 bool, qs []question) (answered []bool, err error) {
	if len(qs) == 0 {
		return nil, nil
	}
	network := "ip4:icmp"
	if v6 {
		network = "ip6:ipv6-icmp"
	}
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return whole(c, v6) }}
	conn, err := listen.ListenPacket(ctx, network, "")
	if err != nil {
		return nil, fmt.Errorf("open an ICMP socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing was promised
	answered = make([]bool, len(qs))
	id := os.Getpid() & 0xffff
	for range rounds {
		left := 0
		for i, q := range qs {
			if answered[i] {
				continue
			}
			left++
			_, _ = conn.WriteTo(echo(id, i, q.size, v6), &net.IPAddr{IP: q.to.AsSlice()}) // what did not go is not answered
		}
		if left == 0 || ctx.Err() != nil {
			break
		}
		if err := answers(conn, id, v6, answered, left); err != nil {
			return nil, err
		}
	}
	return answered, nil
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

// answers reads until as many are there as are left, or the round is over.
func answers(conn net.PacketConn, id int, v6 bool, answered []bool, left int) error {
	if err := conn.SetReadDeadline(time.Now().Add(roundTime)); err != nil {
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
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && e.Seq < len(answered) && !answered[e.Seq] {
			answered[e.Seq] = true
			left--
		}
	}
	return nil
}
