package integration

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// TestLANPorts: a port published by a container on the LAN or on an internal network is at its own address, and with
// host_publish also at the host's; for every client, with and without the daemon, and nothing of it is left.
func TestLANPorts(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		lan := lab.NewLAN(t)
		other := lan.Node("other")
		h := lab.New(t, e, lab.On(lan))
		// otherwise netyard enables it, with a guard that stays
		h.Sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
		h.Netyard.Start()
		before := h.Snapshot()
		h.Docker("network create -d netyard-macvlan -o parent=eth0 -o host_access=true -o host_publish=true", onLAN,
			"lan")
		h.Docker("network create -d netyard-macvlan -o parent=eth0 --subnet 10.77.0.0/24 --gateway 10.77.0.1 plain")
		h.Docker("network create -d netyard-bridge --internal --subnet 10.78.0.0/24 inside")
		h.Docker("network create -d netyard-bridge --subnet 10.79.0.0/24 out")
		h.Run("web", "--network lan --ip 203.0.113.200 --ip6 2001:db8:113::200 -p 443:8080 -p 443:8080/udp -p "+
			"7000-7002:8000-8002 -p 5000:5000")
		h.Run("peer", "--network lan --ip 203.0.113.201 --ip6 2001:db8:113::201")
		h.Run("in1", "--network inside --ip 10.78.0.11 -p 8443:8080")
		h.Run("in2", "--network inside --ip 10.78.0.12")
		h.Run("br", "--network out")
		listen := func() {
			h.In("web").Listen("tcp", ":8080")
			h.In("web").Listen("udp", ":8080")
			h.In("web").Listen("tcp", ":8001")
		}
		listen()
		h.In("in1").Listen("tcp", ":8080")
		m := lanPorts{t: t, h: h, other: other}
		m.all()
		h.Netyard.Kill()
		m.all()
		h.Netyard.Start()
		m.all()
		healthy(t, h)
		wants(t, h, "web", "tcp 0.0.0.0:443", "udp [::]:443", "tcp 0.0.0.0:7000", "tcp 203.0.113.200:443",
			"udp [2001:db8:113::200]:443", "tcp 203.0.113.200:7000", "tcp 203.0.113.200:5000")
		wants(t, h, "in1", "tcp 10.78.0.11:8443")
		eventually(t, "ps shows all names", func() bool { return strings.Contains(h.Sh("netyard ps"), "in2") })
		has(t, h.Sh("netyard ps"), "203.0.113.200:443->8080/tcp")
		has(t, h.Sh("netyard trace", other.IP, "443"), "\nreachable")
		has(t, h.Sh("netyard trace in2 in1:8443"), "redirects it to port 8080")

		h.Docker("restart -t 0 web")
		listen()
		m.all()
		wants(t, h, "web", "tcp 203.0.113.200:443", "tcp 0.0.0.0:443")
		h.In("web").Tool("nft flush ruleset") // as a privileged process in the container
		h.Sh("ip link add poke type veth peer name poked && ip link del poke")
		reached(t, other.Net, "tcp", "203.0.113.200:443")
		m.refusals()
		h.Docker("network connect out in1") // the default route moves there, and so do the ports
		reached(t, other.Net, "tcp", h.IP+":8443")
		lost(t, h.In("in2"), "tcp", "10.78.0.11:8443")
		wants(t, h, "in1", "tcp 0.0.0.0:8443")
		healthy(t, h)
		h.Docker("rm -f web peer in1 in2 br")
		h.Docker("network rm lan plain inside out")
		h.SameAs(before)
	})
}

// wants waits until netyard ports shows these published ports of a container.
func wants(t *testing.T, h *lab.Host, container string, at ...string) {
	t.Helper()
	// its name is looked up in the background
	eventually(t, fmt.Sprintf("%s has the ports %v", container, at), func() bool {
		states := portStates(t, h, container)
		return !slices.ContainsFunc(at, func(one string) bool { return states[one] != "published" })
	})
}

// lanPorts tests who reaches the published ports, and which client address the container sees.
type lanPorts struct {
	t     *testing.T
	h     *lab.Host
	other *lab.Node
}

