package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"netyard/integration/lab"
)

// onLAN are the flags of a network on the lab's LAN, with ranges that the lab does not use.
const onLAN = "--subnet 203.0.113.0/24 --gateway 203.0.113.1 --ip-range 203.0.113.128/25 " +
	"--ipv6 --subnet 2001:db8:113::/64 --gateway 2001:db8:113::1 --ip-range 2001:db8:113::8000/113"

// TestMacvlan: containers on macvlan networks are reached on the LAN, and nothing of them is left.
func TestMacvlan(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		lan := lab.NewLAN(t)
		other := lan.Node("other")
		h := host(t, e, lab.On(lan))
		before := h.Snapshot()
		h.Docker("network create -d netyard-macvlan -o parent=eth0", onLAN, "lan")
		h.Docker("network create -d netyard -o mode=macvlan -o macvlan_mode=private -o parent=eth0 --subnet " +
			"10.77.0.0/24 alone")
		h.Docker("network create -d netyard-macvlan --subnet 10.78.0.0/24 nowhere")
		h.Run("c1", "--network lan --ip 203.0.113.200 --ip6 2001:db8:113::200")
		h.Run("c2", "--network lan")
		h.Run("a1", "--network alone")
		h.Run("a2", "--network alone")
		h.Run("n1", "--network nowhere")
		h.Run("n2", "--network nowhere")
		for _, to := range []string{other.IP, other.IP6, h.Outside.IP, "c2", h.Addr6("c2", "lan")} {
			h.Ping("c1", to)
		}
		server := h.In("c1").Listen("tcp", ":80")
		for _, from := range []*lab.Node{other, h.Outside} {
			has(t, from.Dial("tcp", "203.0.113.200:80"), from.IP+":") // no NAT
			has(t, from.Dial("tcp", "[2001:db8:113::200]:80"), "["+from.IP6+"]:")
		}
		server.Close()
		h.PingFail("c1", h.IP)
		h.PingFail("a1", h.Addr("a2", "alone"))
		h.Ping("n1", "n2")
		noRoute(t, h, "n1")
		// derived from the address, so that it is the same after a restart
		has(t, h.Exec("c1", "ip link show eth0"), "02:42:cb:00:71:c8")
		healthy(t, h)
		named(t, h, "c1", "n2")
		if out := h.Sh("netyard ps"); strings.Count(out, "macvlan") != 6 {
			t.Errorf("ps does not show all six:\n%s", out)
		}

		h.Netyard.Restart()
		h.Ping("c1", "c2")
		healthy(t, h)
		h.Netyard.Kill()
		h.Netyard.Start()
		h.Ping("c1", other.IP)
		h.Docker("restart -t 0 c1")
		h.Ping("c1", other.IP)
		h.Docker("network disconnect lan c2")
		h.Docker("network connect lan c2")
		h.Ping("c1", "c2")
		healthy(t, h)
		h.Docker("rm -f c1 c2 a1 a2 n1 n2")
		h.Docker("network rm lan alone nowhere")
		h.SameAs(before)

		h.Docker("network create -d netyard-macvlan -o macvlan_mode=passthru -o parent=eth0 --subnet 203.0.113.0/24 " +
			"--gateway 203.0.113.1 pass")
		h.Run("p1", "--network pass --ip 203.0.113.210")
		h.Ping("p1", other.IP)
		has(t, h.DockerErr("run --rm --network pass busybox true"),
			"passthru is for one container at a time, and eth0 has one")
		has(t, h.DockerErr("network create -d netyard-macvlan -o parent=eth0 --subnet 10.77.0.0/24 x"),
			"network pass is on parent eth0, and macvlan_mode=passthru requires exclusive use of the parent")
		healthy(t, h)
	})
}

