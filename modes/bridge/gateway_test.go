package bridge_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netyard/kernel/kerneltest"
	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/modetest"
)

func internal(n modes.Network) modes.Network {
	n.Internal = true
	return n
}

func TestGatewayContract(t *testing.T) {
	t.Parallel()
	v4, v6 := subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")
	global := subnet("2001:db8:113:0:9::/80", "2001:db8:113:0:9::1/80")
	uplink := func(t *testing.T, h *kerneltest.Host) {
		h.Sh(t, "ip link add eth-out address 02:00:00:00:00:02 type bridge && "+
			"ip link set eth-out addrgenmode none && ip link set eth-out up")
		h.Sh(t, "ip addr add 203.0.113.2/24 dev eth-out && ip addr add 2001:db8:113::2/64 dev eth-out nodad")
	}
	for name, n := range map[string]modes.Network{
		"routed":            network(netA, map[string]string{"gateway_mode_ipv4": "routed", "gateway_mode_ipv6": "routed"}, v4, v6),
		"mixed":             network(netA, map[string]string{"gateway_mode_ipv6": "routed"}, v4, v6),
		"isolated":          internal(network(netA, map[string]string{"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}, v4, v6)),
		"isolated IPv6":     internal(network(netA, map[string]string{"gateway_mode_ipv6": "isolated"}, v4, v6)),
		"egress":            network(netA, map[string]string{"egress_ipv4": "203.0.113.2", "egress_ipv6": "2001:db8:113::2"}, v4, v6),
		"NDP proxy":         network(netA, map[string]string{"gateway_mode_ipv6": "routed", "ndp_proxy": "eth-out"}, v4, global),
		"gateway":           network(netA, map[string]string{"gateway_address": "10.9.0.53,fd09::53"}, v4, v6),
		"gateway, internal": internal(network(netA, map[string]string{"gateway_address": "10.9.0.53"}, v4, v6)),
		"is the gateway":    network(netA, map[string]string{"gateway_address": "10.9.0.2"}, v4, v6),
		"static routes":     network(netA, map[string]string{"routes": "10.7.0.0/16@10.9.0.7,10.6.0.0/16"}, v4),
		"routes of IPv6":    network(netA, map[string]string{"routes": "fd07::/64@fd09::7"}, v4, v6),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			modetest.Run(t, modetest.Case{
				New: bridge.New, Network: n, Setup: uplink,
				Endpoint: endpoint(n, "eeeeeeeeeeee0001", "10.9.0.2/24",
					strings.Replace(n.Subnets[len(n.Subnets)-1].Gateway.String(), "::1/", "::2/", 1)),
			})
		})
	}
}

// TestGateways: what an engine is told of gateways and routes.
func TestGateways(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	v4, v6 := subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")
	for _, c := range []struct {
		name     string
		n        modes.Network
		addrs    []string
		gateways string
		routes   string
	}{
		{"the host", network(netA, nil, v4, v6), []string{"10.9.0.2/24", "fd09::2/64"}, "10.9.0.1 fd09::1", ""},
		{"internal", internal(network(netA, nil, v4, v6)), []string{"10.9.0.2/24"}, "", ""},
		{"a container, for one family only", network(netA, map[string]string{"gateway_address": "10.9.0.53"}, v4, v6), []string{"10.9.0.2/24", "fd09::2/64"}, "10.9.0.53", ""},
		{"a container, for both", network(netA, map[string]string{"gateway_address": "10.9.0.53,fd09::53"}, v4, v6), []string{"10.9.0.2/24", "fd09::2/64"}, "10.9.0.53 fd09::53", ""},
		{"a container, internal", internal(network(netA, map[string]string{"gateway_address": "10.9.0.53"}, v4, v6)), []string{"10.9.0.2/24", "fd09::2/64"}, "10.9.0.53", ""},
		{"that container", network(netA, map[string]string{"gateway_address": "10.9.0.53"}, v4, v6), []string{"10.9.0.53/24", "fd09::2/64"}, "", ""},
		{"that container, with an exit", network(netA, map[string]string{"gateway_address": "10.9.0.53", "gateway_exit": "true"}, v4, v6), []string{"10.9.0.53/24", "fd09::2/64"}, "10.9.0.1", ""},
		{"that container, internal", internal(network(netA, map[string]string{"gateway_address": "10.9.0.53"}, v4, v6)), []string{"10.9.0.53/24"}, "", ""},
		{"routes", network(netA, map[string]string{"routes": "10.7.0.0/16@10.9.0.7,10.6.0.0/16,fd07::/64@fd09::7"}, v4, v6), []string{"10.9.0.2/24"}, "10.9.0.1", "10.7.0.0/16@10.9.0.7 10.6.0.0/16"},
		{"the next hop of a route", network(netA, map[string]string{"routes": "10.7.0.0/16@10.9.0.7,10.6.0.0/16"}, v4), []string{"10.9.0.7/24"}, "10.9.0.1", "10.6.0.0/16"},
	} {
		n := l.up(c.n)
		link, err := l.mode.Attach(t.Context(), n, endpoint(n, "eeeeeeeeeeee0001", c.addrs...))
		if err != nil {
			t.Fatal(err)
		}
		if got := spaced(link.Gateways); got != c.gateways {
			t.Errorf("%s: gateways %q, want %q", c.name, got, c.gateways)
		}
		if got := spaced(link.Routes); got != c.routes {
			t.Errorf("%s: routes %q, want %q", c.name, got, c.routes)
		}
		if err := errors.Join(l.mode.Detach(n, endpoint(n, "eeeeeeeeeeee0001", c.addrs...)),
			l.mode.Down(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func spaced[T interface{ String() string }](all []T) string {
	var words []string
	for _, one := range all {
		words = append(words, one.String())
	}
	return strings.Join(words, " ")
}

func TestGatewayRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.host.Sh(t, "ip link add lan0 type bridge")
	dump := l.host.Dump(t)
	v4, v6 := subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")
	global := subnet("2001:db8:113:0:9::/80", "2001:db8:113:0:9::1/80")
	for _, c := range []struct {
		n    modes.Network
		want string
	}{
		{network(netA, map[string]string{"gateway_mode_ipv4": "isolated"}, v4), "gateway_mode_ipv4=isolated: it needs --internal"},
		{network(netA, map[string]string{"gateway_mode_ipv6": "isolated"}, v4, v6), "gateway_mode_ipv6=isolated: it needs --internal"},
		{network(netA, map[string]string{"gateway_mode_ipv4": "routed", "bind": "203.0.113.2"}, v4), "bind=203.0.113.2: with gateway_mode_ipv4=routed"},
		{network(netA, map[string]string{"gateway_mode_ipv4": "routed", "egress_ipv4": "203.0.113.2"}, v4), "egress_ipv4=203.0.113.2: with gateway_mode_ipv4=routed containers leave with their own"},
		{network(netA, map[string]string{"masquerade": "false", "egress_ipv4": "203.0.113.2"}, v4), "egress_ipv4=203.0.113.2: with masquerade=false"},
		{internal(network(netA, map[string]string{"egress_ipv4": "203.0.113.2"}, v4)), "egress_ipv4=203.0.113.2: an internal network has no way out"},
		{network(netA, map[string]string{"egress_ipv4": "127.0.0.1"}, v4), "egress_ipv4=127.0.0.1: it cannot be a source address"},
		{network(netA, map[string]string{"egress_ipv4": "203.0.113.99"}, v4), "egress_ipv4=203.0.113.99: it is not an address of this host"},
		{network(netA, map[string]string{"egress_ipv6": "2001:db8:113::99"}, v6), "egress_ipv6=2001:db8:113::99: it is not an address of this host"},
		{network(netA, map[string]string{"ndp_proxy": "eth-out"}, v4), "ndp_proxy=eth-out: the network has no IPv6 subnet"},
		{network(netA, map[string]string{"ndp_proxy": "eth-out"}, v6), "ndp_proxy=eth-out: containers leave with the host's address; add gateway_mode_ipv6=routed"},
		{internal(network(netA, map[string]string{"ndp_proxy": "eth-out"}, v6)), "ndp_proxy=eth-out: nothing gets into an internal network"},
		{network(netA, map[string]string{"ndp_proxy": "eth9", "gateway_mode_ipv6": "routed"}, v6), "ndp_proxy=eth9: there is no such interface"},
		{network(netA, map[string]string{"gateway_mode_ipv6": "routed"}, global), "overlaps 2001:db8:113::/64 on the host's link eth-out"},
		{network(netA, map[string]string{"gateway_mode_ipv6": "routed", "ndp_proxy": "eth-out"}, subnet("2001:db8:113::/80", "2001:db8:113::9/80")), "overlaps 2001:db8:113::/64 on the host's link eth-out"},
		{network(netA, map[string]string{"gateway_address": "10.8.0.2"}, v4), "gateway_address=10.8.0.2: 10.8.0.2 is in no subnet"},
		{network(netA, map[string]string{"gateway_address": "10.9.0.1"}, v4), "gateway_address=10.9.0.1: 10.9.0.1 is the host's own"},
		{network(netA, map[string]string{"gateway_address": "10.9.0.2,10.9.0.3"}, v4), "gateway_address=10.9.0.2,10.9.0.3: a container can have only one default route"},
		{network(netA, map[string]string{"gateway_address": "10.9.0.2", "icc": "false"}, v4), "gateway_address=10.9.0.2: with icc=false"},
		{network(netA, map[string]string{"gateway_address": "10.9.0.2", "gateway_mode_ipv4": "routed"}, v4), "gateway_address=10.9.0.2: with gateway_mode_ipv4=routed"},
		{network(netA, map[string]string{"gateway_exit": "true"}, v4), "gateway_exit=true: it needs gateway_address"},
		{internal(network(netA, map[string]string{"gateway_exit": "true", "gateway_address": "10.9.0.2"}, v4)), "gateway_exit=true: an internal network has no way out"},
		{network(netA, map[string]string{"routes": "10.7.0.0/16@10.8.0.7"}, v4), "routes=10.7.0.0/16@10.8.0.7: 10.8.0.7 is in no subnet"},
		{network(netA, map[string]string{"bridge": "lan0", "gateway_mode_ipv4": "routed"}, v4), "gateway_mode_ipv4=routed: netyard does not route the host's bridge lan0"},
		{network(netA, map[string]string{"bridge": "lan0", "egress_ipv4": "203.0.113.2"}, v4), "egress_ipv4=203.0.113.2: netyard does not route the host's bridge lan0"},
		{network(netA, map[string]string{"bridge": "lan0", "gateway_address": "10.9.0.2"}, v4), "gateway_address=10.9.0.2: netyard does not route the host's bridge lan0"},
	} {
		_, err := l.mode.Settle(t.Context(), c.n)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %q", c.n.Options, err, c.want)
		}
	}
	if d := cmp.Diff(dump, l.host.Dump(t)); d != "" {
		t.Errorf("a refusal changed something:\n%s", d)
	}
}

// TestKillSwitch: nothing gets past the host, whatever routes containers make for themselves, but what the network lets
// out.
func TestKillSwitch(t *testing.T) {
	t.Parallel()
	for _, exit := range []bool{false, true} {
		l := newLab(t)
		opts := map[string]string{"gateway_address": "10.9.0.53", "gateway_exit": strconv.FormatBool(exit)}
		n := l.up(network(netA, opts, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
		guide := l.run(n, "e1e1e1e1e1e1", "10.9.0.53/24", "fd09::53/64")
		client := l.run(n, "e2e2e2e2e2e2", "10.9.0.2/24", "fd09::2/64")
		guide.Sh(t, "nft add table ip nat; nft 'add chain ip nat out { type nat hook postrouting priority 100; }'; "+
			"nft add rule ip nat out oifname eth0 masquerade; sysctl -qw net.ipv4.ip_forward=1")
		// With NET_ADMIN, the guide can set its routes.
		guide.Sh(t, "ip route replace default via 10.9.0.1 && ip -6 route replace default via fd09::1")
		l.reaches(guide, "203.0.113.1", exit)
		l.reaches(client, "203.0.113.1", exit)
		l.reaches(guide, "2001:db8:113::1", false) // the network says IPv4 only
		client.Sh(t, "ip route replace default via 10.9.0.1 && ip -6 route replace default via fd09::1")
		l.reaches(client, "203.0.113.1", false)
		l.reaches(client, "2001:db8:113::1", false)
		l.reaches(client, "10.9.0.53", true)
		l.reaches(client, "10.9.0.1", true)
	}
}

// TestGuideIPv6: the others go out by the container in IPv6 as well.
func TestGuideIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	opts := map[string]string{"gateway_address": "fd09::53", "gateway_exit": "true"}
	n := l.up(network(netA, opts, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64")))
	guide := l.run(n, "e1e1e1e1e1e1", "10.9.0.53/24", "fd09::53/64")
	client := l.run(n, "e2e2e2e2e2e2", "10.9.0.2/24", "fd09::2/64")
	guide.Sh(t, "nft add table ip6 nat; nft 'add chain ip6 nat out { type nat hook postrouting priority 100; }'; "+
		"nft add rule ip6 nat out oifname eth0 masquerade; sysctl -qw net.ipv6.conf.all.forwarding=1; "+
		"ip -6 route replace default via fd09::1")
	l.reaches(client, "2001:db8:113::1", true)
	guide.Sh(t, "ip link set eth0 down")
	l.reaches(client, "2001:db8:113::1", false)
	client.Sh(t, "ip -6 route replace default via fd09::1; ip route replace default via 10.9.0.1")
	l.reaches(client, "2001:db8:113::1", false)
	l.reaches(client, "203.0.113.1", false)
}

// TestIsolatedFromHost: without an address of the host on the bridge, its other addresses answer nobody there.
func TestIsolatedFromHost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	opts := map[string]string{"gateway_mode_ipv4": "isolated", "gateway_mode_ipv6": "isolated"}
	n := l.up(internal(network(netA, opts, subnet("10.9.0.0/24", "10.9.0.1/24"), subnet("fd09::/64", "fd09::1/64"))))
	a := l.run(n, "e1e1e1e1e1e1", "10.9.0.2/24", "fd09::2/64")
	l.run(n, "e2e2e2e2e2e2", "10.9.0.3/24", "fd09::3/64")
	if addrs := l.host.Sh(t, "ip -o addr show dev nyb-aaaaaaaaaaa"); addrs != "" {
		t.Errorf("the host has an address on the bridge: %s", addrs)
	}
	l.reaches(a, "10.9.0.3", true)
	l.reaches(a, "fd09::3", true)
	a.Sh(t, "ip route add 203.0.113.2/32 dev eth0 && ip route add 10.9.0.1/32 dev eth0")
	l.reaches(a, "203.0.113.2", false)
	l.reaches(a, "10.9.0.1", false)
	if neigh := a.Sh(t, "ip neigh show 203.0.113.2"); strings.Contains(neigh, "lladdr") {
		t.Errorf("the host answers ARP for an address that it has elsewhere: %s", neigh)
	}
	// With the bridge's address put in by hand, what comes is dropped.
	mac := l.host.Sh(t, "ip -o link show nyb-aaaaaaaaaaa | grep -o 'ether [0-9a-f:]*' | cut -d' ' -f2")
	a.Sh(t, "ip neigh replace 203.0.113.2 lladdr "+mac+" dev eth0; ip neigh replace 203.0.113.1 lladdr "+mac+
		" dev eth0; ip route add 203.0.113.1/32 dev eth0")
	const probe = "nft add table inet probe; nft 'add chain inet probe in { type filter hook input priority 10; }'; " +
		"nft 'add rule inet probe in ip saddr 10.9.0.2 counter'"
	l.host.Sh(t, probe)
	l.outside.Sh(t, probe)
	l.reaches(a, "203.0.113.2", false)
	l.reaches(a, "203.0.113.1", false)
	for name, h := range map[string]*kerneltest.Host{"the host": l.host, "the outside": l.outside} {
		if got := h.Sh(t, "nft list chain inet probe in | grep -o 'packets [0-9]*'"); got != "packets 0" {
			t.Errorf("%s got something from an isolated network: %s", name, got)
		}
	}
}

// TestStrayProxy: an NDP proxy of netyard's that nobody wants is found and removed; another's is nobody's business.
func TestStrayProxy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := network(netA, map[string]string{"gateway_mode_ipv6": "routed", "ndp_proxy": "eth-out"},
		subnet("2001:db8:113:0:9::/80", "2001:db8:113:0:9::1/80"))
	n = l.up(n)
	l.run(n, "e1e1e1e1e1e1", "2001:db8:113:0:9::2/80")
	l.host.Sh(t, "ip -6 neigh add proxy 2001:db8:113::77 dev eth-out && "+
		"ip -6 neigh add proxy 2001:db8:113::78 dev eth-out protocol 78")
	e := endpoint(n, "e1e1e1e1e1e1", "2001:db8:113:0:9::2/80")
	snap, err := l.host.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	objects := l.mode.Objects(n, e)
	strays := snap.Strays(objects)
	faults := snap.Faults(objects)
	if len(faults) > 0 || len(strays) != 1 || strays[0].Text != "NDP proxy 2001:db8:113::78 on eth-out" {
		t.Fatalf("faults %v, strays %v", faults, strays)
	}
	if err := errors.Join(strays[0].Remove(), l.mode.Detach(n, e)); err != nil {
		t.Fatal(err)
	}
	got := l.host.Sh(t, "ip -6 neigh show proxy")
	if !strings.HasPrefix(got, "2001:db8:113::77 dev eth-out") || strings.Contains(got, "\n") {
		t.Errorf("proxies afterwards: %s", got)
	}
	l.host.Sh(t, "sysctl -qw net.ipv6.conf.eth-out.proxy_ndp=0")
	snap, err = l.host.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, f := range snap.Faults(objects) {
		said = append(said, f.Text)
	}
	if all := strings.Join(said, "; "); !strings.Contains(all, "NDP proxy 2001:db8:113:0:9::2 on eth-out is missing") {
		t.Errorf("a missing proxy is not noticed: %s", all)
	}
}
