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

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// Serve answers on a port of a container's addresses until the test ends: with the port, and the address of whom it
// sees.
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

// Ask returns what a server answers; empty: nobody answers.
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

// Hears checks a line of a matrix of ports: what a server says to who asks; empty: nobody answers. One that should gets
// some time: neighbours have to be found first.
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

// Publish gives a container ports of its own, 443 and 7000 to 7002, for its 8080 and 8000 to 8002, of each protocol and
// family.
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

// A Client is the host that asks, with its addresses.
type Client struct {
	*kerneltest.Host
	Addrs []string
}

// At returns the client in a namespace.
func At(h *kerneltest.Host, addrs ...string) Client { return Client{Host: h, Addrs: addrs} }

// PublishTest is a test that every LAN mode has to pass: published ports are at the container's own address for each of
// the clients, which it sees by their own addresses, also after a restart of the daemon, and gone with the container.
// The clients' addresses are in the order of the container's.
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
	l.Host.AddOwners(l.Mode.Objects(c.Network)...)
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
	for _, o := range l.Mode.Objects(c.Network, c.Endpoint) {
		still[o.String()] = true
	}
	gone := slices.DeleteFunc(l.Mode.Objects(c.Network, was), func(o core.Object) bool { return still[o.String()] })
	if err := l.Host.Remove(gone...); err != nil {
		t.Fatal(err)
	}
	if after := c.Sh(t, "nft list ruleset"); strings.TrimSpace(after) != strings.TrimSpace(before) {
		t.Errorf("something is left in the sandbox: %s", after)
	}
}

// HostPublishTest is a test that every LAN mode has to pass whose networks publish ports on the host: the container
// answers those who ask the host, through Docker's FORWARD too; it sees the host's address or, with seesThem, the
// client's; and nothing is left. limited: the network can limit its clients, and others get no answer.
func (l *LAN) HostPublishTest(t *testing.T, n modes.Network, containers, siblings []string, seesThem, limited bool) {
	t.Helper()
	for _, tables := range []string{"iptables", "ip6tables"} {
		l.Host.Sh(t, tables+" -N DOCKER-USER && "+tables+" -A DOCKER-USER -j RETURN && "+tables+
			" -A FORWARD -j DOCKER-USER && "+tables+" -P FORWARD DROP")
	}
	l.Host.Sh(t,
		"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip -6 route replace default via "+RouterAddr6)
	if err := l.Host.LoadFirewall(); err != nil { // and the rules in Docker's chain
		t.Fatal(err)
	}
	before := Settled(t, l.Host)
	p := hostPorts{LAN: l, n: l.Up(n), seesThem: seesThem}
	p.c, p.sibling = l.Run(p.n, "e1e1e1e1e1e1e1", containers...), l.Run(p.n, "e2e2e2e2e2e2e2", siblings...)
	p.publish(t)
	p.all("published",
		map[string]*kerneltest.Host{"LAN": l.One, "sibling": p.sibling.Host, "host": l.Host, "itself": p.c.Host})
	l.Audit([]modes.Network{p.n}, p.c, p.sibling)
	some := map[string]*kerneltest.Host{"router": l.Router, "host": l.Host}
	if limited {
		p.limit(t, some)
		l.notARouter(p.c.Host)
	}
	l.Host.Reopen(t)
	p.all("without the daemon", some)
	p.restart(t)
	p.all("after a restart", some)
	l.Audit([]modes.Network{p.n}, p.c, p.sibling)
	l.Stop(p.c)
	l.Stop(p.sibling)
	if err := l.Mode.Down(p.n); err != nil {
		t.Fatal(err)
	}
	if after := Settled(t, l.Host); after != before {
		t.Errorf("something is left:\n%s", cmp.Diff(before, after))
	}
}

// hostPorts has a container with ports of the host, and its neighbour.
type hostPorts struct {
	*LAN
	n          modes.Network
	c, sibling Container
	seesThem   bool // the container sees the LAN's members, not the host
}

