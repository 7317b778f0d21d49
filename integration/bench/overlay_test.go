package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// BenchmarkRowOverlay measures traffic between containers on two hosts, by netyard's overlay, beside a VXLAN device and
// a bridge made by hand, and beside plain routing: both on hosts with the same engine, whose packets pass its firewall
// and connection tracking; and on hosts without any firewall.
func BenchmarkRowOverlay(b *testing.B) {
	lab.Alone(b)
	lan := lab.NewLAN(b)
	etcd := "http://" + lan.Outside.IP + ":2379"
	lan.Outside.Service("etcd", "etcd", "--data-dir", filepath.Join(lan.Outside.Dir, "etcd"), "--log-level", "error",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd).Start()
	var hosts []*lab.Host
	for i := range 2 {
		h := lab.New(b, engine, lab.On(lan), lab.Name(fmt.Sprint("h", i+1)))
		file := filepath.Join(h.Dir, "netyard.yaml")
		text := fmt.Sprintf("etcd: {endpoints: [%q], insecure: true}\noverlay: {address: %s}\n", etcd, h.IP)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		h.Netyard.Program = lab.BuildShipped(b)
		h.Netyard.Start("--config", file)
		hosts = append(hosts, h)
	}
	b.Cleanup(func() { // etcd is still there
		for _, h := range hosts {
			h.RemoveAll()
			h.Sh("for i in $(seq 100); do netyard cluster status | grep -q vxlan || exit 0; sleep 0.1; done")
		}
	})
	var docker, bare []*lab.Node
	for i := range 2 {
		d := lab.New(b, engine, lab.On(lan), lab.Name(fmt.Sprint("docker", i+1)))
		d.Sh("iptables -I FORWARD -j ACCEPT")
		docker, bare = append(docker, d.Node), append(bare, lan.Node(fmt.Sprint("bare", i+1)))
	}
	vxlan, routed := byHand(b, lan, "docker", docker)
	bareVXLAN, bareRouted := byHand(b, lan, "bare", bare)
	roads := []road{overlay(b, hosts, "vxlan"), vxlan, routed, bareVXLAN, bareRouted}
	direct := knows(hosts[0], "overlay", "transport")
	if direct {
		roads = append(roads, overlay(b, hosts, "direct"))
	}
	for _, k := range []kind{stream(), requests(), datagrams()} {
		r := drive(b, k, roads...)
		row := func(transport, beside, name string, goal float64) {
			r.Row(b, turns.Row{
				Table: "overlay", What: transport + ", " + k.name, Unit: k.unit, Beside: beside, AtLeast: goal,
			}, "netyard-"+strings.ToLower(transport), name)
		}
		row("VXLAN", "VXLAN by hand", vxlan.name, 0.97)
		row("VXLAN", "plain routing", routed.name, 0)
		row("VXLAN", "VXLAN by hand, no firewall", bareVXLAN.name, 0)
		if direct {
			row("direct", "plain routing", routed.name, 0.97)
			row("direct", "plain routing, no firewall", bareRouted.name, 0)
		}
	}
}

// overlay makes a network with a transport, as far as netyard has a choice, and returns the road between two hosts.
func overlay(b *testing.B, hosts []*lab.Host, transport string) road {
	b.Helper()
	options := fmt.Sprintf("-d netyard-overlay --ipam-driver netyard-overlay -o overlay=%s --ipam-opt overlay=%[1]s",
		transport)
	first := " --subnet " + map[string]string{"vxlan": "10.20.0.0/16", "direct": "10.21.0.0/16"}[transport]
	if knows(hosts[0], "overlay", "transport") {
		first += " -o transport=" + transport
	}
	for i, h := range hosts {
		h.Docker("network create", options, map[int]string{0: first}[i], transport)
		h.Run(transport, "--network "+transport)
	}
	to := hosts[1].Addr(transport, transport)
	hosts[0].Ping(transport, to)
	return road{
		name: "netyard-" + transport, from: hosts[0].In(transport), to: hosts[1].In(transport), dial: to + ":5000",
		serve: 5000,
	}
}

// byHand connects a container on each of two hosts by a VXLAN device and a bridge, and by plain routing, and returns
// both roads.
func byHand(b *testing.B, lan *lab.LAN, name string, hosts []*lab.Node) (vxlan, routed road) {
	b.Helper()
	var containers []*lab.Node
	for i, h := range hosts {
		c, other := lan.Node(fmt.Sprint("inner", i+1)), hosts[1-i].IP
		lab.Cable(b, h, c, "bridged", "", fmt.Sprintf("10.91.0.%d/24", i+1))
		lab.Cable(b, h, c, "routed", fmt.Sprintf("10.92.%d.1/24", i+1), fmt.Sprintf("10.92.%d.2/24", i+1))
		h.Sh(fmt.Sprintf(`ip link add vx0 type vxlan id 77 dstport 4790 local %s remote %s dev eth0
			ip link add br0 type bridge
			ip link set vx0 master br0 up && ip link set bridged master br0 && ip link set br0 up
			sysctl -qw net.ipv4.ip_forward=1
			ip route add 10.92.%d.0/24 via %[2]s`, h.IP, other, 2-i))
		c.Sh(fmt.Sprintf("ip link set bridged mtu 1450 && ip route add 10.92.%d.0/24 via 10.92.%d.1", 2-i, i+1))
		containers = append(containers, c)
	}
	from, to := containers[0].Net, containers[1].Net
	vxlan = road{name: name + "-vxlan", from: from, to: to, dial: "10.91.0.2:5000", serve: 5000}
	routed = road{name: name + "-routed", from: from, to: to, dial: "10.92.2.2:5001", serve: 5001}
	return vxlan, routed
}
