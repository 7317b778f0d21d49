// Package overlay makes networks across hosts: VXLAN devices, their peers, the WireGuard device that encrypts them, and
// the rules that drop frames of others.
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

// A Probe is an echo request to an address, of a size that must not be fragmented on the way.
type Probe struct {
	To   netip.Addr
	Size int // of the packet in bytes; raised to the smallest possible
}

const (
	echoRounds = 3 // a packet may be lost
	echoWait   = 400 * time.Millisecond

	ipHeader4, ipHeader6, icmpHeader = 20, 40, 8 // bytes (RFC 791, RFC 8200, RFC 792)
	protoICMP, protoICMPv6           = 1, 58
)

// SendProbes sends the requests and reports which of them were answered.
func SendProbes(ctx context.Context, k *core.Handle, all []Probe) (back []bool, err error) {
	back = make([]bool, len(all))
	return back, k.Inside(func() error {
		for _, f := range rule.Families() {
			if err := sendEchoes(ctx, f.V6(), all, back); err != nil {
				return err
			}
		}
		return nil
	})
}

// sendEchoes sends the requests to the addresses of one family, and sets back for those that were answered.
func sendEchoes(ctx context.Context, v6 bool, all []Probe, back []bool) error {
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
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return neverFragment(c, v6) }}
	conn, err := listen.ListenPacket(ctx, network, "")
	if err != nil {
		return fmt.Errorf("open an ICMP socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	id := os.Getpid() & 0xffff
	for range echoRounds {
		at := waiting()
		if len(at) == 0 || ctx.Err() != nil {
			break
		}
		for _, i := range at {
			// A request that could not be sent is not answered.
			_, _ = conn.WriteTo(echoRequest(id, i, all[i].Size, v6), &net.IPAddr{IP: all[i].To.AsSlice()})
		}
		if err := readReplies(conn, id, v6, back, len(at)); err != nil {
			return err
		}
	}
	return nil
}

// neverFragment makes the kernel send packets in one piece, whatever it knows of the path MTU (ip(7),
// IP_PMTUDISC_PROBE).
func neverFragment(c syscall.RawConn, v6 bool) error {
	var err error
	controlErr := c.Control(func(fd uintptr) {
		if v6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	return errors.Join(controlErr, err)
}

func echoRequest(id, seq, size int, v6 bool) []byte {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho}
	header := ipHeader4
	if v6 {
		m.Type, header = ipv6.ICMPTypeEchoRequest, ipHeader6
	}
	m.Body = &icmp.Echo{ID: id, Seq: seq, Data: make([]byte, max(size-header-icmpHeader, 0))}
	raw, _ := m.Marshal(nil) // the kernel computes the checksum of ICMPv6; an Echo cannot fail
	return raw
}

// readReplies reads until all outstanding replies have come, or the round is over.
func readReplies(conn net.PacketConn, id int, v6 bool, back []bool, outstanding int) error {
	if err := conn.SetReadDeadline(time.Now().Add(echoWait)); err != nil {
		return err
	}
	proto := protoICMP
	if v6 {
		proto = protoICMPv6
	}
	buf := make([]byte, 1<<16)
	for outstanding > 0 {
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
			outstanding--
		}
	}
	return nil
}
