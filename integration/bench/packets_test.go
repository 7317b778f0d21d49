package bench

import (
	"fmt"
	"testing"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// BenchmarkRowContainers measures traffic between two containers of a network on one core, beside Docker's bridge, and
// beside the kernel alone: a bridge without netfilter, and a veth pair with nothing between.
func BenchmarkRowContainers(b *testing.B) {
	lab.Alone(b)
	h := yard(b)
	h.Docker("network create -d netyard-bridge net")
	d := without(b)
	d.Docker("network create net")
	roads := []road{between(h, "netyard", "net"), between(d, "docker", "net")}
	lan := lab.NewLAN(b)
	one, two := lan.Node("one"), lan.Node("two")
	lab.Cable(b, one, two, "direct", "192.0.2.1/30", "192.0.2.2/30")
	roads = append(roads,
		road{name: "bridge", from: one.Net, to: two.Net, dial: two.IP + ":5000", serve: 5000},
		road{name: "veth", from: one.Net, to: two.Net, dial: "192.0.2.2:5001", serve: 5001})
	for _, c := range []struct {
		kind kind
		goal float64
	}{{requests(), 1.25}, {datagrams(), 1.15}, {stream(), 1}} {
		r := drive(b, c.kind, roads...)
		row := turns.Row{Table: "containers", What: c.kind.name, Unit: c.kind.unit}
		row.Beside, row.AtLeast = "Docker's bridge", c.goal
		r.Row(b, row, "netyard", "docker")
		row.AtLeast = 0
		row.Beside = "a bridge without netfilter"
		r.Row(b, row, "netyard", "bridge")
		row.Beside = "a veth pair"
		r.Row(b, row, "netyard", "veth")
	}
	if !knows(h, "bridge", "big_tcp") {
		return
	}
	h.Docker("network create -d netyard-bridge --internal -o big_tcp=true big")
	roads[0] = between(h, "netyard", "big")
	drive(b, stream(), roads[:2]...).Row(b, turns.Row{
		Table: "containers", What: "TCP stream with `big_tcp`", Unit: "Gbit/s", Beside: "Docker's bridge", AtLeast: 2,
	}, "netyard", "docker")
}

// between starts two containers on a network, and returns the road from one to the other.
func between(h *lab.Host, name, network string) road {
	from, to := network+"1", network+"2"
	h.Run(from, "--network "+network)
	h.Run(to, "--network "+network)
	return road{name: name, from: h.In(from), to: h.In(to), dial: h.Addr(to, network) + ":5000", serve: 5000}
}

// BenchmarkRowOutside measures traffic of a container to another machine, and of that machine to a published port,
// beside Docker's bridge.
func BenchmarkRowOutside(b *testing.B) {
	lab.Alone(b)
	var out, in []road
	for _, h := range []*lab.Host{yard(b), without(b)} {
		driver := map[string]string{"netyard": "-d netyard-bridge", "docker": ""}[h.Name]
		h.Docker("network create", driver, "net")
		h.Run("web", "--network net -p 20000:5000 -p 20000:5000/udp")
		web, outside := h.In("web"), h.Outside.Net
		out = append(out, road{name: h.Name, from: web, to: outside, dial: h.Outside.IP + ":6000", serve: 6000})
		in = append(in, road{name: h.Name, from: outside, to: web, dial: h.IP + ":20000", serve: 5000})
	}
	for _, c := range []struct {
		what  string
		roads []road
	}{{"container to outside", out}, {"outside to a published port", in}} {
		for _, k := range []kind{stream(), requests(), datagrams()} {
			drive(b, k, c.roads...).Row(b, turns.Row{
				Table: "outside", What: fmt.Sprintf("%s, %s", c.what, k.name), Unit: k.unit, Beside: "Docker's bridge",
				AtLeast: 0.98,
			}, "netyard", "docker")
		}
	}
}
