package integration

import (
	"fmt"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestBridge: the main function: containers of a real engine on netyard's bridge networks.
func TestBridge(t *testing.T) { engines(t, bridgeWorks) }

func bridgeWorks(t *testing.T, e lab.Engine) {
	t.Helper()
	h := host(t, e)
	for _, create := range []string{
		"-d netyard-bridge",
		"-d netyard -o mode=bridge",
		"-d netyard --ipam-driver netyard",
		"-d netyard-bridge --ipam-driver netyard-bridge --subnet 10.NN.0.0/24 --ip-range 10.NN.0.128/25 --gateway 10.NN.0.254",
	} {
		t.Run(create, func(t *testing.T) {
			h.Use(t)
			before := h.Snapshot()
			h.Docker("network create", strings.ReplaceAll(create, "NN", "77"), "a")
			h.Docker("network create", strings.ReplaceAll(create, "NN", "78"), "b")
			h.Docker("network create --internal", strings.ReplaceAll(create, "NN", "79"), "in")
			h.Run("c1", "--network a")
			h.Run("c2", "--network a --network-alias second")
			h.Run("c3", "--network b")
			h.Run("c4", "--network in")
			h.Run("c5", "--network in")
			for _, peer := range []string{"c2", "second", "c2.a", h.Addr("c2", "a"), h.Outside.IP} {
				h.Ping("c1", peer)
			}
			h.Ping("c4", "c5")
			h.PingFail("c3", h.Addr("c1", "a"))
			noRoute(t, h, "c4")
			// A route that the container sets itself does not help either.
			h.In("c4").Tool("ip route add default via",
				h.Docker("network inspect -f '{{(index .IPAM.Config 0).Gateway}}' in"))
			h.PingFail("c4", h.Outside.IP)
			h.PingFail("c4", h.Addr("c1", "a"))
			h.PingFail("c1", h.Addr("c4", "in"))
			for _, network := range []string{"tcp", "udp"} {
				server := h.Outside.Listen(network, h.Outside.IP+":7")
				has(t, h.In("c1").Dial(network, server.Addr), h.IP+":") // masqueraded with the host's address
			}
			// With routes to the containers, the outside still does not reach them.
			h.Outside.Sh("ip route add 10.64.0.0/10 via", h.IP, "&& ip route add 172.16.0.0/12 via", h.IP,
				"&& ip route add 192.168.0.0/16 via", h.IP)
			h.In("c1").Listen("tcp", ":80")
			h.Outside.DialFail("tcp", h.Addr("c1", "a")+":80")
			h.Outside.Sh("ip route del 10.64.0.0/10 && ip route del 172.16.0.0/12 && ip route del 192.168.0.0/16")
			if links := h.Exec("c4", "ls /sys/class/net"); strings.Join(strings.Fields(links), " ") != "eth0 lo" {
				t.Errorf("a container on an internal network has the links %q", links)
			}
			healthy(t, h)
			h.RemoveAll()
			h.SameAs(before)
		})
	}
}

// host6 boots a host that forwards IPv6 already; otherwise netyard would enable it, which stays (beside.Forwarding).
func host6(t *testing.T, e lab.Engine, opts ...lab.Option) *lab.Host {
	t.Helper()
	h := lab.New(t, e, opts...)
	h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
	h.Netyard.Start()
	return h
}

func TestIPv6(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 both")
		h.Docker("network create -d netyard-bridge --ipv6 --subnet 10.78.0.0/24 --subnet fd78::/64 other")
		h.Run("c1", "--network both")
		h.Run("c2", "--network both --ip 10.77.0.77 --ip6 fd77::77")
		h.Run("c3", "--network other")
		if a, a6 := h.Addr("c2", "both"), h.Addr6("c2", "both"); a != "10.77.0.77" || a6 != "fd77::77" {
			t.Errorf("requested 10.77.0.77 and fd77::77, got %s and %s", a, a6)
		}
		h.Ping("c1", "fd77::77")
		h.Ping("c1", h.Outside.IP6)
		h.Ping("c1", h.Outside.IP)
		h.PingFail("c3", "fd77::77")
		server := h.Outside.Listen("tcp", "["+h.Outside.IP6+"]:7")
		has(t, h.In("c1").Dial("tcp", server.Addr), h.IP6)
		healthy(t, h)
	})
}

// TestIPv6Alone: networks without IPv4, and an IPv6 subnet from the host's own block.
func TestIPv6Alone(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host6(t, e)
		h.Docker("network create -d netyard-bridge --ipv4=false --ipv6 --subnet fd79::/64 six")
		h.Docker("network create -d netyard --ipam-driver netyard --ipv6 ula")
		h.Run("c1", "--network six")
		h.Run("c2", "--network six")
		h.Run("c3", "--network ula")
		h.Ping("c1", h.Addr6("c2", "six"))
		h.Ping("c1", h.Outside.IP6)
		if a := h.Addr6("c3", "ula"); !strings.HasPrefix(a, "fd") {
			t.Errorf("IPv6 address %q without a subnet, want one of the host's own block", a)
		}
		h.Ping("c3", h.Outside.IP6)
		healthy(t, h)
	})
}

