package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netyard/cli/api"
	"netyard/integration/lab"
)

// ports returns what netyard ports shows.
func ports(t *testing.T, h *lab.Host) []api.Port {
	t.Helper()
	return parse[[]api.Port](t, h.Sh("netyard ports --json"))
}

// TestPorts: port ranges, ports that netyard chooses, conflicts, and ports that follow the default route.
func TestPorts(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-bridge --subnet 10.70.0.0/24 mid")
		ranges(t, h)
		anyPort(t, h)
		taken(t, h)
		following(t, h)
		healthy(t, h)
	})
}

// ranges tests that a range is one element, that a shifted range maps port by port, and that no process forwards ports.
func ranges(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Run("big", "--network mid -p 10000-19999:10000-19999 -p 10000-19999:10000-19999/udp -p 7000-7004:8000-8004")
	if rows := ports(t, h); len(rows) != 3 {
		t.Errorf("ports shows %d rows for three ranges: %v", len(rows), rows)
	}
	elements := h.Tool("nft list map inet netyard to_range4")
	if strings.Count(elements, "10000-19999") != 2 {
		t.Errorf("two ranges are not one element each:\n%s", elements)
	}
	if out, _ := h.TrySh("pgrep -x docker-proxy"); out != "" {
		t.Errorf("docker-proxy processes run: %s", out)
	}
	for _, port := range []int{10000, 15432, 19999} {
		h.In("big").Listen("tcp", fmt.Sprint(":", port))
		h.In("big").Listen("udp", fmt.Sprint(":", port))
		for _, proto := range []string{"tcp", "udp"} {
			from := h.Outside.Dial(proto, fmt.Sprint(h.IP, ":", port))
			if !strings.HasPrefix(from, h.Outside.IP+":") {
				t.Errorf("the container sees %s of a client at %s", from, h.Outside.IP)
			}
			h.Dial(proto, fmt.Sprint("127.0.0.1:", port))
		}
	}
	for i := range 5 {
		s := h.In("big").Listen("tcp", fmt.Sprint(":", 8000+i))
		h.Outside.Dial("tcp", fmt.Sprint(h.IP, ":", 7000+i))
		if len(s.Seen()) != 1 {
			t.Errorf("a connection to port %d arrived %d times at port %d", 7000+i, len(s.Seen()), 8000+i)
		}
	}
	h.Outside.DialFail("tcp", h.IP+":7005")
	h.Outside.DialFail("tcp", h.IP+":20000")
	h.Docker("rm -f big")
	if rows := ports(t, h); len(rows) != 0 {
		t.Errorf("ports are left: %v", rows)
	}
	h.Outside.DialFail("tcp", h.IP+":10000")
}

// anyPort tests that ports chosen by netyard are shown, and differ for each container.
func anyPort(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Run("any", "--network mid -p 80 --expose 81 -P")
	h.Run("some", "--network mid -p 9000-9001:80")
	h.Run("other", "--network mid -p 9000-9001:80")
	seen := map[int]bool{}
	for _, p := range ports(t, h) {
		for port := p.HostPort; port <= p.HostPortEnd; port++ {
			if seen[port] {
				t.Errorf("port %d was published twice: %v", port, ports(t, h))
			}
			seen[port] = true
		}
	}
	if len(seen) != 4 || !seen[9000] || !seen[9001] {
		t.Errorf("the chosen ports are %v", ports(t, h))
	}
	for _, name := range []string{"any", "some", "other"} {
		h.In(name).Listen("tcp", ":80")
	}
	h.In("any").Listen("tcp", ":81")
	for port := range seen {
		h.Outside.Dial("tcp", fmt.Sprint(h.IP, ":", port))
	}
	out := h.DockerErr("run -d --name third --network mid -p 9000-9001:80 busybox sleep 1d")
	has(t, out, "publish 0.0.0.0:9000-9001:80/tcp: no port from 9000 to 9001 of the host is free")
	h.Docker("rm -f any some other third")
}

// taken tests that a conflict names the owner of the port, whatever it is, and that nothing is left of the attempt.
func taken(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Run("owner", "--network mid -p 8080:80")
	eventually(t, "ps shows the owner", func() bool { return strings.Contains(h.Sh("netyard ps"), "owner") })
	h.Sh("nc -l -p 8081 127.0.0.1 >/dev/null 2>&1 &")
	h.Docker("run -d --name docks -p 8082:80 busybox sleep 1d")
	eventually(t, "the engine's own links have their link-local addresses", func() bool {
		_, err := h.TrySh("for l in /sys/class/net/veth*; do ip -6 -o addr show dev ${l##*/} scope link | grep -v " +
			"tentative | grep -q fe80 || exit; done")
		return err == nil
	})
	before := h.Snapshot()
	for flag, want := range map[string]string{
		"-p 8080:80":                     "port 8080/tcp of the host is published by container owner of docker on network mid",
		"-p 127.0.0.1:8080:80":           "published by container owner",
		"-p 8000-8100:8000-8100":         "publish 0.0.0.0:8000:8000/tcp: in use: port 8080/tcp of the host is published by container owner",
		"-p 8081:80":                     "port 8081/tcp of the host is in use by process nc (pid ",
		"-p 8082:80":                     "port 8082/tcp of the host is in use by process docker-proxy",
		"-p 8083:80 -p 203.0.113.99:1:1": "203.0.113.99 is not an address of this host",
		"-p [::1]:8084:80":               "the container has no IPv6 address",
	} {
		out := h.DockerErr("run --rm --network mid", flag, "busybox sleep 1")
		has(t, out, want)
	}
	h.Docker("run --rm --network mid -p 8080:80/udp busybox true") // another protocol does not conflict
	h.Docker("run --rm --network mid -p", h.IP+":8081:80", "busybox true")
	h.SameAs(before)
	h.Sh("kill $(pidof nc)")
	h.Docker("rm -f owner docks")
	h.Docker("run --rm --network mid -p 8080:80 -p 8082:80 busybox true")
}

