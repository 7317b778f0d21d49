package bridge_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/modetest"
)

const (
	netA = "aaaaaaaaaaaa1111"
	netB = "bbbbbbbbbbbb2222"
)

func subnet(pool, gateway string) modes.Subnet {
	return modes.Subnet{Pool: netip.MustParsePrefix(pool), Gateway: netip.MustParsePrefix(gateway)}
}

func network(id string, opts map[string]string, subnets ...modes.Subnet) modes.Network {
	return modes.Network{ID: id, Mode: "bridge", Options: opts, Subnets: subnets}
}

func endpoint(n modes.Network, id string, addrs ...string) modes.Endpoint {
	e := modes.Endpoint{ID: id, NetworkID: n.ID}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix(a))
	}
	return e
}

func TestContract(t *testing.T) {
	t.Parallel()
	v4, v6 := subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")
	internal := network(netA, nil, v4)
	internal.Internal = true
	hostBridge := func(t *testing.T, h *kerneltest.Host) {
		h.Sh(t, "ip link add lan0 address 02:00:00:00:00:01 type bridge && ip addr add 10.9.0.1/24 dev lan0 && "+
			"ip link set lan0 up")
	}
	for _, c := range []struct {
		name  string
		n     modes.Network
		setup func(*testing.T, *kerneltest.Host)
	}{
		{"IPv4", network(netA, nil, v4), nil},
		{"IPv6", network(netA, nil, v6), nil},
		{"both", network(netA, nil, v4, v6), nil},
		{"internal", internal, nil},
		{"icc off", network(netA, map[string]string{"icc": "false"}, v4), nil},
		{"no NAT", network(netA, map[string]string{"masquerade": "false"}, v4), nil},
		{"no address", network(netA, map[string]string{"inhibit_ipv4": "true"}, v4), nil},
		{"named", network(netA, map[string]string{"bridge": "web0", "mtu": "1400"}, v4), nil},
		{"named in Docker's way", network(netA, map[string]string{"bridge": "br-aaaaaaaaaaaa"}, v4), nil},
		{"the host's bridge", network(netA, map[string]string{"bridge": "lan0"}, v4), hostBridge},
		{"rates", network(netA, map[string]string{"rate": "10mbit", "egress_rate": "20mbit"}, v4), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			modetest.Run(t, modetest.Case{
				New: bridge.New, Network: c.n,
				Endpoint: endpoint(c.n, "eeeeeeeeeeee0001", "10.9.0.2/24", "fd09::2/64"), Setup: c.setup,
			})
		})
	}
}

// A lab is a host with an outside behind eth-out, and containers on networks of the mode.
type lab struct {
	t       *testing.T
	host    *kerneltest.Host
	outside *kerneltest.Host
	mode    modetest.Live
}

func newLab(t *testing.T) lab {
	t.Helper()
	h := kerneltest.New(t)
	out := h.Peer(t, "eth-out")
	h.Sh(t, "ip addr add 203.0.113.2/24 dev eth-out && ip route add default via 203.0.113.1 && "+
		"ip -6 addr add 2001:db8:113::2/64 dev eth-out nodad && ip -6 route add default via 2001:db8:113::1")
	out.Sh(t, "ip addr add 203.0.113.1/24 dev eth0 && ip -6 addr add 2001:db8:113::1/64 dev eth0 nodad")
	h.LeaveTablesOpen() // tests take elements away
	if err := h.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	return lab{t, h, out, modetest.On(h.Kernel, bridge.New, nil)}
}

func (l lab) up(n modes.Network) modes.Network {
	l.t.Helper()
	var err error
	if n.Settled, err = l.mode.Settle(l.t.Context(), n); err != nil {
		l.t.Fatal(err)
	}
	if err := l.mode.Up(l.t.Context(), n); err != nil {
		l.t.Fatal(err)
	}
	return n
}

// run starts a container: it does with the link what an engine does.
func (l lab) run(n modes.Network, id string, addrs ...string) *kerneltest.Host {
	l.t.Helper()
	e := endpoint(n, id, addrs...)
	link, err := l.mode.Attach(l.t.Context(), n, e)
	if err != nil {
		l.t.Fatal(err)
	}
	c := kerneltest.New(l.t)
	c.Take(l.t, l.host, link.SrcName)
	for _, a := range addrs {
		c.Sh(l.t, "ip addr add "+a+" dev eth0 nodad 2>/dev/null || ip addr add "+a+" dev eth0")
	}
	for _, gw := range link.Gateways {
		c.Sh(l.t, "ip route add default via "+gw.String())
	}
	return c
}