// noRoute checks that a container has no route to the outside.
func noRoute(t *testing.T, h *lab.Host, container string) {
	t.Helper()
	if out := h.ExecErr(container, "ping -c 1 -W 1 "+h.Outside.IP); !strings.Contains(out, "unreachable") {
		t.Errorf("container %s has a route out: %s", container, out)
	}
}

// TestCompose: what docker compose does: several networks, connect and disconnect of a running container, restart, rm.
func TestCompose(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		before := h.Snapshot()
		h.Docker("network create -d netyard-bridge front")
		h.Docker("network create -d netyard-bridge --internal back")
		h.Docker("network create -d bridge theirs")
		h.Docker("create --name web --network front busybox sleep 1d")
		h.Docker("network connect --alias app back web")
		h.Docker("start web")
		h.Run("db", "--network back")
		h.Ping("db", "app")
		h.Ping("web", "db")
		h.Ping("web", h.Outside.IP) // the default route is that of front
		noRoute(t, h, "db")
		h.Docker("network disconnect back web")
		h.ExecErr("db", "ping -c 1 -W 1 app") // the name is not resolved any more
		h.Docker("network connect back web")
		h.Ping("web", "db")
		h.Run("f1", "--network front")
		h.Run("t1", "--network theirs")
		h.PingFail("f1", h.Addr("t1", "theirs")) // Docker's own networks are isolated from netyard's
		h.PingFail("t1", h.Addr("f1", "front"))
		h.Ping("t1", h.Outside.IP)
		h.Docker("rm -f f1 t1")
		h.Docker("network connect theirs web")
		h.Docker("network disconnect front web")
		h.Ping("web", h.Outside.IP) // now over Docker's own network
		h.Docker("network connect front web")
		h.Docker("network disconnect theirs web")
		h.Ping("web", h.Outside.IP)
		h.Docker("restart -t 0 web db")
		h.Ping("web", "db")
		h.Ping("web", h.Outside.IP)
		h.Docker("stop -t 0 web")
		h.Docker("start web")
		h.Ping("web", "db")
		healthy(t, h)
		h.Docker("rm -f web db")
		h.Docker("network rm front back theirs")
		h.SameAs(before)
	})
}

func TestOptions(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-bridge -o com.docker.network.driver.mtu=1400",
			"-o com.docker.network.bridge.name=web0 -o com.docker.network.container_iface_prefix=net named")
		h.Docker("network create -d netyard-bridge -o com.docker.network.bridge.enable_icc=false",
			"-o com.docker.network.enable_ipv6=false apart")
		if e == lab.Engine2010 { // the newer client cannot pass --mac-address to it
			h.Sh("/usr/bin/docker -H unix:///run/docker.sock run -d --name c1 --network named",
				"--mac-address 02:11:22:33:44:55 busybox sleep 1d")
		} else {
			h.Run("c1", "--network named --mac-address 02:11:22:33:44:55")
		}
		has(t, h.Exec("c1", "cat /sys/class/net/net0/mtu"), "1400")
		has(t, h.Exec("c1", "cat /sys/class/net/net0/address"), "02:11:22:33:44:55")
		has(t, h.Sh("ip -d link show web0"), "mtu 1400")
		h.Ping("c1", h.Outside.IP)
		h.Run("c2", "--network apart")
		h.Run("c3", "--network apart")
		h.PingFail("c2", "c3")
		h.Ping("c2", h.Outside.IP)
		named(t, h, "c2") // the engine has answered, so its version is known
		const connect = "network connect --driver-opt com.docker.network.endpoint.ifname=foo named c2"
		if e == lab.Engine298 {
			h.Docker(connect)
			h.Exec("c2", "cat /sys/class/net/foo/mtu")
		} else {
			_, err := h.TryDocker(connect)
			has(t, fmt.Sprint(err), "others need engine 29.8 or newer")
		}

		// The host's own bridge, with the LAN's gateway on it.
		h.Sh("ip link add lan0 address 02:00:00:00:00:99 type bridge && ip link set lan0 up &&",
			"ip addr add 10.80.0.1/24 dev lan0")
		look := func() string {
			return h.Tool("ip -o -4 addr show dev lan0; ip -o link show dev lan0 | grep -o 'mtu [0-9]*\\|ether " +
				"[0-9a-f:]*'")
		}
		before := look()
		h.Docker("network create -d netyard-bridge -o com.docker.network.bridge.name=lan0",
			"--subnet 10.80.0.0/24 --gateway 10.80.0.1 lan")
		h.Run("c4", "--network lan")
		h.Run("c5", "--network lan")
		h.Ping("c4", "c5")
		h.Ping("c4", "10.80.0.1")
		healthy(t, h)
		h.Docker("rm -f c4 c5")
		h.Docker("network rm lan")
		if after := look(); after != before {
			t.Errorf("the host's bridge was changed:\n%s\n%s", before, after)
		}
		h.Sh("ip link del lan0")
	})
}

