package bridge_test

import (
	"net/netip"
	"testing"

	"netyard/modes"
)

// TestTrusted: clients on trusted interfaces reach published ports at the container's own addresses, and no other
// ports; other clients reach none there.
func TestTrusted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other := l.host.Peer(t, "eth-other")
	l.host.Sh(t, "ip addr add 203.0.114.2/24 dev eth-other")
	other.Sh(t, "ip addr add 203.0.114.1/24 dev eth0 && ip route add 10.9.0.0/24 via 203.0.114.2")
	l.outside.Sh(t, "ip route add 10.9.0.0/24 via 203.0.113.2; ip -6 route add fd09::/64 via 2001:db8:113::2")

	n := l.up(network(netA, map[string]string{"trusted_interfaces": "eth-out,wg9"},
		subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	inside := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	for _, port := range []string{"80", "81", "90", "91"} {
		echo(t, inside, port)
	}
	e := endpoint(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		e.Ports = append(e.Ports,
			modes.Port{Proto: "tcp", HostIP: all, HostPort: 8080, ContainerPort: 80, Count: 1},
			modes.Port{Proto: "tcp", HostIP: all, HostPort: 8085, ContainerPort: 85, Count: 6})
	}
	if _, err := l.mode.Attach(t.Context(), n, e); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.9.0.2:80", "10.9.0.2:90", "[fd09::2]:80", "[fd09::2]:90", "203.0.113.2:8080"} {
		l.connects(l.outside, to, true)
	}
	for _, to := range []string{"10.9.0.2:81", "10.9.0.2:91", "[fd09::2]:91"} {
		l.connects(l.outside, to, false)
	}
	l.connects(other, "10.9.0.2:80", false)
	l.connects(other, "203.0.114.2:8080", true)
}
