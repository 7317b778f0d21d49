package integration

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"netyard/integration/lab"
)

const (
	mode4 = "-o com.docker.network.bridge.gateway_mode_ipv4="
	mode6 = "-o com.docker.network.bridge.gateway_mode_ipv6="
)

// TestRoutedBeside: a container's ports are open on a routed network while its default route is on another.
func TestRoutedBeside(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Outside.Sh("ip route add 10.72.0.0/24 via", h.IP, "&& ip -6 route add fd00:72::/64 via", h.IP6)
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.71.0.0/24 --subnet fd00:71::/64 behind")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.72.0.0/24 --subnet fd00:72::/64", mode4+"routed",
			mode6+"routed routed")
		for i, networks := range [][]string{{"behind", "routed"}, {"routed", "behind"}} {
			name := fmt.Sprint("web", i)
			h.Docker("create --name", name, "-p 8080:80 --network", networks[0], "busybox sleep 1d")
			h.Docker("network connect", networks[1], name)
			h.Docker("start", name)
			h.In(name).Listen("tcp", ":80")
			h.In(name).Listen("tcp", ":81")
			const of = "{{with .NetworkSettings.Networks.routed}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
			addr, addr6, _ := strings.Cut(strings.TrimSpace(h.Docker("inspect -f '"+of+"'", name)), " ")
			for _, to := range []string{h.IP + ":8080", addr + ":80", "[" + addr6 + "]:80"} {
				has(t, h.Outside.Dial("tcp", to), ":")
			}
			h.Outside.DialFail("tcp", addr+":81")
			healthy(t, h)
			h.Docker("rm -f", name)
		}
	})
}

// TestRouted: containers are reached by their own addresses, but only on published ports, and keep their addresses when
// they connect to the outside.
func TestRouted(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Outside.Sh("ip route add 10.72.0.0/14 via", h.IP, "&& ip -6 route add fd00:70::/28 via", h.IP6)
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.72.0.0/24 --subnet fd00:72::/64", mode4+"routed",
			mode6+"routed routed")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.73.0.0/24 --subnet fd00:73::/64", mode4+"nat",
			mode6+"routed mixed")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.74.0.0/24 --subnet fd00:74::/64 -o "+
			"publish_from=198.51.100.0/24", mode4+"routed", mode6+"routed limited")
		h.Run("web", "--network routed -p 8080:80 -p 9000-9009:9000-9009/udp")
		h.Run("mix", "--network mixed -p 8080:80")
		h.Run("lim", "--network limited -p 8080:80")
		for _, name := range []string{"web", "mix", "lim"} {
			for _, port := range []string{":80", ":81"} {
				h.In(name).Listen("tcp", port)
			}
			h.In(name).Listen("udp", ":9003")
			h.In(name).Listen("udp", ":9010")
		}
		rows := map[string]string{}
		eventually(t, "ps shows names", func() bool {
			for _, row := range ps(t, h) {
				rows[row.Container] = strings.Join(row.Ports, " ")
			}
			return rows["web"] != "" && rows["mix"] != ""
		})
		has(t, rows["web"], "10.72.0.2:80/tcp")
		has(t, rows["web"], "10.72.0.2:9000-9009/udp")
		has(t, rows["mix"], "0.0.0.0:8080->80/tcp [fd00:73::2]:80/tcp")

		routedMatrix(t, h)
		h.Netyard.Restart()
		routedMatrix(t, h)
		h.Netyard.Stop()
		h.Sh("rm", h.Dir+"/state/netyard.db")
		h.Netyard.Start()
		eventually(t, "ports are rebuilt after the records were lost", func() bool {
			return strings.Count(h.Sh("netyard ps"), "10.72.0.2:9000-9009/udp") == 1
		})
		routedMatrix(t, h)
		h.Outside.Sh("ping -c1 -W4 10.72.0.2 && ping -c1 -W4 fd00:72::2 && ping -c1 -W4 fd00:73::2")
		for _, closed := range []string{"10.73.0.2", "10.74.0.2", "fd00:74::2"} {
			if _, err := h.Outside.TrySh("ping -c1 -W1", closed); err == nil {
				t.Errorf("%s answers a ping from outside", closed)
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			v4, v6 := h.Outside.Listen(network, h.Outside.IP+":7"), h.Outside.Listen(network, "["+h.Outside.IP6+"]:7")
			has(t, h.In("web").Dial(network, v4.Addr), "10.72.0.2:")
			has(t, h.In("web").Dial(network, v6.Addr), "[fd00:72::2]:")
			has(t, h.In("mix").Dial(network, v4.Addr), h.IP+":")
			has(t, h.In("mix").Dial(network, v6.Addr), "[fd00:73::2]:")
		}
		if out := h.DockerErr("run --rm --network routed -p 127.0.0.1:8081:80 busybox sleep 1"); true {
			has(t, out, "publish 127.0.0.1:8081:80/tcp: the network's IPv4 is routed")
		}
		healthy(t, h)

		// The next container with the address has no open ports.
		h.Docker("rm -f web")
		h.Run("next", "--network routed --ip 10.72.0.2")
		h.In("next").Listen("tcp", ":80")
		h.Outside.DialFail("tcp", "10.72.0.2:80")
	})
}