func TestNone(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		for i, create := range []string{
			"-d netyard-none --ipam-driver netyard-none", "-d netyard-none --ipam-driver null",
			"-d netyard-none", "-d netyard -o mode=none --ipam-driver null",
		} {
			name := fmt.Sprintf("n%d", i)
			h.Docker("network create", create, name)
			h.Run("c"+name, "--network "+name)
			if links := h.Exec("c"+name, "ls /sys/class/net"); links != "lo" {
				t.Errorf("%s: a container has the links %q", create, links)
			}
			out := h.DockerErr("run --rm -p 8080:80 --network", name, "busybox sleep 1")
			if !strings.Contains(out, "publish 8080:80/tcp") {
				t.Errorf("%s: -p: %s", create, out)
			}
		}
		// Ports are where the container has an address, whichever network it joins first.
		for i, networks := range [][]string{{"n0", "web"}, {"web", "n0"}, {"n0", "another"}, {"another", "n0"}} {
			name, port := fmt.Sprintf("p%d", i), fmt.Sprint(8100+i)
			if i%2 == 0 {
				h.Docker("network create -d netyard-bridge", networks[1])
			}
			h.Docker("create --name", name, "-p", port+":80 --network", networks[0], "busybox sleep 1d")
			h.Docker("network connect", networks[1], name)
			h.Docker("start", name)
			has(t, h.Sh("netyard ports"), "0.0.0.0:"+port)
			h.Docker("rm -f", name)
		}
		h.Docker("network rm web another")
		eventually(t, "ps shows them by name", func() bool {
			out := h.Sh("netyard ps")
			return strings.Contains(out, "cn0") && strings.Contains(out, "cn3") && strings.Count(out, "none") == 4
		})
		healthy(t, h)
	})
}

// TestRefusals: invalid requests are refused in one line that names the cause, and nothing changes.
func TestRefusals(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-bridge --ipam-driver netyard --subnet 10.77.0.0/24 a")
		before := h.Snapshot()
		for cmd, want := range map[string]string{
			"network create -d netyard-bridge -o mode=nosuch x":                               "mode=nosuch",
			"network create -d netyard -o mode=nosuch x":                                      "mode=nosuch: want one of bridge, host, ipvlan, macvlan, none",
			"network create -d netyard-bridge -o parent=eth0 x":                               "parent is not an option of mode bridge, but of ipvlan, macvlan",
			"network create -d netyard-bridge -o com.docker.network.driver.mtu=abc x":         "com.docker.network.driver.mtu=abc",
			"network create -d netyard-bridge -o com.docker.network.bridge.enable_ic=false x": "did you mean com.docker.network.bridge.enable_icc?",
			"network create -d netyard-bridge --ipam-driver netyard --subnet 10.77.0.0/16 x":  "subnet 10.77.0.0/16 overlaps pool 10.77.0.0/24",
			"network create -d netyard-bridge --subnet 203.0.113.0/25 x":                      "overlaps 203.0.113.0/24 on the host's link eth0",
			"network create -d netyard-bridge --ipam-driver netyard --ipam-opt color=blue x":  "--ipam-opt color",
			"network create -d netyard-bridge -o com.docker.network.bridge.name=eth0 x":       "eth0: that link is not a bridge",
			"run --rm --network a -p 192.0.2.7:8080:80 busybox sleep 1":                       "publish 192.0.2.7:8080:80/tcp: 192.0.2.7 is not an address of this host",
			"run --rm --network a --ip 10.77.1.1 busybox sleep 1":                             "10.77.1.1",
		} {
			out := h.DockerErr(cmd)
			has(t, out, want)
			text := strings.TrimSpace(strings.Split(out, "\n\nRun 'docker")[0])
			if strings.Contains(text, "\n") && !strings.HasPrefix(out, "docker:") {
				t.Errorf("%s: the error has several lines: %q", cmd, out)
			}
		}
		if out, err := h.TrySh("netyard serve --state-dir", h.Dir+"/state",
			"--run-dir /run/other --plugin-dir /run/other 2>&1"); err == nil {
			t.Error("a second daemon started on the same state")
		} else {
			has(t, out, "in use by process")
		}
		if out, err := h.TrySh("netyard serve --state-dir /run/other --run-dir /run/other --plugin-dir " +
			"/run/docker/plugins 2>&1"); err == nil {
			t.Error("a second daemon took the first one's sockets")
		} else {
			has(t, out, "another daemon answers there")
		}
		h.Sh("rm -rf /run/other")
		modes := h.Sh("stat -c %a /run/netyard /run/netyard/netyard.sock",
			"/run/docker/plugins/netyard.sock /run/docker/plugins/netyard-bridge.sock")
		if modes != "700\n600\n600\n600" {
			t.Errorf("modes of the sockets: %q", modes)
		}
		h.SameAs(before)
	})
}
