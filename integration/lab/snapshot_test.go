package lab_test

import (
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestSnapshot: Diff finds one leftover of each kind.
func TestSnapshot(t *testing.T) {
	h := lab.New(t, lab.Engine2010)
	h.Netyard.Program = self(t)
	h.Netyard.Start()
	before := h.Snapshot()
	const tries = 20
	for _, c := range []struct{ leave, undo, want string }{
		{"ip link add left type bridge", "ip link del left", "+ link  left: "},
		{"ip link set lo mtu 9000", "ip link set lo mtu 65536", "~ link  lo: mtu 65536 → 9000"},
		{"ip addr add 192.0.2.1/32 dev eth0", "ip addr del 192.0.2.1/32 dev eth0", "+ address  eth0 inet 192.0.2.1/32"},
		{"ip route add 192.0.2.0/24 via 203.0.113.1", "ip route del 192.0.2.0/24", "+ route  192.0.2.0/24"},
		{"ip rule add pref 77 lookup 77", "ip rule del pref 77", "+ rule  77: from all lookup 77"},
		{"ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent", "ip neigh del 203.0.113.9 dev eth0", "+ neighbour  203.0.113.9"},
		{"nft 'add table inet netyard; add set inet netyard s { type ipv4_addr; }; add element inet netyard s { 192.0.2.7 }'", "nft delete table inet netyard", "+ nft  table inet netyard set s: elements = { 192.0.2.7 }"},
		{"touch /run/netyard/left", "rm /run/netyard/left", "+ file  f /run/netyard/left"},
		{"ip netns add left", "ip netns del left; umount /run/netns; rmdir /run/netns", "+ netns  /run/netns/left"},
		{"kill -USR1 $(pidof netyard)", "kill -USR2 $(pidof netyard)", "+ open  /proc/version (netyard)"},
	} {
		h.Sh(c.leave)
		var diff string
		for range tries { // a signal takes effect with a delay
			if diff = strings.Join(before.Diff(h.Snapshot()), "\n"); strings.Contains(diff, c.want) {
				break
			}
		}
		if !strings.Contains(diff, c.want) {
			t.Errorf("after %s: want %q in the difference, got:\n%s", c.leave, c.want, diff)
		}
		h.Sh(c.undo)
		h.SameAs(before)
	}
}

// TestNoFalseAlarm: what Docker itself leaves behind is not reported as a leftover. New ends with CheckLeftovers.
func TestNoFalseAlarm(t *testing.T) {
	each(t, every(), func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Netyard.Program = self(t)
		h.Netyard.Start()
		h.Run("c1", "-p 80:80 -p 53:53/udp")
		h.Docker("network create --ipv6 --subnet 2001:db8:77::/64 x")
		h.Docker("network create --internal y")
		h.Run("c2", "--network x -p 8080:80")
		h.Docker("network connect y c2")
		h.Run("c3", "--network host")
		h.CheckLeftovers()
		h.Run("c1", "-p 80:80 -p 53:53/udp")
		h.PowerLoss()
		h.Boot()
		h.Dockerd.Restart()
	})
}
