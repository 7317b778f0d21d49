package bridge_test

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"netyard/kernel/kerneltest"
)

const (
	poured = 64 << 20 // bytes
	onWire = 1428     // bytes of TCP in a packet of 1500, which is how segments are counted
)

// TestBigSegments: segments of more than 64 KiB pass the guard and the rules between two containers, in both families:
// hardly one is sent again, which TCP does on a busy machine. An IPv6 one has a header that says its length (RFC 2675).
func TestBigSegments(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64"))
	n.Internal = true
	n = l.up(n)
	from := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	to := l.run(n, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
	for _, netfilter := range []string{"0", "1"} {
		l.host.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables="+netfilter+
			" net.bridge.bridge-nf-call-ip6tables="+netfilter)
		for _, addr := range []string{"10.9.0.3", "fd09::3"} {
			l.reaches(from, addr, true)
			before, bytes, segments := sentAgain(t, from), received(t, l.host, 1), received(t, l.host, 2)
			pour(t, from, to, addr)
			bytes, segments = received(t, l.host, 1)-bytes, received(t, l.host, 2)-segments
			if bytes/segments <= 65536 {
				t.Errorf("to %s, br_netfilter %s: %d bytes in %d segments", addr, netfilter, bytes, segments)
			}
			if again := sentAgain(t, from) - before; again > poured/onWire/100 {
				t.Errorf("to %s, br_netfilter %s: %d segments were sent again", addr, netfilter, again)
			}
		}
	}
}

// pour sends by TCP.
func pour(t *testing.T, from, to *kerneltest.Host, addr string) {
	t.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- 0
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	err := from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		chunk := make([]byte, 1<<20)
		for range poured / len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				return err
			}
		}
		return c.Close()
	})
	if n := <-got; err != nil || n != poured {
		t.Errorf("to %s: %d bytes arrived: %v", addr, n, err)
	}
}

// received returns a column of what the host has received from the first container: 1 is bytes, 2 segments.
func received(t *testing.T, host *kerneltest.Host, column int) int {
	t.Helper()
	return number(t, host, "ip -s link show nyv-e1e1e1e1e1e | awk '/RX:/{getline; print $"+strconv.Itoa(column)+"}'")
}

// sentAgain returns how many segments a host has sent again.
func sentAgain(t *testing.T, h *kerneltest.Host) int {
	t.Helper()
	return number(t, h, "awk '/^Tcp: [0-9]/{print $13}' /proc/net/snmp")
}

// number returns the number that a command prints.
func number(t *testing.T, h *kerneltest.Host, cmd string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(h.Sh(t, cmd)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
