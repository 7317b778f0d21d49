package bench

import (
	"fmt"
	"net"
	"testing"
	"time"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// BenchmarkConnections measures new connections from another machine to a published port, with one and with many
// published ports, on netyard's bridge and on Docker's own: four hosts in turn, 200 connections each. Docker has only
// 500 ports, since it takes minutes to publish ten thousand.
func BenchmarkConnections(b *testing.B) {
	const one, many, dockersMany, turn = 1, 10_000, 500, 200
	var sides []turns.Side
	for _, c := range []struct {
		name, network string
		ports         int
	}{
		{"netyard-1", "net", one},
		{"netyard-10000", "net", many},
		{"docker-1", "own", one},
		{"docker-500", "own", dockersMany},
	} {
		h := lab.New(b, lab.Engine285, lab.Name(c.name), lab.DockerdArgs("--userland-proxy=false"))
		h.Netyard.Program = lab.BuildShipped(b)
		h.Netyard.Start()
		h.Docker("network create -d netyard-bridge net")
		h.Docker("network create own")
		h.Run("web", "--network "+c.network+" -p 20000:80")
		for i := 1; i < c.ports; i += 500 { // single ports, not one range, as of many containers
			flags := ""
			for p := i; p < min(i+500, c.ports); p++ {
				flags += fmt.Sprintf(" -p %d:%d", 20_000+p, 30_000-p)
			}
			h.Run(fmt.Sprint("many", i), "--network "+c.network+flags)
		}
		h.In("web").Listen("tcp", ":80")
		h.Outside.Dial("tcp", h.IP+":20000")
		sides = append(sides, turns.Timed(c.name, func() { connect(b, h, h.IP+":20000", turn) }, nil))
	}
	r := turns.Take(b, 30, sides...)
	for _, name := range []string{"netyard", "docker"} {
		many := map[string]string{"netyard": "netyard-10000", "docker": "docker-500"}[name]
		b.ReportMetric(r.Median(many)/r.Median(name+"-1"), name+"-ratio")
		b.ReportMetric(1000*r.Median(many)/turn, name+"-many-µs")
	}
}

// connect opens connections and closes each at once.
func connect(b *testing.B, h *lab.Host, addr string, times int) {
	b.Helper()
	err := h.Outside.Do(func() error {
		d := net.Dialer{Timeout: time.Second}
		d.SetMultipathTCP(false)
		for range times {
			c, err := d.Dial("tcp", addr)
			if err != nil {
				return err
			}
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // avoid TIME_WAIT, which would exhaust the ports
			}
			_ = c.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPublish measures how long containers with one and with twenty thousand ports take to start and to stop; and,
// on a network of mode none, which ignores ports, how much of that is the engine's own time.
func BenchmarkPublish(b *testing.B) {
	const port, ranges = "-p 10000:10000", "-p 10000-19999:10000-19999/tcp -p 10000-19999:10000-19999/udp"
	h := lab.New(b, lab.Engine285)
	h.Netyard.Program = lab.BuildShipped(b)
	h.Netyard.Start()
	h.Docker("network create -d netyard-bridge net")
	start := func(network, ports string) func() {
		return func() { h.Docker("run -d --name web --network", network, ports, "busybox sleep 1d") }
	}
	stop := func() { h.Docker("rm -f web") }
	var sides []turns.Side
	stops := turns.Rounds{}
	for _, c := range []struct{ name, network, ports string }{
		{"one", "net", port},
		{"range", "net", ranges},
		{"engine-one", "none", port},
		{"engine-range", "none", ranges},
	} {
		begin := start(c.network, c.ports)
		sides = append(sides, turns.Side{Name: c.name, Measure: func() float64 {
			took := turns.Milliseconds(begin)
			stops[c.name] = append(stops[c.name], turns.Milliseconds(stop))
			return took
		}})
	}
	starts := turns.Take(b, 8, sides...)
	for _, s := range sides {
		b.ReportMetric(starts.Median(s.Name), s.Name+"-start-ms")
		b.ReportMetric(stops.Median(s.Name), s.Name+"-stop-ms")
	}
}