func (l lab) reaches(from *kerneltest.Host, to string, want bool) {
	l.t.Helper()
	_, err := from.TrySh("ping -c1 -W1 " + to)
	if want && err != nil { // the first packet may fall to a neighbour that is still being asked for
		_, err = from.TrySh("ping -c2 -W2 " + to)
	}
	if got := err == nil; got != want {
		l.t.Errorf("ping %s: %v, want %v", to, got, want)
	}
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	internal := network(netB, nil, subnet("10.9.1.0/24", "10.9.1.1/24"))
	internal.Internal = true
	b := l.up(internal)
	a1 := l.run(a, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	a2 := l.run(a, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
	b1 := l.run(b, "e3e3e3e3e3e3", "10.9.1.2/24")
	b2 := l.run(b, "e4e4e4e4e4e4", "10.9.1.3/24")
	b1.Sh(t, "ip route add default via 10.9.1.1") // a container with NET_ADMIN can

	l.reaches(a1, "10.9.0.3", true)
	l.reaches(a2, "fd09::2", true)
	l.reaches(a1, "203.0.113.1", true) // the outside has no route back: only NAT makes it answer
	l.reaches(a1, "2001:db8:113::1", true)
	l.reaches(l.host, "10.9.0.2", true)
	l.reaches(b1, "10.9.1.3", true)
	l.reaches(b2, "10.9.1.1", true)
	l.reaches(b1, "203.0.113.1", false)
	l.reaches(a1, "10.9.1.2", false)
	l.reaches(b1, "10.9.0.2", false)
	l.outside.Sh(t, "ip route add 10.9.0.0/16 via 203.0.113.2 && ip -6 route add fd09::/64 via 2001:db8:113::2")
	l.reaches(l.outside, "10.9.0.2", false)
	l.reaches(l.outside, "10.9.1.2", false)
	l.reaches(l.outside, "fd09::2", false)
}

func TestICCOff(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.up(network(netA, map[string]string{"icc": "false"}, subnet("10.9.0.0/24", "10.9.0.1/24")))
	a1 := l.run(a, "e1e1e1e1e1e1", "10.9.0.2/24")
	l.run(a, "e2e2e2e2e2e2", "10.9.0.3/24")
	l.reaches(a1, "10.9.0.3", false)
	a1.Sh(t, "ip route add 10.9.0.3/32 via 10.9.0.1") // the way round, over the host
	l.reaches(a1, "10.9.0.3", false)
	l.reaches(a1, "10.9.0.1", true)
	l.reaches(a1, "203.0.113.1", true)
}

// TestForeignBridge: another manager's network is as far away as one of netyard's, in both directions.
func TestForeignBridge(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24")))
	a1 := l.run(a, "e1e1e1e1e1e1", "10.9.0.2/24")
	l.host.Sh(t, "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up")
	d := l.host.Peer(t, "vethd")
	l.host.Sh(t, "ip link set vethd master docker0")
	d.Sh(t, "ip addr add 172.17.0.2/16 dev eth0 && ip route add default via 172.17.0.1")
	l.host.Watched(t)
	for i := 0; !strings.Contains(l.host.Sh(t, "nft list set inet netyard foreign"), "docker0"); i++ {
		if i == 100 {
			t.Fatal("the watcher does not see docker0")
		}
		l.host.Sh(t, "sleep 0.05")
	}
	l.reaches(a1, "172.17.0.2", false)
	l.reaches(d, "10.9.0.2", false)
	l.reaches(l.host, "172.17.0.2", true)
}

// TestPublishedByOthers shows that containers reach ports of the host that another manager publishes, for both
// families, as its own networks do, and nothing else of the network that the ports lead to.
func TestPublishedByOthers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	closed := network(netB, nil, subnet("10.9.1.0/24", "10.9.1.1/24"))
	closed.Internal = true
	b := l.up(closed)
	l.host.Sh(t, "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && "+
		"ip -6 addr add fd17::1/64 dev docker0 nodad && ip link set docker0 up")
	d := l.host.Peer(t, "vethd")
	l.host.Sh(t, "ip link set vethd master docker0")
	d.Sh(t, "ip addr add 172.17.0.2/16 dev eth0 && ip route add default via 172.17.0.1 && "+
		"ip -6 addr add fd17::2/64 dev eth0 nodad && ip -6 route add default via fd17::1")
	for _, to := range []string{"iptables-nft %s172.17.0.2:80", "ip6tables-nft %s[fd17::2]:80"} {
		l.host.Sh(t, fmt.Sprintf(to, "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 8085 "+
			"-j DNAT --to-destination "))
	}
	echo(t, d, "80")
	l.host.Watched(t)
	a1 := l.run(a, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	b1 := l.run(b, "e3e3e3e3e3e3", "10.9.1.2/24")
	b1.Sh(t, "ip route add default via 10.9.1.1")
	for i := 0; !strings.Contains(l.host.Sh(t, "nft list set inet netyard foreign"), "docker0"); i++ {
		if i == 100 {
			t.Fatal("the watcher does not see docker0")
		}
		l.host.Sh(t, "sleep 0.05")
	}
	for _, at := range []string{"203.0.113.2", "[2001:db8:113::2]", "10.9.0.1", "172.17.0.1"} {
		l.connects(a1, at+":8085", true)
	}
	l.connects(a1, "172.17.0.2:80", false)
	l.connects(a1, "[fd17::2]:80", false)
	l.connects(b1, "203.0.113.2:8085", false)
}

func TestHostBridgeStaysAsItIs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.host.Sh(t, "ip link add lan0 mtu 1400 type bridge && ip addr add 10.9.0.1/24 dev lan0 && ip link set lan0 up")
	before := l.host.Sh(t, "ip -o addr show dev lan0 | grep -v inet6; ip link show lan0 | grep -o 'mtu [0-9]*'")
	n := l.up(network(netA, map[string]string{"bridge": "lan0"}, subnet("10.9.0.0/24", "10.9.0.1/24")))
	a1 := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24")
	a2 := l.run(n, "e2e2e2e2e2e2", "10.9.0.3/24")
	l.reaches(a1, "10.9.0.3", true)
	l.reaches(a2, "10.9.0.1", true)
	got := l.host.Sh(t, "ip -o addr show dev lan0 | grep -v inet6; ip link show lan0 | grep -o 'mtu [0-9]*'")
	if got != before {
		t.Errorf("the host's bridge was altered:\n%s\n%s", before, got)
	}
	if err := l.mode.Down(n); err != nil {
		t.Fatal(err)
	}
	l.host.Sh(t, "ip link show lan0")
}

// TestRouterAdvertisement: neither the host nor a neighbour believes a container that plays the router
// (CVE-2020-13401).
func TestRouterAdvertisement(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := l.up(network(netA, nil, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	rogue := l.run(a, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	victim := l.run(a, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
	victim.Sh(t, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.autoconf=1")
	seen := func(h *kerneltest.Host) string {
		return h.Sh(t, "nft list chain inet probe in | grep -o 'packets [0-9]*'")
	}
	const probe = "nft add table inet probe; nft 'add chain inet probe in { type filter hook input priority 0; }'; " +
		"nft 'add rule inet probe in icmpv6 type nd-router-advert counter'"
	victim.Sh(t, probe)
	l.host.Sh(t, probe)
	sendRA(t, rogue)
	l.reaches(rogue, "fd09::3", true) // so that what was sent before has arrived
	for name, h := range map[string]*kerneltest.Host{"the neighbour": victim, "the host": l.host} {
		if got := seen(h); got != "packets 0" {
			t.Errorf("%s got a router advertisement: %s", name, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.up(network(netA, map[string]string{"bridge": "web0"}, subnet("10.9.0.0/24", "10.9.0.1/24")))
	l.host.Sh(t, "ip link add lan0 type bridge")
	dump := l.host.Dump(t)
	bad := network(netB, nil,
		modes.Subnet{Pool: netip.MustParsePrefix("10.8.0.0/24"), Gateway: netip.MustParsePrefix("10.9.9.1/24")})
	for _, c := range []struct {
		name string
		n    modes.Network
		want string
	}{
		{"a link that is no bridge", network(netB, map[string]string{"bridge": "eth-out"}, subnet("10.8.0.0/24", "10.8.0.1/24")), "eth-out: that link is not a bridge"},
		{"another network's bridge", network(netB, map[string]string{"bridge": "web0"}, subnet("10.8.0.0/24", "10.8.0.1/24")), "web0: it is the bridge of netyard's network aaaaaaaaaaaa"},
		{"overlap with the host", network(netB, nil, subnet("203.0.0.0/16", "203.0.0.1/16")), "203.0.0.0/16 overlaps 203.0.113.0/24 on the host's link eth-out"},
		{"overlap with a network", network(netB, nil, subnet("10.9.0.0/25", "10.9.0.5/25")), "overlaps 10.9.0.0/24 on the host's link web0"},
		{"IPv6 on a small link", network(netB, map[string]string{"mtu": "1000"}, subnet("fd00::/64", "fd00::1/64")), "mtu=1000: IPv6 needs at least 1280"},
		{"gateway elsewhere", bad, "gateway 10.9.9.1 is not in subnet 10.8.0.0/24"},
		{"MTU of the host's bridge", network(netB, map[string]string{"bridge": "lan0", "mtu": "1400"}), "mtu=1400: the host's bridge lan0 has 1500"},
	} {
		_, err := l.mode.Settle(t.Context(), c.n)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if got := l.host.Dump(t); got != dump {
		t.Error("a refusal changed something")
	}
}
