package integration

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// A cell is one way to a published port.
type cell struct {
	from   string
	client func(h *lab.Host) *lab.Net
	target func(h *lab.Host, v6 bool) string
}

// ways are the clients of the reachability matrix, and what each takes the host for.
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

// TestReachability: who reaches a published port, from where, by protocol, family and the address it is published on.
func TestReachability(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1") // or the guard of forwarding stays behind
		h.Netyard.Start()
		binds := published(h)
		healthy(t, h)
		matrix(t, h, binds)
		h.Netyard.Restart()
		matrix(t, h, binds)
		h.Sh("iptables-save | grep -v nyb- >/tmp/v4; ip6tables-save | grep -v nyb- >/tmp/v6; nft flush ruleset") // the engine does not bring its own rules back
		healthy(t, h)
		matrix(t, h, binds)
		h.Sh("iptables-restore </tmp/v4; ip6tables-restore </tmp/v6")
		if e.Nftables() {
			h.Dockerd.Restart() // its tables are not those of iptables
		}
	})
}

func matrixNetworks(h *lab.Host) {
	h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.70.0.0/24 --subnet fd00:70::/64 a")
	h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.71.0.0/24 --subnet fd00:71::/64 b")
	h.Run("peer", "--network a")
	h.Run("stranger", "--network b")
}

// matrix tries every way to every port. A port is reached by the host's address if it is published on that or on all of
// them, and by loopback likewise.
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
	for tries := 0; want && err != nil && tries < 8; tries++ { // a neighbour may still be being looked up, the machine busy
		_, err = from.TryDial(proto, at)
	}
	if got := err == nil; got != want {
		t.Errorf("%s: reached %v, want %v (%v)", name, got, want, err)
	}
}
