package integration

import (
	"fmt"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// published starts a container that publishes port 80 in each way, and says on what addresses, from port 8000 of the
// host on.
func published(h *lab.Host) (binds []string) {
	matrixNetworks(h)
	binds = []string{"", h.IP, "[" + h.IP6 + "]", "127.0.0.1", "[::1]"}
	flags := "--network a"
	for i, bind := range binds {
		for _, proto := range []string{"tcp", "udp"} {
			at := fmt.Sprintf("%d:80/%s", 8000+i, proto)
			if bind != "" {
				at = bind + ":" + at
			}
			flags += " -p " + at
		}
	}
	h.Run("web", flags)
	h.In("web").Listen("tcp", ":80")
	h.In("web").Listen("udp", ":80")
	return binds
}

// firewalldWith says whether firewalld can run beside the engine here. That of Debian 12, with libnftables 1.0.6, ends
// with a segmentation fault when it reads tables that a newer nft made, as engine 29 does with that of its root; a
// machine has one nft, and there it does not happen.
func firewalldWith(t *testing.T, e lab.Engine) bool {
	t.Helper()
	if e.Nftables() {
		t.Log("libnftables 1.0.6 cannot read the tables of nft 1.1: what is tested here is tested with iptables")
	}
	return !e.Nftables()
}

// keepRules brings the tables that iptables shows back to what they were, when the test ends: a firewall leaves its
// chains behind.
func keepRules(h *lab.Host) (restore func()) {
	h.Sh("iptables-save | grep -v nyb- >/tmp/v4; ip6tables-save | grep -v nyb- >/tmp/v6; true")
	return func() {
		h.Sh("for t in iptables ip6tables; do for p in INPUT FORWARD OUTPUT; do $t -P $p ACCEPT; done; $t -F; $t -X; done; iptables-restore </tmp/v4; ip6tables-restore </tmp/v6")
	}
}

// works wants what a host without any other firewall has: containers get out, reach each other, and are reached on
// their ports; and what is kept apart stays so.
func works(t *testing.T, h *lab.Host, binds []string, when string) {
	t.Helper()
	t.Log(when)
	for _, to := range []string{h.Outside.IP, h.Outside.IP6} {
		reach(t, when+": a container gets out", h.In("web"), "tcp", "["+to+"]:7000", true)
	}
	reach(t, when+": a container reaches its neighbour", h.In("peer"), "tcp", "["+h.Addr("web", "a")+"]:80", true)
	reach(t, when+": a container reaches its neighbour by IPv6", h.In("peer"), "tcp", "["+h.Addr6("web", "a")+"]:80", true)
	reach(t, when+": networks are apart", h.In("stranger"), "tcp", h.Addr("web", "a")+":80", false)
	reach(t, when+": an unpublished port is closed to the LAN", h.Outside.Net, "tcp", h.Addr("web", "a")+":80", false)
	matrix(t, h, binds)
}

// TestBesideUfw: with the real ufw enabled, published ports are open and containers get out, whoever starts first. ufw
// knows no engine, and netyard's rules are the same beside each, so one is enough; it is the newest.
func TestBesideUfw(t *testing.T) {
	t.Parallel()
	h := lab.New(t, lab.Engine285)
	h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
	h.Netyard.Start()
	restore := keepRules(h)
	fw := h.Firewall()
	h.Outside.Listen("tcp", ":7000")
	h.Outside.Sh("ip route add 10.70.0.0/16 via " + h.IP)
	binds := published(h)
	fw.Sh("ufw --force enable")
	healthy(t, h)
	works(t, h, binds, "ufw came last")
	h.Netyard.Restart()
	fw.Sh("ufw reload; ufw allow 22/tcp; ufw route deny proto tcp from any to any port 4444")
	healthy(t, h)
	works(t, h, binds, "netyard came last, and ufw was reloaded")
	h.Listen("tcp", ":9999")
	h.Outside.DialFail("tcp", h.IP+":9999") // the host's own ports are ufw's
	fw.Sh("ufw --force disable")
	restore()
}

// TestBesideFirewalld: likewise with the real firewalld, and across its reloads.
func TestBesideFirewalld(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		if !firewalldWith(t, e) {
			return
		}
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
		h.Netyard.Env = append(h.Netyard.Env, lab.Bus)
		fw := h.Firewall()
		firewalld := fw.Firewalld()
		h.Dockerd.Env = append(h.Dockerd.Env, lab.Bus) // it puts its own rules back after a reload
		h.Dockerd.Restart()
		h.Netyard.Start()
		h.Outside.Listen("tcp", ":7000")
		h.Outside.Sh("ip route add 10.70.0.0/16 via " + h.IP)
		restore := keepRules(h)
		binds := published(h)
		firewalld.Start()
		inZone := func() {
			t.Helper()
			eventually(t, "the bridges are in their zone", func() bool {
				return strings.Count(fw.Sh(lab.Bus+" firewall-cmd --zone=trusted --list-interfaces"), "nyb-") == 2
			})
		}
		inZone()
		healthy(t, h)
		works(t, h, binds, "firewalld came last")
		fw.Sh(lab.Bus + " firewall-cmd --reload")
		inZone()
		works(t, h, binds, "firewalld was reloaded")
		if out, _ := fw.TrySh("grep -r nyb- /etc/firewalld"); out != "" {
			t.Errorf("the admin's configuration was changed: %s", out)
		}
		h.Netyard.Restart()
		h.Docker("network create -d netyard-bridge c")
		eventually(t, "a new network's bridge is in the zone", func() bool {
			return strings.Count(fw.Sh(lab.Bus+" firewall-cmd --zone=trusted --list-interfaces"), "nyb-") == 3
		})
		h.Docker("network rm c")
		inZone()
		firewalld.Stop()
		restore()
	})
}

