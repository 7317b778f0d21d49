package integration

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netyard/cli/api"
	"netyard/integration/lab"
	"netyard/yard/event"
)

// events returns what netyard events shows.
func events(t *testing.T, h *lab.Host) []event.Event {
	t.Helper()
	return parse[[]event.Event](t, h.Sh("netyard events --json"))
}

// told waits for an event of a type whose text contains words.
func told(t *testing.T, h *lab.Host, kind string, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("there is an event %s of %q", kind, words), func() bool {
		for _, e := range events(t, h) {
			all := e.Type == kind
			for _, w := range words {
				all = all && strings.Contains(e.Text, w)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// reached waits until an address answers, and returns how long that took.
func reached(t *testing.T, from *lab.Net, proto, at string) time.Duration {
	t.Helper()
	start := time.Now()
	eventually(t, proto+" "+at+" answers", func() bool {
		_, err := from.TryDial(proto, at)
		return err == nil
	})
	return time.Since(start)
}

// lost waits until an address does not answer, and returns how long that took.
func lost(t *testing.T, from *lab.Net, proto, at string) time.Duration {
	t.Helper()
	start := time.Now()
	eventually(t, proto+" "+at+" does not answer", func() bool {
		_, err := from.TryDial(proto, at)
		return err != nil
	})
	return time.Since(start)
}

// portStates returns the states of a container's ports as netyard ports shows them, by protocol, address and port.
func portStates(t *testing.T, h *lab.Host, container string) map[string]string {
	t.Helper()
	states := map[string]string{}
	for _, p := range ports(t, h) {
		if p.Container == container {
			at := p.Proto + " " + net.JoinHostPort(p.HostIP, fmt.Sprint(p.HostPort))
			states[at] = strings.TrimSpace(p.State + " " + p.Owner)
		}
	}
	return states
}

// TestHost: a port that a container on a network of mode host listens on is reached at the host's addresses while it
// listens, and no other port is.
func TestHost(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1") // otherwise netyard enables it, with a guard that stays
		h.Netyard.Start()
		h.Docker("network create -d netyard-host plain")
		h.Docker("network create -d netyard-host --ipv6 --subnet 10.71.0.0/24 --subnet fd00:71::/64 h")
		h.Run("one", "--network h")
		h.Run("simple", "--network plain")
		comesAndGoes(t, h)
		private(t, h)
		egress(t, h)
		programs(t, h)
		healthy(t, h)
	})
}

// comesAndGoes tests that a port appears and disappears with the listener, for each protocol and family, and for all
// clients of the host's own sockets.
func comesAndGoes(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Run("peer", "--network h")
	for _, proto := range []string{"tcp", "udp"} {
		s := h.In("one").Listen(proto, ":8080")
		took := reached(t, h.Outside.Net, proto, h.IP+":8080")
		for _, at := range []string{h.IP, h.IP6, "127.0.0.1", "::1"} {
			h.Dial(proto, net.JoinHostPort(at, "8080"))
		}
		h.Outside.Dial(proto, net.JoinHostPort(h.IP6, "8080"))
		for _, from := range []string{"one", "peer", "simple"} {
			h.In(from).Dial(proto, h.IP+":8080")
		}
		if from := s.Seen()[0]; !strings.HasPrefix(from, h.Outside.IP+":") {
			t.Errorf("the container sees a client at %s as %s", h.Outside.IP, from)
		}
		s.Close()
		t.Logf("%s: open after %v, closed after %v", proto, took, lost(t, h.Outside.Net, proto, h.IP+":8080"))
		lost(t, h.Outside.Net, proto, net.JoinHostPort(h.IP6, "8080"))
		lost(t, h.Net, proto, "127.0.0.1:8080")
	}
	told(t, h, event.PortPublished, "0.0.0.0:8080->8080/tcp")
	told(t, h, event.PortWithdrawn, "[::]:8080->8080/udp")
	h.Docker("rm -f peer")
}

// private tests that listeners on a container's loopback, and the engine's name server there, are not shared.
func private(t *testing.T, h *lab.Host) {
	t.Helper()
	h.In("one").Listen("tcp", "127.0.0.1:8081")
	h.In("one").Listen("tcp", "[::1]:8081")
	h.In("one").Listen("tcp", h.Addr("one", "h")+":8082") // its own address is shared
	mine := h.In("one").Listen("udp", ":40000")           // as a client's socket
	reached(t, h.Outside.Net, "tcp", h.IP+":8082")
	for _, at := range []string{h.IP + ":8081", h.IP + ":53", h.IP + ":40000"} {
		reach(t, "outside to "+at, h.Outside.Net, "tcp", at, false)
		reach(t, "outside to "+at, h.Outside.Net, "udp", at, false)
	}
	reach(t, "loopback", h.Net, "tcp", "127.0.0.1:8081", false)
	mine.Close()
	if got := portStates(t, h, "one"); len(got) != 1 || got["tcp 0.0.0.0:8082"] != api.PortPublished {
		t.Errorf("the shared ports are %v", got)
	}
}

// egress tests that the outside sees the host's addresses as sources.
func egress(t *testing.T, h *lab.Host) {
	t.Helper()
	for proto, port := range map[string]string{"tcp": "7001", "udp": "7002"} {
		h.Outside.Listen(proto, ":"+port)
		for at, want := range map[string]string{h.Outside.IP: h.IP + ":", h.Outside.IP6: "[" + h.IP6 + "]:"} {
			if from := h.In("one").Dial(proto, net.JoinHostPort(at, port)); !strings.HasPrefix(from, want) {
				t.Errorf("outside sees %s of a container that shares %s", from, want)
			}
		}
	}
}

// programs tests listeners of a container's own programs, and the end of the container.
func programs(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Docker(`exec -d simple sh -c "while echo hello | nc -l -p 8090; do :; done"`)
	eventually(t, "nc -l is reached", func() bool {
		out, err := h.TrySh("nc -w 1 " + h.IP + " 8090 </dev/null")
		return err == nil && out == "hello"
	})
	h.Run("pub", "--network plain -p 8095:80", "sleep 1d") // as with --network host
	told(t, h, event.PortIgnored, "8095:80/tcp")
	if rows := portStates(t, h, "pub"); len(rows) != 0 {
		t.Errorf("-p was not ignored: %v", rows)
	}
	h.Docker("rm -f simple pub")
	lost(t, h.Net, "tcp", "127.0.0.1:8090")
	told(t, h, event.EndpointLeft, "network plain")
}

// TestHostMany: a hundred ports, include and exclude lists, and several containers.
func TestHostMany(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-host h")
		h.Docker("network create -d netyard-host -o include=8000-8001/tcp,9000,50000/udp some")
		h.Docker("network create -d netyard-host -o exclude=7000-7001,7005/udp but")
		h.Run("many", "--network h")
		h.Run("some", "--network some")
		h.Run("but", "--network but")
		h.Run("beside", "--network h")
		for i := range 100 {
			h.In("many").Listen("tcp", fmt.Sprint(":", 6000+i))
		}
		start := time.Now()
		for i := range 100 {
			reached(t, h.Outside.Net, "tcp", fmt.Sprint(h.IP, ":", 6000+i))
		}
		t.Logf("100 ports answer after %v", time.Since(start))
		for name, list := range map[string][]int{"some": {8000, 8001, 8002, 9000}, "but": {7000, 7001, 7002, 7005}} {
			for _, port := range list {
				h.In(name).Listen("tcp", fmt.Sprint(":", port))
				h.In(name).Listen("udp", fmt.Sprint(":", port))
			}
		}
		h.In("some").Listen("udp", ":50000")
		h.In("beside").Listen("tcp", ":5000")
		reached(t, h.Outside.Net, "tcp", h.IP+":5000")
		reached(t, h.Outside.Net, "udp", h.IP+":50000")
		shares := func(name string, want ...string) {
			t.Helper()
			all := map[string]string{}
			for _, w := range want {
				all[w] = api.PortPublished
			}
			eventually(t, fmt.Sprint(name, " shares just ", want),
				func() bool { return maps.Equal(portStates(t, h, name), all) })
		}
		shares("some", "tcp 0.0.0.0:8000", "tcp 0.0.0.0:8001", "tcp 0.0.0.0:9000", "udp 0.0.0.0:9000",
			"udp 0.0.0.0:50000")
		shares("but", "tcp 0.0.0.0:7002", "udp 0.0.0.0:7002", "tcp 0.0.0.0:7005")
		h.Docker("rm -f many")
		lost(t, h.Outside.Net, "tcp", h.IP+":6000")
		h.Outside.DialFail("tcp", h.IP+":6099")
		healthy(t, h)
	})
}