// routedMatrix tests the ports of TestRouted's containers from outside, from the host and from another network.
func routedMatrix(t *testing.T, h *lab.Host) {
	t.Helper()
	for at, want := range map[string]bool{
		"tcp 10.72.0.2:80": true, "tcp [fd00:72::2]:80": true,
		"udp 10.72.0.2:9003": true, "udp [fd00:72::2]:9003": true,
		"tcp 10.72.0.2:81": false, "tcp [fd00:72::2]:81": false,
		"udp 10.72.0.2:9010": false, "udp [fd00:72::2]:9010": false,
		"tcp " + h.IP + ":8080": true, "tcp [" + h.IP6 + "]:8080": false, // of the mixed network, whose IPv4 is NAT
		"tcp 10.73.0.2:80": false, "tcp [fd00:73::2]:80": true, "tcp [fd00:73::2]:81": false,
		"tcp 10.74.0.2:80": false, "tcp [fd00:74::2]:80": false,
	} {
		proto, addr, _ := strings.Cut(at, " ")
		reach(t, "outside, "+at, h.Outside.Net, proto, addr, want)
		if want {
			client := h.Outside.IP
			if strings.Contains(addr, "[") {
				client = h.Outside.IP6
			}
			has(t, h.Outside.Dial(proto, addr), client)
		}
	}
	reach(t, "another network, open", h.In("mix"), "tcp", "10.72.0.2:80", true)
	reach(t, "another network, not open", h.In("mix"), "tcp", "10.72.0.2:81", false)
	reach(t, "host", h.Net, "tcp", "10.72.0.2:81", true)
}

// TestIsolated: containers of an isolated network reach each other, and nothing else.
func TestIsolated(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard-bridge --internal --ipv6 --subnet 10.75.0.0/24 --subnet fd00:75::/64",
			mode4+"isolated", mode6+"isolated -o bridge=alone0 alone")
		h.Docker("network create -d netyard-bridge --internal --ipv6 --subnet 10.76.0.0/24 --subnet fd00:76::/64",
			mode6+"isolated -o bridge=half0 half")
		h.Run("c1", "--network alone")
		h.Run("c2", "--network alone")
		h.Run("c3", "--network half")
		h.Run("c4", "--network half")
		if addrs := h.Tool("ip -o addr show dev alone0"); addrs != "" {
			t.Errorf("the host has an address on an isolated network: %s", addrs)
		}
		if addrs := h.Tool("ip -o addr show dev half0"); !strings.Contains(addrs, "10.76.0.1/24") ||
			strings.Contains(addrs, "inet6") {
			t.Errorf("addresses on a network that is isolated only for IPv6: %s", addrs)
		}
		for _, to := range []string{h.Addr("c2", "alone"), h.Addr6("c2", "alone"), "c2"} {
			h.Ping("c1", to)
		}
		for _, to := range []string{h.Addr("c4", "half"), h.Addr6("c4", "half"), "10.76.0.1"} {
			h.Ping("c3", to)
		}
		noRoute(t, h, "c1")
		h.In("c1").Tool("ip route add default dev eth0")
		for _, there := range []string{h.IP, h.Outside.IP, h.Addr("c3", "half"), "10.76.0.1"} {
			h.PingFail("c1", there)
		}
		healthy(t, h)
		h.Netyard.Restart()
		if addrs := h.Tool("ip -o addr show dev alone0"); addrs != "" {
			t.Errorf("the host has an address on an isolated network after a restart: %s", addrs)
		}
		h.PingFail("c1", h.IP)
		h.Ping("c1", "c2")
	})
}