func (p *hostPorts) publish(t *testing.T) {
	t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		p.Serve(p.c.Host, proto, 8080)
		p.Serve(p.c.Host, proto, 8001)
		for _, every := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			p.c.Endpoint.Ports = append(p.c.Endpoint.Ports,
				modes.Port{Proto: proto, HostIP: every, HostPort: 443, ContainerPort: 8080, Count: 1},
				modes.Port{Proto: proto, HostIP: every, HostPort: 8000, ContainerPort: 8000, Count: 3})
		}
	}
	p.attach(t, p.c)
}

func (p *hostPorts) attach(t *testing.T, c Container) {
	t.Helper()
	if _, err := p.Mode.Attach(t.Context(), p.n, c.Endpoint); err != nil {
		t.Fatal(err)
	}
}

func hostAddrs() []string { return []string{HostAddr, HostAddr6} }

// all lets all clients ask the host.
func (p *hostPorts) all(when string, clients map[string]*kerneltest.Host) {
	p.TB.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		for family, host := range hostAddrs() {
			for who, from := range clients {
				sees := host
				own := map[string][]string{"LAN": {OneAddr, OneAddr6}, "router": {RouterAddr, RouterAddr6}}[who]
				if p.seesThem && own != nil {
					sees = own[family]
				}
				p.Hears(when+": "+who, from, proto, net.JoinHostPort(host, "443"), "8080 "+sees)
				p.Hears(when+": "+who, from, proto, net.JoinHostPort(host, "8001"), "8001 "+sees)
			}
			p.Hears(when+": loopback", p.Host, proto,
				net.JoinHostPort([]string{"127.0.0.1", "::1"}[family], "443"), "8080 "+host)
		}
	}
}

// limit lets only the router, beside the host, get through.
func (p *hostPorts) limit(t *testing.T, some map[string]*kerneltest.Host) {
	t.Helper()
	p.n.Options["publish_from"] = RouterAddr + "/32," + RouterAddr6 + "/128"
	if err := p.Mode.Up(t.Context(), p.n); err != nil {
		t.Fatal(err)
	}
	p.all("to some", some)
	for _, host := range hostAddrs() {
		p.Hears("who is not to", p.One, "tcp", net.JoinHostPort(host, "443"), "")
		p.Hears("sibling who is not to", p.sibling.Host, "udp", net.JoinHostPort(host, "443"), "")
	}
}

// restart does what a daemon does when it starts.
func (p *hostPorts) restart(t *testing.T) {
	t.Helper()
	p.remake()
	p.Host.AddOwners(p.Mode.Objects(p.n)...)
	if err := p.Mode.Up(t.Context(), p.n); err != nil {
		t.Fatal(err)
	}
	p.attach(t, p.c)
	p.attach(t, p.sibling)
	if err := p.Host.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
}

// notARouter checks that what passes Docker's chain for published ports does not pass netyard's for anything else.
func (l *LAN) notARouter(c *kerneltest.Host) {
	l.TB.Helper()
	l.Host.Sh(l.TB, "ip link add d0 type veth peer name d1; ip link set d0 up; ip addr add 10.67.0.1/24 dev d0; "+
		"ip neigh add 10.67.0.2 lladdr 02:00:00:00:00:99 dev d0")
	c.Sh(l.TB, "ip route add 10.67.0.0/24 via "+HostAddr+" 2>/dev/null || true")
	l.Host.Sh(l.TB, "nft add table inet probe; "+
		"nft 'add chain inet probe out { type filter hook postrouting priority 300; }'; "+
		"nft 'add rule inet probe out ip daddr 10.67.0.2 counter'")
	_, _ = c.TrySh("ping -c 1 -W 1 10.67.0.2")
	if out := l.Host.Sh(l.TB, "nft list chain inet probe out"); !strings.Contains(out, "packets 0") {
		l.TB.Errorf("the host forwards what a container sends to nobody's port: %s", out)
	}
	l.Host.Sh(l.TB, "nft delete table inet probe; ip link del d0")
}
