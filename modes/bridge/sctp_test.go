package bridge_test

import (
	"net/netip"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/modes"
)

// TestSCTP: ports of SCTP are published as those of TCP are, and what containers open themselves goes out by the host's
// address.
func TestSCTP(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.outside.ServeSCTP(t, 36412, 1)
	n := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	inside := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	e := endpoint(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		e.Ports = append(e.Ports, modes.Port{Proto: "sctp", HostIP: all, HostPort: 3868, ContainerPort: 868, Count: 1})
	}
	if _, err := l.mode.Attach(t.Context(), n, e); err != nil {
		t.Fatal(err)
	}
	inside.ServeSCTP(t, 868, 3)
	for _, c := range []struct {
		from     *kerneltest.Host
		to, want string
	}{
		{l.outside, "203.0.113.2:3868", "203.0.113.1"},
		{l.outside, "[2001:db8:113::2]:3868", "2001:db8:113::1"},
		{l.host, "203.0.113.2:3868", "203.0.113.2"},
		{inside, "203.0.113.1:36412", "203.0.113.2"},
	} {
		if got := c.from.AskSCTP(netip.MustParseAddrPort(c.to)); got != c.want {
			t.Errorf("%s saw %q, want %q", c.to, got, c.want)
		}
	}
}