// TestHostConflict: in a conflict the owner keeps the port and is named; when it releases the port, the other gets it.
func TestHostConflict(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-host h")
		h.Docker("network create -d netyard-bridge web")
		h.Run("front", "--network web -p 8080:80")
		h.In("front").Listen("tcp", ":80")
		h.Run("one", "--network h")
		h.Run("two", "--network h")
		eventually(t, "ps shows the names", func() bool { return strings.Count(h.Sh("netyard ps"), " up") == 3 })
		h.Sh("nc -l -p 9090 >/dev/null 2>&1 & echo $! >/tmp/nc")
		for _, port := range []string{":8080", ":9090", ":9091"} {
			h.In("one").Listen("tcp", port)
		}
		state := func(container, port, want string) {
			t.Helper()
			eventually(t, container+": "+port+" is "+want, func() bool {
				return strings.Contains(portStates(t, h, container)["tcp 0.0.0.0:"+port], want)
			})
		}
		state("one", "8080", "conflict container front of docker on network web")
		state("one", "9090", "conflict process nc (pid ")
		state("one", "9091", "published")
		mine := h.In("two").Listen("tcp", ":9091")
		state("two", "9091", "conflict container one of docker on network h")
		told(t, h, event.PortConflict,
			"port 0.0.0.0:8080->8080/tcp is not container one's: container front of docker on network web has it")
		told(t, h, event.PortConflict, "9090", "process nc")
		has(t, h.Netyard.Log(), `msg="port conflict"`)
		if n := strings.Count(h.Netyard.Log(), `msg="port conflict"`); n != 3 {
			t.Errorf("three conflicts are logged %d times", n)
		}
		out := h.DockerErr("run --rm --network web -p 9091:80 busybox true") // conflicts name this container, too
		has(t, out, "port 9091/tcp of the host is published by container one of docker on network h")

		h.Docker("rm -f front")
		h.Sh("kill $(cat /tmp/nc)")
		for _, port := range []string{"8080", "9090"} {
			t.Logf("the conflict ended after %v", reached(t, h.Outside.Net, "tcp", h.IP+":"+port))
			state("one", port, "published")
		}
		told(t, h, event.PortHealed, "8080", "container front of docker on network web has it no longer")
		told(t, h, event.PortHealed, "9090", "process nc")
		h.Docker("rm -f one")
		eventually(t, "the other gets the port", func() bool {
			h.Outside.TryDial("tcp", h.IP+":9091")
			return len(mine.Seen()) > 0
		})
		state("two", "9091", "published")

		h.In("two").Listen("tcp", ":9093")
		reached(t, h.Outside.Net, "tcp", h.IP+":9093")
		// A program of the host listens later.
		h.Sh("nc -l -p 9093 >/dev/null 2>&1 & echo $! >/tmp/nc")
		told(t, h, event.PortConflict, "9093", "listens on it too and receives nothing")
		state("two", "9093", "shadowing process nc")
		h.Sh("kill $(cat /tmp/nc)")
		state("two", "9093", "published")
		healthy(t, h)
	})
}

