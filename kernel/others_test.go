package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/ports"
)

// serve accepts TCP connections at an address of a namespace, and says who answers, until the test ends.
func serve(t *testing.T, h *kerneltest.Host, at, who string) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) { l, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, who)
			_ = c.Close()
		}
	}()
}

// whoAnswers returns who answers at an address; empty: nobody.
func whoAnswers(h *kerneltest.Host, at string) (who string) {
	_ = h.Do(func() error {
		c, err := net.DialTimeout("tcp", at, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // read only
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		b := make([]byte, 16)
		n, err := c.Read(b)
		who = string(b[:n])
		return err
	})
	return who
}

// TestLoopbackOfOneFamily shows that a port which netyard publishes for one family leaves the other family's loopback
// to whoever publishes the same port there: Docker, whose rules translate what is for any address of the host that is
// no loopback address, and whose proxy answers on loopback.
func TestLoopbackOfOneFamily(t *testing.T) {
	t.Parallel()
	const first = 8080
	for _, c := range []struct {
		name           string
		host           netip.Addr // netyard's
		to             string
		count          uint16
		loop, port     string // Docker's
		iptables, dnat string
	}{
		{"Docker's IPv4", netip.IPv6Unspecified(), "fd00:1::2", 1, "127.0.0.1", "8080", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv4, on ::1", netip.IPv6Loopback(), "fd00:1::2", 1, "127.0.0.1", "8080", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv4, in a range", netip.IPv6Unspecified(), "fd00:1::2", 9, "127.0.0.1", "8082", "iptables-nft", "172.17.0.2:80"},
		{"Docker's IPv6", netip.IPv4Unspecified(), "10.1.0.2", 1, "[::1]", "8080", "ip6tables-nft", "[fd17::2]:80"},
		{"Docker's IPv6, in a range", netip.IPv4Unspecified(), "10.1.0.2", 9, "[::1]", "8082", "ip6tables-nft", "[fd17::2]:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := kerneltest.New(t)
			h.Sh(t, "ip link add docker0 type bridge && ip link set docker0 up && ip addr add 172.17.0.1/16 dev docker0 "+
				"&& ip addr add fd17::1/64 dev docker0 nodad")
			exclude := map[string]string{"iptables-nft": "! -d 127.0.0.0/8", "ip6tables-nft": "! -d ::1/128"}[c.iptables]
			h.Sh(t, fmt.Sprintf("%[1]s -t nat -N DOCKER && %[1]s -t nat -A OUTPUT %[2]s -m addrtype --dst-type LOCAL "+
				"-j DOCKER && %[1]s -t nat -A DOCKER ! -i docker0 -p tcp --dport %[3]s -j DNAT --to-destination %[4]s",
				c.iptables, exclude, c.port, c.dnat))
			if err := h.LoadFirewall(); err != nil {
				t.Fatal(err)
			}
			var wanted []core.Object
			for _, e := range (ports.Publication{
				Proto: "tcp", Host: c.host, Port: first, Count: c.count, To: netip.MustParseAddr(c.to), ToPort: first,
			}).Elements() {
				wanted = append(wanted, e)
			}
			if err := h.Ensure(t.Context(), wanted...); err != nil {
				t.Fatal(err)
			}
			serve(t, h, c.loop+":"+c.port, "Docker's proxy")
			if got := whoAnswers(h, c.loop+":"+c.port); got != "Docker's proxy" {
				t.Errorf("%s:%s: %q answers", c.loop, c.port, got)
			}
		})
	}
}
