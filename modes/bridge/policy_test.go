package bridge_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"netyard/kernel/core"
	"netyard/kernel/kerneltest"
	"netyard/kernel/policy"
)

// echo answers on a TCP port of a namespace, of both families.
func echo(t *testing.T, h *kerneltest.Host, port string) {
	t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", ":"+port)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
}

func dial(h *kerneltest.Host, addr string) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = (&net.Dialer{Timeout: 700 * time.Millisecond}).Dial("tcp", addr)
		return err
	})
	return c, err
}

func (l lab) connects(from *kerneltest.Host, addr string, want bool) {
	l.t.Helper()
	c, err := dial(from, addr)
	for range 6 { // on a busy machine an answer takes its time
		if !want || err == nil {
			break
		}
		c, err = dial(from, addr)
	}
	if err == nil {
		_ = c.Close()
	}
	if got := err == nil; got != want {
		l.t.Errorf("connect to %s: %v, want %v", addr, got, want)
	}
}

func says(c net.Conn, within time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(within))
	buf := make([]byte, 2)
	if _, err := c.Write([]byte("hi")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, buf)
	return err == nil && bytes.Equal(buf, []byte("hi"))
}

// subjects returns the policy of an app: the proxy may connect to port 80, and the app may connect to the outside only.
func subjects(port string, mac net.HardwareAddr, v4, v6 string) []policy.Subject {
	one := func(addr string, proto uint8, port, last uint16) *policy.Access {
		a := netip.MustParseAddr(addr)
		p := policy.Allowance{First: a, Last: a, FirstProto: proto, LastProto: proto, FirstPort: port, LastPort: last}
		if proto == 0 {
			p.LastProto = 255
		}
		return &policy.Access{Allow: []policy.Allowance{p}}
	}
	const bridge = "nyb-aaaaaaaaaaa"
	return []policy.Subject{
		{Port: port, Bridge: bridge, Addr: netip.MustParseAddr(v4), In: one("10.9.0.2", 6, 80, 80), Out: one("203.0.113.1", 0, 0, 65535)},
		{Port: port, Bridge: bridge, Addr: netip.MustParseAddr(v6), In: one("fd09::2", 6, 80, 80), Out: one("2001:db8:113::1", 0, 0, 65535)},
		{Port: port, Bridge: bridge, Addr: core.LinkLocal(mac), In: &policy.Access{}, Out: &policy.Access{}},
	}
}

// TestPolicy: between containers of a bridge, out of it and to the host, whether or not br_netfilter is on for all.
func TestPolicy(t *testing.T) {
	t.Parallel()
	for _, netfilter := range []string{"1", "0"} {
		t.Run("bridge-nf-call="+netfilter, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.host.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables="+netfilter+
				" net.bridge.bridge-nf-call-ip6tables="+netfilter)
			n := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
			proxy := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
			app1 := l.run(n, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
			app2 := l.run(n, "e3e3e3e3e3e3", "10.9.0.4/24", "fd09::4/64")
			for _, h := range []*kerneltest.Host{proxy, app1, app2, l.host, l.outside} {
				echo(t, h, "80")
				echo(t, h, "81")
			}
			l.reaches(app1, "10.9.0.4", true)
			l.reaches(app1, "fd09::4", true)
			forbidden, err := dial(app1, "10.9.0.4:80")
			if err != nil {
				t.Fatal(err)
			}
			defer forbidden.Close()
			allowed, err := dial(proxy, "10.9.0.3:80")
			if err != nil {
				t.Fatal(err)
			}
			defer allowed.Close()

			s1 := station(t, app1, "10.9.0.3", "fd09::3")
			s2 := station(t, app2, "10.9.0.4", "fd09::4")
			all := append(subjects("nyv-e2e2e2e2e2e", s1.MAC, "10.9.0.3", "fd09::3"),
				subjects("nyv-e3e3e3e3e3e", s2.MAC, "10.9.0.4", "fd09::4")...)
			objects := policy.Objects(l.host.Handle, all)
			if err := l.host.Enforce(t.Context(), objects); err != nil {
				t.Fatal(err)
			}
			if err := policy.EndFlows(l.host.Handle, all); err != nil {
				t.Fatal(err)
			}
			if says(forbidden, 700*time.Millisecond) {
				t.Error("a connection that policy forbids lives on")
			}
			if !says(allowed, 10*time.Second) {
				t.Error("a connection that policy allows has ended")
			}
			for _, c := range []struct {
				from *kerneltest.Host
				to   string
				want bool
			}{
				{proxy, "10.9.0.3:80", true},
				{proxy, "10.9.0.3:81", false},
				{proxy, "[fd09::3]:80", true},
				{proxy, "[fd09::3]:81", false},
				{app1, "10.9.0.4:80", false},
				{app1, "[fd09::4]:80", false},
				{app1, "[" + s2.Local().String() + "%" + app1.Sh(t, "ip -o link show eth0 | cut -d: -f1") + "]:80", false},
				{app1, "10.9.0.2:80", false},
				{app1, "203.0.113.1:80", true},
				{app1, "[2001:db8:113::1]:80", true},
				{app1, "10.9.0.1:80", false}, // the host
				{app1, "203.0.113.2:80", false},
				{app1, "[fd09::1]:80", false},
				{l.host, "10.9.0.3:81", true},
				{l.host, "[fd09::3]:81", true},
				{proxy, "10.9.0.1:80", true},
			} {
				l.connects(c.from, c.to, c.want)
			}
			around(t, proxy, app1)
			if err := l.host.Enforce(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			l.connects(app1, "10.9.0.4:80", true)
			l.connects(app1, "[fd09::4]:81", true)
		})
	}
}

// around sends broadcasts, to everybody and to one, which no policy by address is about.
func around(t *testing.T, from, to *kerneltest.Host) {
	t.Helper()
	self, victim := station(t, from, "10.9.0.2", "fd09::2"), station(t, to, "10.9.0.3", "fd09::3")
	var frames []kerneltest.Frame
	for _, dst := range []kerneltest.Station{
		{V4: netip.MustParseAddr("255.255.255.255"), V6: netip.MustParseAddr("ff02::1")},
		{V4: netip.MustParseAddr("10.9.0.255"), V6: netip.MustParseAddr("ff05::1:3")},
		{V4: netip.MustParseAddr("224.0.0.251"), V6: netip.MustParseAddr("fd09::99")},
	} {
		for _, mac := range []net.HardwareAddr{victim.MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
			dst.MAC = mac
			frames = append(frames, kerneltest.Honest(self, dst)[:2]...) // IPv4 and IPv6
		}
	}
	if got := delivered(t, from, to, to, "eth0", frames); len(got) > 0 {
		t.Errorf("got around the policy: %q", got)
	}
}
