package integration

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// A cell is a client of a published port, and the address that it uses.
type cell struct {
	from   string
	client func(h *lab.Host) *lab.Net
	target func(h *lab.Host, v6 bool) string
}

// ways returns the clients of the reachability matrix.
func ways() []cell {
	hostIP := func(h *lab.Host, v6 bool) string {
		if v6 {
			return h.IP6
		}
		return h.IP
	}
	loopback := func(_ *lab.Host, v6 bool) string {
		if v6 {
			return "::1"
		}
		return "127.0.0.1"
	}
	in := func(name string) func(*lab.Host) *lab.Net {
		return func(h *lab.Host) *lab.Net { return h.In(name) }
	}
	return []cell{
		{"outside", func(h *lab.Host) *lab.Net { return h.Outside.Net }, hostIP},
		{"host", func(h *lab.Host) *lab.Net { return h.Net }, hostIP},
		{"localhost", func(h *lab.Host) *lab.Net { return h.Net }, loopback},
		{"same network", in("peer"), hostIP},
		{"other network", in("stranger"), hostIP},
		{"itself", in("web"), hostIP},
	}
}

// TestReachability: each client reaches a published port exactly if it uses an address that the port is published on,
// by each protocol and family.
func TestReachability(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1") // otherwise netyard enables it, with a guard that stays
		h.Netyard.Start()
		binds := published(h)
		healthy(t, h)
		matrix(t, h, binds)
		h.Netyard.Restart()
		matrix(t, h, binds)
		// The engine does not restore its own rules, so the test does.
		h.Sh("iptables-save | grep -v nyb- >/tmp/v4; ip6tables-save | grep -v nyb- >/tmp/v6; nft flush ruleset")
		healthy(t, h)
		matrix(t, h, binds)
		h.Sh("iptables-restore </tmp/v4; ip6tables-restore </tmp/v6")
		if e.Nftables() {
			h.Dockerd.Restart() // restores its own tables, which iptables-restore does not
		}
	})
}

// matrixNetworks creates two networks with the clients of the matrix.
func matrixNetworks(h *lab.Host) {
	h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.70.0.0/24 --subnet fd00:70::/64 a")
	h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.71.0.0/24 --subnet fd00:71::/64 b")
	h.Run("peer", "--network a")
	h.Run("stranger", "--network b")
}

// matrix tests every client with every port. A port is reached at an address if it is published on that address or on
// all.
func matrix(t *testing.T, h *lab.Host, binds []string) {
	t.Helper()
	for i, bind := range binds {
		addr := strings.Trim(bind, "[]")
		for _, way := range ways() {
			for _, v6 := range []bool{false, true} {
				target := way.target(h, v6)
				want := bind == "" || addr == target
				for _, proto := range []string{"tcp", "udp"} {
					at := net.JoinHostPort(target, fmt.Sprint(8000+i))
					name := fmt.Sprintf("%s, %s %s, published on %q", way.from, proto, at, bind)
					reach(t, name, way.client(h), proto, at, want)
				}
			}
		}
	}
}

// reach checks one cell of a matrix.
func reach(t *testing.T, name string, from *lab.Net, proto, at string, want bool) {
	t.Helper()
	_, err := from.TryDial(proto, at)
	// Retry: neighbour resolution may not be finished, or the machine busy.
	for tries := 0; want && err != nil && tries < 8; tries++ {
		_, err = from.TryDial(proto, at)
	}
	if got := err == nil; got != want {
		t.Errorf("%s: reached %v, want %v (%v)", name, got, want, err)
	}
}