// following tests that published ports lead to the network with the default route.
func following(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Docker("network create -d netyard-bridge --subnet 10.69.0.0/24 aaa")
	h.Run("roamer", "--network mid -p 8090:80")
	h.In("roamer").Listen("tcp", ":80")
	at := func() string {
		rows := ports(t, h)
		if len(rows) != 1 {
			return fmt.Sprint(rows)
		}
		return rows[0].Address
	}
	in := func(subnet string) bool {
		a, err := netip.ParseAddr(at())
		return err == nil && netip.MustParsePrefix(subnet).Contains(a)
	}
	h.Docker("network connect aaa roamer")
	h.Outside.Dial("tcp", h.IP+":8090")
	if !in("10.69.0.0/24") {
		t.Errorf("after connect: the port is at %s", at())
	}
	h.Docker("network disconnect aaa roamer")
	h.Outside.Dial("tcp", h.IP+":8090")
	if !in("10.70.0.0/24") {
		t.Errorf("after disconnect: the port is at %s", at())
	}
	h.Docker("restart -t 0 roamer")
	h.In("roamer").Listen("tcp", ":80")
	h.Outside.Dial("tcp", h.IP+":8090")
	h.Docker("rm -f roamer")
	h.Docker("network rm aaa")
}

// TestPublishedSafely: ports published on loopback are reached only from the host, forwarded packets for other machines
// are not redirected, and unpublished ports are closed.
func TestPublishedSafely(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv4.ip_forward=1")
		h.Netyard.Start()
		h.Docker("network create -d netyard-bridge --subnet 10.70.0.0/24 a")
		h.Run("web", "--network a -p 127.0.0.1:8000:80 -p 8001:80 -p 127.0.0.1:8000:80/udp")
		seen := h.In("web").Listen("tcp", ":80")
		h.In("web").Listen("udp", ":80")
		h.Dial("tcp", "127.0.0.1:8000")
		h.Dial("udp", "127.0.0.1:8000")
		before := len(seen.Seen())

		// The outside routes loopback addresses to the host.
		h.Outside.Sh(`sysctl -qw net.ipv4.conf.all.route_localnet=1
			ip route del local 127.0.0.1 table local; ip route del local 127.0.0.0/8 table local
			ip route add 127.0.0.1 via`, h.IP, `dev lan src`, h.Outside.IP, `
			ip route add 247.0.0.0/8 via`, h.IP, `
			ip route add 10.70.0.0/24 via`, h.IP)
		attack := func(when string) {
			for _, proto := range []string{"tcp", "udp"} {
				for _, at := range []string{
					"127.0.0.1:8000", "247.0.0.1:8000", h.IP + ":8000", h.Addr("web", "a") + ":80",
				} {
					reach(t, when+": outside to "+proto+" "+at, h.Outside.Net, proto, at, false)
				}
			}
		}
		attack("at first")
		h.Netyard.Stop()
		attack("without the daemon")
		h.Netyard.Start()
		attack("after a restart")
		if got := len(seen.Seen()); got != before {
			t.Errorf("%d forbidden connections reached the container: %v", got-before, seen.Seen()[before:])
		}
		if got := h.Sh("cat /proc/sys/net/ipv4/conf/*/route_localnet | sort -u"); got != "0" {
			t.Errorf("route_localnet is %s", got)
		}
		passing(t, h)
		healthy(t, h)
	})
}

// passing tests that packets for another machine are forwarded to it, although the host publishes their port.
func passing(t *testing.T, h *lab.Host) {
	t.Helper()
	behind := lab.NewLAN(t, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:51::/64"))
	iface := behind.Plug(h.Node)
	docker := func(verb string) { // with nftables an engine drops only containers' traffic
		if !h.Engine.Nftables() {
			h.Sh("iptables", verb, "DOCKER-USER -o", iface, "-j ACCEPT; iptables", verb, "DOCKER-USER -i", iface,
				"-j ACCEPT")
		}
	}
	docker("-I")
	h.Outside.Sh("ip route add 198.51.100.0/24 via", h.IP)
	behind.Outside.Sh("ip route add default via 198.51.100.2")
	behind.Outside.Listen("tcp", behind.Outside.IP+":8001")
	from := h.Outside.Dial("tcp", behind.Outside.IP+":8001")
	if !strings.HasPrefix(from, h.Outside.IP+":") {
		t.Errorf("the machine behind the host sees %s", from)
	}
	docker("-D")
	h.Sh("ip link del", iface)
}

// TestUDPFlows: a client that keeps sending from one port reaches its container again after a restart, and nobody while
// it is stopped.
func TestUDPFlows(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-bridge a")
		h.Run("echo", "--network a -p 5000:53/udp")
		h.In("echo").Listen("udp", ":53")
		talk := func() bool {
			_, err := h.Outside.TryDialFrom(4444, "udp", h.IP+":5000")
			return err == nil
		}
		eventually(t, "the container answers", talk)
		for range 5 {
			h.Docker("stop -t 0 echo")
			if talk() { // which creates a connection tracking entry without the container
				t.Error("a stopped container's port is answered")
			}
			h.Docker("start echo")
			h.In("echo").Listen("udp", ":53")
			eventually(t, "the container answers the same client again", talk)
		}
		healthy(t, h)
	})
}