// TestEgress: connections of a network's containers leave with the configured egress address, and with no other.
func TestEgress(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Sh("ip addr add 203.0.113.60/24 dev eth0 && ip -6 addr add 2001:db8:113::60/64 dev eth0 nodad " +
			"preferred_lft 0")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.72.0.0/24 --subnet fd00:72::/64 -o " +
			"com.docker.network.host_ipv4=203.0.113.60 -o egress_ipv6=2001:db8:113::60 mail")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.73.0.0/24 --subnet fd00:73::/64 other")
		h.Run("c1", "--network mail")
		h.Run("c2", "--network other")
		for _, network := range []string{"tcp", "udp"} {
			v4, v6 := h.Outside.Listen(network, h.Outside.IP+":7"), h.Outside.Listen(network, "["+h.Outside.IP6+"]:7")
			has(t, h.In("c1").Dial(network, v4.Addr), "203.0.113.60:")
			has(t, h.In("c1").Dial(network, v6.Addr), "[2001:db8:113::60]:")
			has(t, h.In("c2").Dial(network, v4.Addr), h.IP+":")
			has(t, h.In("c2").Dial(network, v6.Addr), "["+h.IP6+"]:")
		}
		healthy(t, h)
		h.Sh("ip addr del 203.0.113.60/24 dev eth0")
		if out, err := h.TrySh("netyard doctor"); err == nil {
			t.Error("doctor does not notice that the egress address is gone")
		} else {
			has(t, out+err.Error(), "the host's address 203.0.113.60 is missing")
		}
		h.Sh("ip addr add 203.0.113.60/24 dev eth0")
		h.Netyard.Restart()
		has(t, h.In("c1").Dial("tcp", h.Outside.Listen("tcp", h.Outside.IP+":8").Addr), "203.0.113.60:")
		h.RemoveAll()
		h.Sh("ip addr del 203.0.113.60/24 dev eth0 && ip -6 addr del 2001:db8:113::60/64 dev eth0")
	})
}

// TestNDPProxy: a container with an address of the LAN's own subnet is reached from the LAN without a route.
func TestNDPProxy(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.72.0.0/24 --subnet 2001:db8:113:0:72::/80 -o "+
			"ndp_proxy=eth0", mode6+"routed global")
		h.Run("c1", "--network global -p 80:80")
		h.Run("c2", "--network global")
		addr := h.Addr6("c1", "global")
		h.In("c1").Listen("tcp", ":80")
		at := net.JoinHostPort(addr, "80")
		has(t, h.Outside.Dial("tcp", at), "["+h.Outside.IP6+"]:")
		h.Outside.Sh("ping -c1 -W4", addr)
		has(t, h.In("c1").Dial("tcp", h.Outside.Listen("tcp", "["+h.Outside.IP6+"]:7").Addr), "["+addr+"]:")
		h.Outside.DialFail("tcp", net.JoinHostPort(addr, "81"))
		h.Ping("c2", addr)
		if proxies := h.Tool("ip -6 neigh show proxy"); strings.Count(proxies, "dev eth0") != 2 {
			t.Errorf("NDP proxies: %s", proxies)
		}
		healthy(t, h)
		h.Netyard.Restart()
		has(t, h.Outside.Dial("tcp", at), "["+h.Outside.IP6+"]:")
		// The link can be changed while containers run; a missing link is refused and changes nothing.
		h.Sh("ip link add up1 type bridge && ip link set up1 up && netyard network set global ndp_proxy=up1")
		if out, err := h.TrySh("netyard network set global ndp_proxy=eth9 2>&1"); err == nil {
			t.Errorf("NDP proxies on a missing link: %s", out)
		}
		if proxies := h.Tool("ip -6 neigh show proxy"); strings.Count(proxies, "dev up1") != 2 ||
			strings.Contains(proxies, "dev eth0") {
			t.Errorf("NDP proxies on the other link: %s", proxies)
		}
		healthy(t, h)
		h.Sh("netyard network set global ndp_proxy=eth0 && ip link del up1")
		h.Outside.Dial("tcp", at)
		h.Docker("rm -f c1 c2")
		eventually(t, "the NDP proxies are gone", func() bool { return h.Tool("ip -6 neigh show proxy") == "" })
	})
}