// all tests all clients and ports.
func (m lanPorts) all() {
	m.t.Helper()
	h, other, peer := m.h, m.other, m.h.In("peer")
	own, host := []string{"203.0.113.200", "2001:db8:113::200"}, []string{h.IP, h.IP6}
	loop, others := []string{"127.0.0.1", "::1"}, []string{other.IP, other.IP6}
	peers := []string{"203.0.113.201", "2001:db8:113::201"}
	sees := func(from *lab.Net, proto, addr, port, whom string) {
		m.t.Helper()
		has(m.t, from.Dial(proto, net.JoinHostPort(addr, port)), net.JoinHostPort(whom, ""))
	}
	for v := range own {
		for _, proto := range []string{"tcp", "udp"} {
			for _, port := range []string{"443", "8080"} {
				sees(other.Net, proto, own[v], port, others[v])
				sees(peer, proto, own[v], port, peers[v])
				sees(h.Net, proto, own[v], port, host[v])
			}
			for _, from := range []*lab.Net{other.Net, peer, h.Net} {
				sees(from, proto, host[v], "443", host[v])
			}
			sees(h.Net, proto, loop[v], "443", host[v])
		}
		sees(other.Net, "tcp", own[v], "7001", others[v])
		sees(other.Net, "tcp", host[v], "7001", host[v])
	}
	sees(h.In("br"), "tcp", h.IP, "443", h.IP)
	sees(h.In("in2"), "tcp", "10.78.0.11", "8443", "10.78.0.12")
	other.DialFail("tcp", h.IP+":8443")
}

// refusals tests that invalid requests are refused by name and change nothing. Each container has another address, and
// so another MAC, since the kernel releases the MAC of an ended container with a delay.
func (m lanPorts) refusals() {
	m.t.Helper()
	for cmd, want := range map[string]string{
		"run --rm --network plain --ip 10.77.0.41 -p 10.0.0.1:443:8080 busybox true":                                                                   "publish 10.0.0.1:443:8080/tcp: 10.0.0.1 is not an address of the container; network plain publishes ports on the container's address 10.77.0.41",
		"run --rm --network lan --ip 203.0.113.211 -p 10.0.0.1:443:8080 busybox true":                                                                  "10.0.0.1 is not an address of this host",
		"run --rm --network plain --ip 10.77.0.42 -p 443:8080 -p 443:9090 busybox true":                                                                "port 443/tcp of the container is asked for twice",
		"run --rm --network out -p 443:8080 busybox true":                                                                                              "port 443/tcp of the host is published by container web of docker on network lan",
		"run --rm --network lan --ip 203.0.113.212 -p 443:8080 busybox true":                                                                           "port 443/tcp of the host is published by container web of docker on network lan",
		"network create -d netyard-macvlan -o parent=eth0 -o host_publish=true --subnet 10.80.0.0/24 x":                                                "host_publish=true: the host does not reach the containers; add host_access=true",
		"network create -d netyard-macvlan -o parent=eth0 -o publish_from=10.0.0.0/8 --subnet 10.80.0.0/24 x":                                          "publish_from=10.0.0.0/8: it applies to ports of the host; add host_publish=true",
		"network create -d netyard-ipvlan -o parent=eth0 -o publish_from=10.0.0.0/8 --subnet 10.80.0.0/24 x":                                           "publish_from is not an option of mode ipvlan",
		"network create -d netyard-macvlan -o parent=eth0 -o host_access=true -o host_publish=true -o publish_from=10.0.0.0/8 --subnet 10.80.0.0/24 x": "its publish_from= is shared by all networks on one parent",
	} {
		out := m.h.DockerErr(cmd)
		has(m.t, out, want)
		if strings.HasPrefix(cmd, "network") && strings.Contains(strings.TrimSpace(out), "\n") {
			m.t.Errorf("%s: the error has several lines: %q", cmd, out)
		}
	}
	// a port of the container's own address conflicts with no other
	m.h.Docker("run --rm --network plain --ip 10.77.0.50 -p 8443:8080 -P --expose 9 busybox true")
}
