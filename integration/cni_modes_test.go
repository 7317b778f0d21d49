package integration

import (
	"fmt"
	"strings"
	"testing"

	"netyard/integration/lab"
)

// with adds a runtimeConfig to a plugin's configuration, as a runtime does.
func with(conf, runtime string) string {
	return strings.Replace(conf, "{", `{"runtimeConfig":{`+runtime+"},", 1)
}

// TestCNIModes: networks of modes macvlan, bridge, none and host by CNI, with rates, policies, several networks of one
// container, and other plugins chained after netyard's.
func TestCNIModes(t *testing.T) {
	engines(t, func(t *testing.T, e lab.Engine) {
		h := hostCNI(t, e)
		h.Sh("netyard network create lan --mode macvlan -o parent=eth0 --subnet 203.0.113.0/24 --gateway", h.Outside.IP,
			"--ip-range 203.0.113.128/25")
		h.Sh("netyard network create web --subnet 10.77.0.0/24; netyard network create nothing --mode none; netyard " +
			"network create shared --mode host --subnet 10.71.0.0/24")
		h.Sh("for n in lan web nothing shared; do netyard cni install $n; done")
		sandboxes(h, "a", "b", "c")
		conf := map[string]string{}
		for _, n := range []string{"lan", "web", "nothing", "shared"} {
			conf[n] = confOf(t, h, n, "1.0.0")
		}
		severalNetworks(t, h, conf)
		sharesTheHosts(t, h, conf["shared"])
		ratesAndPolicy(t, h, conf["web"])
		aCard(t, h)
		chained(t, h)
		h.Sh("for n in a b c; do ip netns del $n; done")
		eventually(t, "no endpoint is left", func() bool { return len(ps(t, h)) == 0 })
		healthy(t, h)
	})
}

// severalNetworks tests one container on networks of modes macvlan, bridge and none; its default route is that of eth0.
func severalNetworks(t *testing.T, h *lab.Host, conf map[string]string) {
	t.Helper()
	lan := call{id: "a", netns: "/run/netns/a", conf: conf["lan"], args: "MAC=02:00:00:00:00:0a;IP=203.0.113.200"}
	// an address of the macvlan network
	web := call{id: "a", netns: "/run/netns/a", ifName: "eth1", conf: conf["web"], args: "IP=203.0.113.200"}
	nothing := call{id: "a", netns: "/run/netns/a", ifName: "eth2", conf: conf["nothing"]}
	if r := valid(t, "1.0.0", web.do(t, h, "ADD")); r.IPs[0].Address != "10.77.0.2/24" {
		t.Errorf("on the bridge it has %s", r.IPs[0].Address)
	}
	if r := valid(t, "1.0.0", lan.do(t, h, "ADD")); len(r.IPs) != 1 || r.IPs[0].Address != "203.0.113.200/24" ||
		r.IPs[0].Gateway != h.Outside.IP {
		t.Errorf("on the LAN it has %+v", r.IPs)
	}
	if r := valid(t, "1.0.0", nothing.do(t, h, "ADD")); len(r.IPs)+len(r.Interfaces) != 0 {
		t.Errorf("on the network of mode none it has %+v", r)
	}
	has(t, h.Sh("ip -n a link show eth0"), "02:00:00:00:00:0a")
	has(t, h.Sh("ip -n a route get 192.0.2.1"), "via "+h.Outside.IP+" dev eth0")
	h.Outside.Listen("tcp", ":7000")
	has(t, h.Named("a").Dial("tcp", h.Outside.IP+":7000"), "203.0.113.200") // its own address, without NAT
	h.Sh("ip netns exec a ping -c 1 -W 2 10.77.0.1")
	for _, c := range []call{lan, web, nothing} {
		c.do(t, h, "CHECK")
	}
	healthy(t, h)
	h.Netyard.Restart()
	has(t, h.Named("a").Dial("tcp", h.Outside.IP+":7000"), "203.0.113.200")
	for _, c := range []call{lan, web, nothing} {
		c.do(t, h, "DEL")
		c.do(t, h, "DEL")
	}
	// the link is in the sandbox only, and removed at once
	if out, err := h.TrySh("ip -n a link show eth0"); err == nil {
		t.Errorf("after DEL the link is left: %s", out)
	}
	eventually(t, "the veth link in the sandbox is gone", func() bool {
		_, err := h.TrySh("ip -n a link show eth1")
		return err != nil
	})
}

// sharesTheHosts tests mode host: a port that a container listens on is reached at the host's address, and a requested
// published port is ignored, not refused.
func sharesTheHosts(t *testing.T, h *lab.Host, conf string) {
	t.Helper()
	const mapping = `"portMappings":[{"hostPort":8090,"containerPort":90,"protocol":"tcp"}]`
	c := call{id: "a", netns: "/run/netns/a", conf: with(conf, mapping)}
	valid(t, "1.0.0", c.do(t, h, "ADD"))
	s := h.Named("a").Listen("tcp", ":8080")
	reached(t, h.Outside.Net, "tcp", h.IP+":8080")
	h.Outside.DialFail("tcp", h.IP+":8090")
	_ = s.Close()
	c.do(t, h, "DEL")
}

