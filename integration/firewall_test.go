package integration

import (
	"fmt"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// published starts a container that publishes port 80 on several host addresses, from host port 8000 on, and returns
// those addresses; an empty one means all.
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

// firewalldWith says whether firewalld can run beside the engine here. Debian 12's, with libnftables 1.0.6, crashes
// with a segmentation fault when it reads tables made by a newer nft, such as that in the root of engine 29. On a real
// machine, which has one nft, this does not happen.
func firewalldWith(t *testing.T, e lab.Engine) bool {
	t.Helper()
	if e.Nftables() {
		t.Log("not tested with nftables, since libnftables 1.0.6 cannot read the tables of nft 1.1")
	}
	return !e.Nftables()
}

// keepRules saves the tables of iptables; restore restores them, since a firewall leaves its chains behind.
func keepRules(h *lab.Host) (restore func()) {
	h.Sh("iptables-save | grep -v nyb- >/tmp/v4; ip6tables-save | grep -v nyb- >/tmp/v6; true")
	return func() {
		h.Sh("for t in iptables ip6tables; do for p in INPUT FORWARD OUTPUT; do $t -P $p ACCEPT; done; " +
			"$t -F; $t -X; done; iptables-restore </tmp/v4; ip6tables-restore </tmp/v6")
	}
}

// works checks that everything works as on a host without another firewall: containers reach the outside and each
// other, and are reached on their published ports; and networks stay isolated.
func works(t *testing.T, h *lab.Host, binds []string, when string) {
	t.Helper()
	t.Log(when)
	for _, to := range []string{h.Outside.IP, h.Outside.IP6} {
		reach(t, when+": a container to the outside", h.In("web"), "tcp", "["+to+"]:7000", true)
	}
	reach(t, when+": a container to its neighbour", h.In("peer"), "tcp", "["+h.Addr("web", "a")+"]:80", true)
	reach(t, when+": a container to its neighbour by IPv6", h.In("peer"), "tcp", "["+h.Addr6("web", "a")+"]:80", true)
	reach(t, when+": a container to another network", h.In("stranger"), "tcp", h.Addr("web", "a")+":80", false)
	reach(t, when+": the LAN to an unpublished port", h.Outside.Net, "tcp", h.Addr("web", "a")+":80", false)
	matrix(t, h, binds)
}

// TestBesideUfw: with ufw enabled, published ports are open and containers reach the outside, whichever starts first.
// One engine is enough: ufw is independent of engines, and netyard's rules are the same beside each.
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
	works(t, h, binds, "ufw started last")
	h.Netyard.Restart()
	fw.Sh("ufw reload; ufw allow 22/tcp; ufw route deny proto tcp from any to any port 4444")
	healthy(t, h)
	works(t, h, binds, "netyard started last, and ufw was reloaded")
	h.Listen("tcp", ":9999")
	h.Outside.DialFail("tcp", h.IP+":9999") // ufw decides about the host's own ports
	fw.Sh("ufw --force disable")
	restore()
}

// TestBesideFirewalld: the same with firewalld, also after its reloads.
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
		h.Dockerd.Env = append(h.Dockerd.Env, lab.Bus) // it restores its own rules after a reload
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
		works(t, h, binds, "firewalld started last")
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

// TestHostFirewallDecides: with publish=host, a published port is open only to those for whom the host's own firewall
// allows it.
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
		open("tcp", 8000) // without a firewall all ports are open
		open("udp", 8000)
		open("tcp", 9005)
		fw.Sh("ufw --force enable")
		closed("ufw is enabled", "tcp", 8000)
		closed("ufw is enabled", "udp", 8000)
		closed("ufw is enabled", "tcp", 9005)
		fw.Sh("ufw allow 8000/tcp; ufw allow 9000:9009/tcp")
		open("tcp", 8000)
		open("tcp", 9005)
		closed("ufw allows TCP only", "udp", 8000)
		fw.Sh("ufw delete allow 8000/tcp; ufw allow from 203.0.113.99 to any port 8000 proto tcp")
		closed("ufw allows another client", "tcp", 8000)
		h.Netyard.Restart()
		closed("netyard restarted", "tcp", 8000)
		healthy(t, h)
		fw.Sh("ufw --force disable")
		restore()

		firewalld.Start()
		closed("firewalld started", "tcp", 8000)
		fw.Sh(lab.Bus + " firewall-cmd --add-port=8000/tcp")
		open("tcp", 8000)
		closed("firewalld allows TCP only", "udp", 8000)
		fw.Sh(lab.Bus + " firewall-cmd --reload")
		closed("firewalld reloaded", "tcp", 8000)
		firewalld.Stop()
		restore()
	})
}

// TestPublishFrom: published ports are open to the clients of publish_from, and on the addresses of bind.
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