// TestHostAccess: with host_access, containers of a macvlan network and the host reach each other, after a kill of the
// daemon, after the link was down, and with many containers.
func TestHostAccess(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		lab.Alone(t)
		lan := lab.NewLAN(t)
		other := lan.Node("other")
		h := host(t, e, lab.On(lan))
		before := h.Snapshot()
		h.Docker("network create -d netyard-macvlan -o parent=eth0 -o host_access=true", onLAN, "lan")
		h.Docker("network create -d netyard-macvlan -o parent=eth0 -o host_access=true --subnet 10.77.0.0/24 elsewhere")
		h.Run("c1", "--network lan --ip 203.0.113.200 --ip6 2001:db8:113::200")
		h.Run("e1", "--network elsewhere")
		h.Ping("e1", h.IP) // by a host route
		h.In("c1").Listen("tcp", ":80")
		h.Listen("tcp", ":7")
		both := func() {
			t.Helper()
			has(t, h.Dial("tcp", "203.0.113.200:80"), h.IP+":")
			has(t, h.Dial("tcp", "[2001:db8:113::200]:80"), "["+h.IP6+"]:")
			has(t, h.In("c1").Dial("tcp", h.IP+":7"), "203.0.113.200:")
			has(t, h.In("c1").Dial("tcp", "["+h.IP6+"]:7"), "[2001:db8:113::200]:")
			has(t, other.Dial("tcp", h.IP+":7"), other.IP+":")
			has(t, other.Dial("tcp", "203.0.113.200:80"), other.IP+":")
		}
		both()
		healthy(t, h)
		h.Netyard.Kill()
		both()
		h.Netyard.Start()
		both()
		h.Sh("ip link set eth0 down && ip link set eth0 up && ip -6 addr add", h.IP6+"/64 dev eth0;",
			"ip route replace default via", h.Outside.IP, "; ip -6 route replace default via", h.Outside.IP6)
		eventually(t, "duplicate address detection has ended", func() bool {
			return !strings.Contains(h.Sh("ip -6 addr show dev eth0"), "tentative")
		})
		both()
		healthy(t, h)
		// Several at a time, but not more than the engine can end: 20.10 gives up on a container after ten seconds.
		const many, atOnce = 50, 5
		var names []string
		for i := range many {
			names = append(names, fmt.Sprintf("m%d", i))
		}
		for some := range slices.Chunk(names, atOnce) {
			var wg sync.WaitGroup
			for _, name := range some {
				wg.Go(func() {
					if _, err := h.TryDocker("run -d --name", name, "--network lan busybox sleep 1d"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		addrs := strings.Fields(h.Docker("inspect -f '{{.NetworkSettings.Networks.lan.IPAddress}}'",
			strings.Join(names, " ")))
		if len(addrs) != many {
			t.Fatalf("%d containers have the addresses %v", many, addrs)
		}
		h.Sh("for a in", strings.Join(addrs, " "), "; do ping -c 1 -W 5 -q $a >/dev/null || exit; done")
		h.Ping("m7", h.IP)
		healthy(t, h)
		for some := range slices.Chunk(names, atOnce) {
			h.Docker("rm -f", strings.Join(some, " "))
		}
		h.Docker("rm -f c1 e1")
		h.Docker("network rm lan elsewhere")
		h.SameAs(before)
	})
}

// TestLANRefusals: invalid networks are refused in one line that names the cause, and nothing changes.
func TestLANRefusals(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Sh("ip link add br-lan type bridge && ip link add p0 type veth peer name p1 && ip link set p0 master br-lan")
		h.Docker("network create -d netyard-macvlan -o parent=eth0", onLAN, "lan")
		before := h.Snapshot()
		for cmd, want := range map[string]string{
			"network create -d netyard-macvlan -o parent=eth7 --subnet 10.77.0.0/24 x":                                           "parent=eth7: the host has no link eth7; it has",
			"network create -d netyard-macvlan -o parent=p0 --subnet 10.77.0.0/24 x":                                             "p0 is a port of br-lan",
			"network create -d netyard-macvlan -o parent=eth0 -o mtu=9000 --subnet 10.77.0.0/24 x":                               "mtu=9000: parent eth0 has 1500",
			"network create -d netyard-macvlan -o parent=eth0 x":                                                                 "give it with --subnet",
			"network create -d netyard-macvlan --ipam-driver netyard -o parent=eth0 x":                                           "give it with --subnet",
			"network create -d netyard-macvlan -o macvlan_mode=vpea -o parent=eth0 --subnet 10.77.0.0/24 x":                      "macvlan_mode=vpea: want one of bridge, passthru, private, vepa",
			"network create -d netyard-macvlan -o ipvlan_mode=l3 -o parent=eth0 --subnet 10.77.0.0/24 x":                         "ipvlan_mode is not an option of mode macvlan, but of ipvlan",
			"network create -d netyard-macvlan -o macvlan_mode=private -o host_access=true -o parent=p1 --subnet 10.77.0.0/24 x": "host_access=true",
			"network create -d netyard-macvlan -o macvlan_mode=passthru -o parent=eth0 --subnet 10.77.0.0/24 x":                  "network lan is on parent eth0",
		} {
			out := h.DockerErr(cmd)
			has(t, out, want)
			if strings.Contains(strings.TrimSpace(out), "\n") {
				t.Errorf("%s: the error has several lines: %q", cmd, out)
			}
		}
		h.SameAs(before)
		h.Docker("network rm lan")
		h.Sh("ip link del p0; ip link del br-lan")
	})
}