// ratesAndPolicy tests rates from the runtime and from a label, and a policy that selects a containerd container.
func ratesAndPolicy(t *testing.T, h *lab.Host, conf string) {
	t.Helper()
	h.Sh("mv /etc/cni/net.d/netyard-web.conflist /etc/cni/net.d/00-web.conflist") // ctr takes the first one
	h.CtrRun("c1", "--label netyard.rate=20mbit --label tier=app")
	const bandwidth = `"bandwidth":{"ingressRate":30000000,"ingressBurst":300000,"egressRate":40000000,` +
		`"egressBurst":400000}`
	b := call{id: "b", netns: "/run/netns/b", conf: with(conf, bandwidth)}
	c := call{id: "c", netns: "/run/netns/c", conf: conf}
	b.do(t, h, "ADD")
	valid(t, "1.0.0", c.do(t, h, "ADD"))
	qdiscs := h.Tool("tc qdisc show")
	for rate, times := range map[string]int{"rate 20Mbit": 2, "rate 30Mbit": 1, "rate 40Mbit": 1} {
		if n := strings.Count(qdiscs, rate); n != times {
			t.Errorf("%d limits of %s, want %d:\n%s", n, rate, times, qdiscs)
		}
	}
	at := map[string]string{}
	eventually(t, "ps shows the name", func() bool {
		for _, r := range ps(t, h) {
			at[r.Container], _, _ = strings.Cut(r.Addresses[0], "/")
		}
		return at["c1"] != ""
	})
	policy := func(name, tier string) {
		text := "name: " + name + "\nselect: {network: web, labels: {tier: " + tier + "}}\n" +
			"ingress:\n  allow:\n    - {cidr: 10.77.0.0/24, ports: [80]}\n"
		if _, err := apply(t, h, "", text); err != nil {
			t.Fatal(err)
		}
	}
	policy("only-80", "app")
	h.Sh("ip netns attach c1", h.CtrPID("c1"))
	servers := listen(h.Named("c1"), "80", "81")
	h.Named("c").Dial("tcp", at["c1"]+":80")
	h.Named("c").DialFail("tcp", at["c1"]+":81")
	healthy(t, h)
	h.Sh("netyard policy rm only-80")
	policy("of-others", "db")
	h.Named("c").Dial("tcp", at["c1"]+":81")
	h.Sh("netyard policy rm of-others")
	servers.close()
	h.Sh("ip netns del c1")
	h.CtrRemove("c1")
	b.do(t, h, "DEL")
	c.do(t, h, "DEL")
	h.Sh("mv /etc/cni/net.d/00-web.conflist /etc/cni/net.d/netyard-web.conflist")
}

// aCard tests a network with a device of the host: it is moved into the container, also by a repeated ADD, and comes
// back as it was.
func aCard(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Sh("ip link add card0 type veth peer name wire0; ip addr add 198.51.100.9/24 dev card0; ip link set wire0 up; " +
		"ip link set card0 up")
	h.Sh("netyard network create nic --mode host -o device=card0 --subnet 198.51.100.0/24 --gateway 198.51.100.1; " +
		"netyard cni install nic")
	before := h.Sh("ip -o addr show card0 | sed 's/valid_lft.*//'")
	c := call{id: "a", netns: "/run/netns/a", conf: confOf(t, h, "nic", "1.0.0"), args: "IP=198.51.100.2"}
	for range 2 {
		valid(t, "1.0.0", c.do(t, h, "ADD"))
		has(t, h.Sh("ip -n a addr show eth0"), "198.51.100.2/24")
	}
	other := call{id: "b", netns: "/run/netns/b", conf: c.conf}
	if _, msg := other.refused(t, h, "ADD"); !strings.Contains(msg, "card0") {
		t.Errorf("a device that another container has: %s", msg)
	}
	c.do(t, h, "DEL")
	c.do(t, h, "ADD") // restarted at once
	c.do(t, h, "DEL")
	eventually(t, "the device is back", func() bool {
		out, err := h.TrySh("ip -o addr show card0 | sed 's/valid_lft.*//'")
		return err == nil && strings.Join(strings.Fields(out), " ") == strings.Join(strings.Fields(before), " ")
	})
	h.Sh("netyard network rm nic; ip link del card0")
}

// chained tests other plugins chained after an installed network's.
func chained(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Sh(fmt.Sprintf(`cat > /etc/cni/net.d/chain.conflist <<'END'
{"cniVersion":"1.0.0","name":"chain","plugins":[%s,
 {"type":"tuning","sysctl":{"net.ipv4.conf.eth0.log_martians":"1"},"mtu":1300},
 {"type":"bandwidth","ingressRate":800000,"ingressBurst":80000,"egressRate":800000,"egressBurst":80000}]}
END`, `{"type":"netyard","network":"web"}`))
	const tool = "CNI_PATH=/opt/cni/bin cnitool"
	valid(t, "1.0.0", h.Sh(tool, "add chain /run/netns/b"))
	has(t, h.Sh("ip -n b link show eth0"), "mtu 1300")
	has(t, h.Tool("tc qdisc show"), "tbf")
	h.Sh(tool, "check chain /run/netns/b")
	h.Sh(tool, "del chain /run/netns/b")
	h.Sh("rm -rf /etc/cni/net.d/chain.conflist /var/lib/cni")
}