// TestStaticRoutes: the routes of a network are set in its containers, and work.
func TestStaticRoutes(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.72.0.0/24 --subnet fd00:72::/64 -o " +
			"routes=10.99.0.0/16@10.72.0.200,10.98.0.0/16,fd99::/64@fd00:72::200 site")
		h.Run("router", "--network site --ip 10.72.0.200 --ip6 fd00:72::200")
		h.In("router").Tool("ip addr add 10.99.0.1/32 dev lo && ip addr add 10.98.0.1/32 dev lo && ip addr add " +
			"fd99::1/128 dev lo")
		h.Run("c1", "--network site")
		routes := h.In("c1").Tool("ip route; ip -6 route")
		for _, want := range []string{
			"10.99.0.0/16 via 10.72.0.200 dev eth0", "10.98.0.0/16 dev eth0",
			"fd99::/64 via fd00:72::200 dev eth0", "default via 10.72.0.1",
		} {
			has(t, routes, want)
		}
		for _, there := range []string{"10.99.0.1", "10.98.0.1", "fd99::1", h.Outside.IP} {
			h.Ping("c1", there)
		}
		h.Docker("restart -t 0 c1")
		h.Ping("c1", "10.99.0.1")
		healthy(t, h)
	})
}

// TestContainerAsGateway: containers reach the outside through the container with the network's gateway address, and
// while it is away none of their packets leaves the host. The outside counts packets all the time.
func TestContainerAsGateway(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		for _, c := range []struct{ name, flags string }{
			{"by another network", ""},
			{"by another network, internal", "--internal"},
			{"by its own network", "-o gateway_exit=true -o egress_ipv4=" + guideOutside},
		} {
			t.Run(c.name, func(t *testing.T) { gatewayWorks(t, host(t, e), c.flags) })
		}
	})
}

const (
	guideIP      = "10.75.0.2" // the first address that IPAM would give
	guideOutside = "203.0.113.50"
)

// gatewayWorks tests a gateway container on a network with flags.
func gatewayWorks(t *testing.T, h *lab.Host, flags string) {
	t.Helper()
	h.Sh("ip addr add", guideOutside+"/24 dev eth0")
	h.Docker("network create -d netyard-bridge --subnet 10.74.0.0/24 -o egress_ipv4="+guideOutside, "uplink")
	h.Docker("network create -d netyard-bridge --ipam-driver netyard", flags,
		"--subnet 10.75.0.0/24 -o gateway_address="+guideIP, "vpn")
	h.Outside.Listen("tcp", h.Outside.IP+":7")
	h.Outside.Sh(`nft 'table inet probe {
		counter good { }
		counter leak { }
		chain in {
			type filter hook prerouting priority -300;
			icmp type echo-request ip saddr 203.0.113.50 counter name good
			tcp dport 7 ip saddr 203.0.113.50 counter name good
			icmp type echo-request ip saddr != 203.0.113.50 counter name leak
			tcp dport 7 ip saddr != 203.0.113.50 counter name leak
		}
	}'`)
	h.Run("c1", "--network vpn -p 8090:80", fmt.Sprintf("sh -c 'while true; do ping -i 0.05 %s; sleep 0.1; done'",
		h.Outside.IP))
	if a := h.Addr("c1", "vpn"); a == guideIP {
		t.Fatalf("a container that did not request it got the gateway's address %s", a)
	}
	born := h.Docker("inspect -f '{{.State.StartedAt}}' c1")
	c1 := h.In("c1")
	silent(t, h, c1, "before the gateway starts")

	h.Docker("create --name vpn --network vpn --ip", guideIP, "--sysctl net.ipv4.ip_forward=0 busybox sleep 1d")
	if !strings.Contains(flags, "gateway_exit") {
		h.Docker("network connect uplink vpn")
	}
	up := func(verb string) {
		h.Docker(verb, "vpn")
		h.In("vpn").Tool("nft add table ip nat && nft 'add chain ip nat out { type nat hook postrouting priority "+
			"100; }' &&",
			"nft add rule ip nat out ip saddr 10.75.0.0/24 ip daddr != 10.75.0.0/24 masquerade && "+
				"sysctl -qw net.ipv4.ip_forward=1")
		has(t, c1.Dial("tcp", h.Outside.IP+":7"), guideOutside+":")
	}
	up("start")
	healthy(t, h)
	for _, down := range []string{"stop -t 0 vpn", "kill vpn"} {
		h.Docker(down)
		silent(t, h, c1, "after "+down)
		up("start")
	}
	up("restart -t 0")
	h.Netyard.Restart()
	has(t, c1.Dial("tcp", h.Outside.IP+":7"), guideOutside+":")

	h.Docker("stop -t 0 vpn")
	// The client sets a route past the gateway.
	c1.Tool("ip route replace default via 10.75.0.1")
	silent(t, h, c1, "with a route of its own")
	h.Netyard.Stop()
	silent(t, h, c1, "while netyard is down")
	h.Netyard.Start()
	silent(t, h, c1, "after a restart of netyard")
	c1.Tool("ip route replace default via " + guideIP)
	if flags != "--internal" { // an engine publishes nothing on an internal network
		c1.Listen("tcp", ":80")
		has(t, h.Outside.Dial("tcp", h.IP+":8090"), "10.75.0.1:")
	}
	up("start")
	if now := h.Docker("inspect -f '{{.State.StartedAt}}' c1"); now != born {
		t.Errorf("the client was started again: %s, %s", born, now)
	}
	if n := counted(h, "leak"); n != "0" {
		t.Errorf("%s packets left past the gateway", n)
	}
	healthy(t, h)
	h.RemoveAll()
	h.Sh("ip addr del", guideOutside+"/24 dev eth0")
}