// TestHostRestart: shared ports work without the daemon, and after its restart changes are noticed again.
func TestHostRestart(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		h.Docker("network create -d netyard-host h")
		h.Run("one", "--network h")
		in := h.In("one")
		old := in.Listen("tcp", ":8080")
		reached(t, h.Outside.Net, "tcp", h.IP+":8080")
		talk := keepTalking(t, h.Outside.Net, in, h.IP, 8081)
		for range 3 {
			h.Netyard.Kill()
			h.Outside.Dial("tcp", h.IP+":8080")
			late := in.Listen("tcp", ":8082")
			h.Netyard.Start()
			reached(t, h.Outside.Net, "tcp", h.IP+":8082")
			late.Close()
			lost(t, h.Outside.Net, "tcp", h.IP+":8082")
			talk()
		}
		h.Sh("netyard events --follow --json >/tmp/events 2>&1 & echo $! >/tmp/follower")
		in.Listen("tcp", ":8083")
		eventually(t, "the follower prints the event", func() bool {
			return strings.Contains(h.Sh("cat /tmp/events"), `"type":"port.published"`) &&
				strings.Contains(h.Sh("cat /tmp/events"), ":8083->8083/tcp")
		})
		h.Netyard.Restart() // does not wait for followers
		eventually(t, "the follower ends with the daemon", func() bool {
			_, err := h.TrySh("kill -0 $(cat /tmp/follower)")
			return err != nil
		})
		h.Netyard.Kill()
		old.Close()
		h.Netyard.Start()
		eventually(t, "a port that was closed meanwhile is withdrawn", func() bool {
			_, there := portStates(t, h, "one")["tcp 0.0.0.0:8080"]
			return !there
		})
		talk()
		healthy(t, h)
	})
}

