package modetest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netyard/kernel"
	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// Serve answers on a port of a container's addresses until the test ends: with the port, and the address of whom it sees.
func (l *LAN) Serve(h *kerneltest.Host, proto string, port int) {
	l.TB.Helper()
	err := h.Do(func() error {
		var c net.ListenConfig
		at := fmt.Sprint(":", port)
		say := func(a net.Addr) string {
			from, _ := netip.ParseAddrPort(a.String())
			return fmt.Sprint(port, " ", from.Addr().Unmap())
		}
		if proto == "udp" {
			s, err := c.ListenPacket(context.Background(), proto, at)
			if err != nil {
				return err
			}
			l.TB.Cleanup(func() { _ = s.Close() })
			go func() {
				b := make([]byte, 16)
				for {
					_, from, err := s.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = s.WriteTo([]byte(say(from)), from)
				}
			}()
			return nil
		}
		s, err := c.Listen(context.Background(), proto, at)
		if err != nil {
			return err
		}
		l.TB.Cleanup(func() { _ = s.Close() })
		go func() {
			for {
				one, err := s.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprint(one, say(one.RemoteAddr()))
				_ = one.Close()
			}
		}()
		return nil
	})
	if err != nil {
		l.TB.Fatal(err)
	}
}

// Ask is what a server says; empty when nobody answers.
func Ask(from *kerneltest.Host, proto, to string, patience time.Duration) (said string) {
	_ = from.Do(func() error {
		c, err := (&net.Dialer{Timeout: patience}).Dial(proto, to)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // it has said what it had to say
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte("?"))
		b := make([]byte, 128)
		n, err := c.Read(b)
		said = string(b[:n])
		return err
	})
	return said
}

// Hears checks a line of a matrix of ports: what a server says to who asks; empty: nobody answers. One that should gets some time:
// neighbours have to be found first.
func (l *LAN) Hears(what string, from *kerneltest.Host, proto, to, want string) {
	l.TB.Helper()
	const tries = 6
	var got string
	for range tries {
		if got = Ask(from, proto, to, time.Second); got == want || want == "" {
			break
		}
	}
	if got != want {
		l.TB.Errorf("%s: %s %s says %q, want %q", what, proto, to, got, want)
	}
}

// Publish gives a container ports of its own, 443 and 7000 to 7002, for its 8080 and 8000 to 8002, of each protocol and family.
func (l *LAN) Publish(c *Container) {
	l.TB.Helper()
	c.Endpoint.Ports = nil
	for _, a := range c.Endpoint.Addrs {
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			c.Endpoint.Ports = append(c.Endpoint.Ports,
				modes.Port{Proto: proto, HostIP: a.Addr(), HostPort: 443, ContainerPort: 8080, Count: 1, Routed: true},
				modes.Port{Proto: proto, HostIP: a.Addr(), HostPort: 7000, ContainerPort: 8000, Count: 3, Routed: true},
				modes.Port{Proto: proto, HostIP: a.Addr(), HostPort: 9000, ContainerPort: 9000, Count: 1, Routed: true})
		}
	}
	if _, err := l.Mode.Attach(l.TB.Context(), c.Network, c.Endpoint); err != nil {
		l.TB.Fatal(err)
	}
}

// A Client is who asks, with its addresses.
type Client struct {
	*kerneltest.Host
	Addrs []string
}

// At is the client in a namespace.
func At(h *kerneltest.Host, addrs ...string) Client { return Client{Host: h, Addrs: addrs} }

// PublishTest is what every LAN mode has to pass: published ports are at the container's own address for each of the clients, which it
// sees by their own addresses, over a restart of the daemon; and gone with the container. The clients' addresses are in the order of the
// container's.
func (l *LAN) PublishTest(t *testing.T, c *Container, sibling Container, clients map[string]Client) {
	t.Helper()
	before := c.Sh(t, "nft list ruleset")
	for _, proto := range []string{"tcp", "udp"} {
		l.Serve(c.Host, proto, 8080)
		l.Serve(c.Host, proto, 8001)
	}
	l.Publish(c)
	all := func(when string) {
		t.Helper()
		for who, from := range clients {
			for family, a := range c.Endpoint.Addrs {
				for _, proto := range []string{"tcp", "udp"} {
					at := func(port string) string { return net.JoinHostPort(a.Addr().String(), port) }
					what := fmt.Sprintf("%s: %s", when, who)
					l.Hears(what, from.Host, proto, at("443"), "8080 "+from.Addrs[family])
					l.Hears(what, from.Host, proto, at("7001"), "8001 "+from.Addrs[family])
					l.Hears(what, from.Host, proto, at("8080"), "8080 "+from.Addrs[family])
				}
			}
		}
	}
	all("published")
	l.Host.Reopen(t)
	all("without the daemon")
	l.remake()
	c.Sh(t, "nft flush ruleset")
	l.Host.Claim(l.Mode.Objects(c.Network, nil)...)
	if _, err := l.Mode.Attach(t.Context(), c.Network, c.Endpoint); err != nil {
		t.Fatal(err)
	}
	if err := l.Host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	all("after a restart")
	l.Audit([]modes.Network{c.Network}, *c, sibling)
	was := c.Endpoint
	c.Endpoint.Ports = nil
	still := map[string]bool{}
	for _, o := range l.Mode.Objects(c.Network, []modes.Endpoint{c.Endpoint}) {
		still[o.String()] = true
	}
	gone := slices.DeleteFunc(l.Mode.Objects(c.Network, []modes.Endpoint{was}), func(o kernel.Object) bool { return still[o.String()] })
	if err := l.Host.Remove(gone...); err != nil {
		t.Fatal(err)
	}
	if after := c.Sh(t, "nft list ruleset"); strings.TrimSpace(after) != strings.TrimSpace(before) {
		t.Errorf("something is left in the sandbox: %s", after)
	}
}