// silent checks that the client reaches nothing, and that no packet of it is counted outside.
func silent(t *testing.T, h *lab.Host, client *lab.Net, when string) {
	t.Helper()
	before := counted(h, "good")
	for range 2 { // a second each, with 20 pings meanwhile
		if got, err := client.TryDial("tcp", h.Outside.IP+":7"); err == nil {
			t.Errorf("%s: the client reached the outside, as %s", when, got)
		}
	}
	if good, leak := counted(h, "good"), counted(h, "leak"); good != before || leak != "0" {
		t.Errorf("%s: packets outside: %s past the gateway; with its address %s before and %s after", when, leak,
			before, good)
	}
}

// counted returns the packets of a counter on the outside.
func counted(h *lab.Host, counter string) string {
	return h.Outside.Sh("nft list counter inet probe", counter, "| grep -o 'packets [0-9]*' | cut -d' ' -f2")
}

// TestGatewayRefusals: invalid options are refused in one line that names the option, and nothing changes.
func TestGatewayRefusals(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		before := h.Snapshot()
		for cmd, want := range map[string]string{
			mode4 + "direct":   "com.docker.network.bridge.gateway_mode_ipv4=direct: want one of nat, routed, isolated",
			mode4 + "isolated": "gateway_mode_ipv4=isolated: it needs --internal",
			"--ipv6 --subnet fd00:72::/64 " + mode6 + "isolated":                  "gateway_mode_ipv6=isolated: it needs --internal",
			"-o egress_ipv4=203.0.113.99":                                         "egress_ipv4=203.0.113.99: it is not an address of this host",
			"-o com.docker.network.host_ipv6=203.0.113.2":                         "com.docker.network.host_ipv6=203.0.113.2: want an IPv6 address",
			"-o egress_ipv4=" + h.IP + " " + mode4 + "routed":                     "egress_ipv4=" + h.IP + ": with gateway_mode_ipv4=routed",
			"-o ndp_proxy=eth0":                                                   "ndp_proxy=eth0: the network has no IPv6 subnet",
			"-o ndp_proxy=eth0 --ipv6 --subnet 2001:db8:113:0:72::/80":            "ndp_proxy=eth0: containers leave with the host's address; add gateway_mode_ipv6=routed",
			"-o ndp_proxy=eth9 --ipv6 --subnet fd00:72::/64 " + mode6 + "routed":  "ndp_proxy=eth9: there is no such interface",
			"-o routes=10.9.0.0/16@2001:db8::1":                                   "routes=10.9.0.0/16@2001:db8::1: want subnets, each with @ and the next hop",
			"-o routes=0.0.0.0/0@10.72.0.9":                                       "routes=0.0.0.0/0@10.72.0.9: want subnets",
			"-o routes=10.9.0.0/16@192.168.77.3":                                  "routes=10.9.0.0/16@192.168.77.3: 192.168.77.3 is in no subnet of the network",
			"-o gateway_address=10.72.0.9":                                        "gateway_address=10.72.0.9: it needs --ipam-driver netyard",
			"--ipam-driver netyard -o gateway_address=10.9.0.9":                   "gateway_address=10.9.0.9: 10.9.0.9 is in no subnet of the network",
			"--ipam-driver netyard -o gateway_address=gluetun":                    "gateway_address=gluetun: want addresses",
			"--ipam-driver netyard --gateway 10.72.0.9 -o gateway_addr=10.72.0.9": "did you mean gateway_address?",
		} {
			out := h.DockerErr("network create -d netyard-bridge --subnet 10.72.0.0/24", cmd, "x")
			has(t, out, want)
			if strings.Count(strings.TrimSpace(strings.Split(out, "\n\nRun 'docker")[0]), "\n") > 0 {
				t.Errorf("%s: the error has several lines: %q", cmd, out)
			}
		}
		h.SameAs(before)
	})
}