// keepTalking connects to an echo server in a container by the host's address; each call of talk sends something and
// checks that it is echoed.
func keepTalking(t *testing.T, from, in *lab.Net, ip string, port int) (talk func()) {
	t.Helper()
	var l net.Listener
	err := in.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprint(":", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	var c net.Conn
	eventually(t, "a connection is made", func() bool {
		return from.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", fmt.Sprint(ip, ":", port), time.Second)
			return err
		}) == nil
	})
	t.Cleanup(func() { c.Close() })
	return func() {
		t.Helper()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatalf("the connection broke: %v", err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatalf("the connection broke: %v", err)
		}
	}
}

// TestHostRefused: invalid options of mode host are refused by name, and nothing changes.
func TestHostRefused(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		before := h.Snapshot()
		for flags, want := range map[string]string{
			"-o strict=true":                "no network driver can put a container into the host's network namespace; use docker run --network host",
			"--internal":                    "--internal contradicts mode host",
			"--ipam-driver null":            "omit --ipam-driver null",
			"-o include=http":               "include=http: want ports from 1 to 65535",
			"-o exclude=0":                  "exclude=0: want ports from 1 to 65535",
			"-o include=80/icmp":            "include=80/icmp: want ports",
			"-o exclud=80":                  "did you mean exclude?",
			"-o device=eth9":                "device=eth9: there is no such link on this host",
			"-o device=eth0":                "device=eth0: it has the host's only default route",
			"-o device=docker0":             "a bridge cannot be moved into a container",
			"-o device=lo":                  "a loopback cannot be moved into a container",
			"-o device=eth1 -o include=80":  "include=80 contradicts device=eth1",
			"-o icc=false":                  "icc is not an option of mode host, but of bridge",
			"-o device=seventeen-letters-x": "want an interface name",
		} {
			has(t, h.DockerErr("network create -d netyard-host", flags, "x"), want)
		}
		h.SameAs(before)
		healthy(t, h)
	})
}