// TestHostFirewallDecides: with publish=host, a published port is open to whom the host's own firewall opens it, and to
// nobody else.
func TestHostFirewallDecides(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		if !firewalldWith(t, e) {
			return
		}
		h := lab.New(t, e)
		h.Sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
		h.Netyard.Env = append(h.Netyard.Env, lab.Bus)
		fw := h.Firewall()
		firewalld := fw.Firewalld()
		h.Netyard.Start("--publish", "host")
		restore := keepRules(h)
		matrixNetworks(h)
		h.Run("web", "--network a -p 8000:80 -p 8000:80/udp -p 9000-9009:9000-9009")
		h.In("web").Listen("tcp", ":80")
		h.In("web").Listen("udp", ":80")
		h.In("web").Listen("tcp", ":9005")
		at := map[bool]string{false: h.IP, true: h.IP6}
		closed := func(when string, proto string, port int) {
			t.Helper()
			for v6, ip := range at {
				reach(t, fmt.Sprint(when, " v6=", v6), h.Outside.Net, proto, fmt.Sprintf("[%s]:%d", ip, port), false)
			}
		}
		open := func(proto string, port int) {
			t.Helper()
			for _, ip := range at {
				h.Outside.Dial(proto, fmt.Sprintf("[%s]:%d", ip, port))
			}
			reach(t, "the host itself", h.Net, proto, fmt.Sprintf("%s:%d", h.IP, port), true)
			reach(t, "the host by loopback", h.Net, proto, fmt.Sprintf("127.0.0.1:%d", port), true)
		}
		open("tcp", 8000) // without a firewall all is open
		open("udp", 8000)
		open("tcp", 9005)
		fw.Sh("ufw --force enable")
		closed("ufw came", "tcp", 8000)
		closed("ufw came", "udp", 8000)
		closed("ufw came", "tcp", 9005)
		fw.Sh("ufw allow 8000/tcp; ufw allow 9000:9009/tcp")
		open("tcp", 8000)
		open("tcp", 9005)
		closed("ufw allows TCP only", "udp", 8000)
		fw.Sh("ufw delete allow 8000/tcp; ufw allow from 203.0.113.99 to any port 8000 proto tcp")
		closed("ufw allows it to another", "tcp", 8000)
		h.Netyard.Restart()
		closed("netyard started again", "tcp", 8000)
		healthy(t, h)
		fw.Sh("ufw --force disable")
		restore()

		firewalld.Start()
		closed("firewalld came", "tcp", 8000)
		fw.Sh(lab.Bus + " firewall-cmd --add-port=8000/tcp")
		open("tcp", 8000)
		closed("firewalld opens TCP only", "udp", 8000)
		fw.Sh(lab.Bus + " firewall-cmd --reload")
		closed("firewalld forgot it", "tcp", 8000)
		firewalld.Stop()
		restore()
	})
}

// TestPublishFrom: published ports answer whom their network says, and on the addresses it says.
func TestPublishFrom(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := lab.New(t, e)
		other := h.LAN.Node("other")
		h.Netyard.Start()
		h.Docker("network create -d netyard-bridge -o publish_from=" + h.Outside.IP + "/32 cidr")
		h.Docker("network create -d netyard-bridge -o publish_from=eth0 iface")
		h.Docker("network create -d netyard-bridge -o publish_from=eth7 nobody")
		h.Docker("network create -d netyard-bridge -o bind=" + h.IP + " bound")
		h.Docker("network create -d netyard-bridge -o bind=127.0.0.1 local")
		for i, name := range []string{"cidr", "iface", "nobody", "bound", "local"} {
			h.Run(name, fmt.Sprintf("--network %s -p %d:80", name, 8000+i))
			h.In(name).Listen("tcp", ":80")
		}
		h.Run("within", "--network cidr")
		for i, c := range []struct {
			network               string
			outside, other, local bool
		}{
			{"cidr", true, false, true},
			{"iface", true, true, true},
			{"nobody", false, false, true},
			{"bound", true, true, false},
			{"local", false, false, true},
		} {
			at := fmt.Sprintf("%s:%d", h.IP, 8000+i)
			reach(t, c.network+" from outside", h.Outside.Net, "tcp", at, c.outside)
			reach(t, c.network+" from another machine", other.Net, "tcp", at, c.other)
			reach(t, c.network+" from the host", h.Net, "tcp", fmt.Sprintf("127.0.0.1:%d", 8000+i), c.local)
		}
		has(t, h.DockerErr("network create -d netyard-bridge -o publish_from=not/there x"), "publish_from=not/there")
		has(t, h.DockerErr("run --rm --network bound -p 8003:80 busybox true"), "8003")
	})
}
