package bridge_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"netyard/kernel/kerneltest"
)

// station returns a container as its neighbours see it.
func station(t *testing.T, c *kerneltest.Host, v4, v6 string) kerneltest.Station {
	t.Helper()
	mac, err := net.ParseMAC(c.Sh(t, "ip -o link show eth0 | grep -o 'ether [^ ]*' | cut -d' ' -f2"))
	if err != nil {
		t.Fatal(err)
	}
	return kerneltest.Station{MAC: mac, V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}
}

// delivered sends frames from one container and says which of them another one, or the host, got.
func delivered(
	t *testing.T, from, to *kerneltest.Host, host *kerneltest.Host, bridge string, frames []kerneltest.Frame,
) []string {
	t.Helper()
	var at [2]*kerneltest.Capture
	for i, where := range []struct {
		h    *kerneltest.Host
		link string
	}{{to, "eth0"}, {host, bridge}} {
		err := where.h.Do(func() (err error) {
			at[i], err = kerneltest.NewCapture(where.link)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer at[i].Close()
	}
	if err := from.Do(func() error { return kerneltest.SendFrames("eth0", frames) }); err != nil {
		t.Fatal(err)
	}
	got := append(at[0].Got(frames, 300*time.Millisecond), at[1].Got(frames, 50*time.Millisecond)...)
	slices.Sort(got)
	return slices.Compact(got)
}

func names(frames []kerneltest.Frame, want func(kerneltest.Frame) bool) (all []string) {
	for _, f := range frames {
		if want(f) {
			all = append(all, f.Name)
		}
	}
	slices.Sort(all)
	return all
}

// TestSpoofing runs the whole matrix of what a container could forge: nothing of it arrives, and what is not forged
// does. Without the guard all of it arrives except router advertisements and redirects, so that the test can fail.
func TestSpoofing(t *testing.T) {
	t.Parallel()
	everything := func(kerneltest.Frame) bool { return true }
	nothing := func(kerneltest.Frame) bool { return false }
	for _, c := range []struct {
		name    string
		opts    map[string]string
		lan     bool
		forged  func(kerneltest.Frame) bool
		netfilt string
	}{
		{"guarded", nil, false, nothing, "1"},
		{"guarded, without br_netfilter", nil, false, nothing, "0"},
		{"antispoof=false", map[string]string{"antispoof": "false"}, false, func(f kerneltest.Frame) bool { return !f.Role }, "0"},
		{"the host's bridge", map[string]string{"bridge": "lan0"}, true, func(f kerneltest.Frame) bool {
			return slices.Contains([]string{
				"IPv4 source", "IPv4 source from elsewhere", "IPv4 source nobody",
				"IPv4 source in a VLAN", "ARP answer", "gratuitous ARP", "IPv6 source",
				"IPv6 source of the link", "IPv6 source nobody", "ND answer for another's address",
				"ND answer for another's address of the link", "ND probe of another's address",
			}, f.Name)
		}, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			bridge := "nyb-aaaaaaaaaaa"
			if c.lan {
				bridge = "lan0"
				l.host.Sh(t, "ip link add lan0 type bridge && ip link set lan0 up")
			}
			l.host.Sh(t, "sysctl -qw net.bridge.bridge-nf-call-iptables="+c.netfilt+
				" net.bridge.bridge-nf-call-ip6tables="+c.netfilt)
			n := l.up(network(netA, c.opts, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
			me := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
			other := l.run(n, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
			victim := l.run(n, "e3e3e3e3e3e3", "10.9.0.4/24", "fd09::4/64")
			l.reaches(me, "10.9.0.4", true)
			l.reaches(me, "fd09::4", true)
			l.reaches(me, "-s 4000 10.9.0.4", true) // in fragments
			l.reaches(me, "-s 4000 fd09::4", true)
			self, to := station(t, me, "10.9.0.2", "fd09::2"), station(t, victim, "10.9.0.4", "fd09::4")
			honest := kerneltest.Honest(self, to)
			if got, want := delivered(t, me, victim, l.host, bridge, honest),
				names(honest, everything); !slices.Equal(got, want) {
				t.Errorf("of what is honest arrived\n%q, want\n%q", got, want)
			}
			forged := kerneltest.Forgeries(self, station(t, other, "10.9.0.3", "fd09::3"), to)
			if got, want := delivered(t, me, victim, l.host, bridge, forged),
				names(forged, c.forged); !slices.Equal(got, want) {
				t.Errorf("of what is forged arrived\n%q, want\n%q", got, want)
			}
		})
	}
}

// TestUnknownPortIsClosed: a port of which the guard knows nothing sends nothing.
func TestUnknownPortIsClosed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24")))
	c := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24")
	l.reaches(c, "10.9.0.1", true)
	l.host.Sh(t, "nft delete element bridge netyard addrs4 '{ nyv-e1e1e1e1e1e . 10.9.0.2 }'")
	l.reaches(c, "10.9.0.1", false)
	snap, err := l.host.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	e := endpoint(n, "e1e1e1e1e1e1", "10.9.0.2/24")
	faults := snap.Faults(l.mode.Objects(n, e))
	want := "element { nyv-e1e1e1e1e1e . 10.9.0.2 } of set addrs4 is missing"
	if len(faults) != 1 || faults[0].Text != want {
		t.Errorf("faults %v, want %q", faults, want)
	}
}