// TestHostDevice: a device of the host is moved into a container, and comes back as it was.
func TestHostDevice(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := host(t, e)
		far := lab.NewLAN(t, netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:51::/64"))
		card := far.Plug(h.Node)
		h.Sh("ip link set", card, "mtu 1400 alias uplink &&", // with attributes that must be restored
			"ip addr add 198.51.100.77/25 dev", card, "label", card+":x &&",
			"ip addr add 10.99.0.1 peer 10.99.0.2/32 dev", card, "&&",
			"ip route add 10.98.0.0/16 via 198.51.100.1 metric 50 &&",
			"ip route add 10.97.0.0/16 dev", card, "src 198.51.100.2 table 100 proto static &&",
			"ip -6 route add 2001:db8:99::/48 via 2001:db8:51::1")
		mac := h.Sh("cat /sys/class/net/" + card + "/address")
		h.Docker("network create -d netyard-host -o device="+card,
			"--subnet 198.51.100.0/24 --gateway 198.51.100.1 nic")
		h.Docker("network create -d netyard-host -o device="+card, "--ipam-driver null bare")
		before := h.Snapshot()
		for i := range 4 { // two ways to end, each twice
			h.Run("c1", "--network nic --ip 198.51.100.2")
			if i == 0 {
				inside(t, h, far.Outside.IP, card, mac)
			}
			h.Docker(map[bool]string{true: "rm -f c1", false: "stop -t 0 c1"}[i%2 == 0])
			h.SameAs(before)
			h.Docker("rm -f c1")
		}
		told(t, h, event.DeviceTaken, "has device "+card)
		told(t, h, event.DeviceReturned, "is returned to the host")
		h.Run("bare", "--network bare --cap-add NET_ADMIN")
		h.Exec("bare", "ip link set eth0 mtu 1300 && ip link set eth0 name wan7 2>/dev/null; ip -o link | grep -q mtu")
		h.Docker("rm -f bare")
		h.SameAs(before)
		deviceCrashes(t, h, before)
		healthy(t, h)
	})
}

// inside tests that the container has the device itself, and that others are refused with an error that names it.
func inside(t *testing.T, h *lab.Host, router, card, mac string) {
	t.Helper()
	h.Ping("c1", router)
	has(t, h.Exec("c1", "cat /sys/class/net/eth0/address"), mac)
	named(t, h, "c1")
	has(t, h.Sh("netyard ps"), card)
	has(t, h.DockerErr("run --rm --network nic busybox true"), "take device "+card+": container c1 has it")
	has(t, h.DockerErr("run --rm --network bare busybox true"),
		"take device "+card+": there is no such link on this host")
	has(t, h.DockerErr("run --rm --network nic -p 80:80 busybox true"), card)
	healthy(t, h)
}

// deviceCrashes tests that the device comes back after kills of netyard and the engine.
func deviceCrashes(t *testing.T, h *lab.Host, before *lab.Snapshot) {
	t.Helper()
	start := func() { h.Run("c1", "--network nic --ip 198.51.100.2") }
	start()
	h.Netyard.Kill() // while the container runs
	h.Netyard.Start()
	healthy(t, h)
	h.Docker("rm -f c1")
	h.SameAs(before)

	start()
	h.Netyard.Kill() // while the container ends
	done := make(chan error, 1)
	misses(t, h, func() { go func() { _, err := h.TryDocker("rm -f c1"); done <- err }() })
	h.Netyard.Start()
	if err := <-done; err != nil {
		t.Errorf("docker rm while netyard was down: %v", err)
	}
	h.SameAs(before)

	start()
	h.Dockerd.Kill() // at its start the engine ends the containers that it finds
	h.Dockerd.Start()
	h.SameAs(before)
	h.Docker("rm -f c1")

	start()
	h.Dockerd.Kill()
	h.Netyard.Kill()
	h.Netyard.Start()
	h.Dockerd.Start()
	h.SameAs(before)
	h.Docker("rm -f c1")
	start()
	h.Docker("rm -f c1")
	h.SameAs(before)
}
