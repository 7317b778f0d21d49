package integration

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"netyard/integration/lab"
)

// A yardstick is one of several operations that a benchmark measures in turn, so that other load on the machine affects
// all alike.
type yardstick struct {
	name string
	do   func() // the operation
	took []time.Duration
}

// inTurn measures each operation once per iteration, and reports the medians in a unit of time.
func inTurn(b *testing.B, unit time.Duration, unitName string, sticks ...*yardstick) {
	b.Helper()
	b.ResetTimer()
	for range b.N {
		for _, s := range sticks {
			start := time.Now()
			s.do()
			s.took = append(s.took, time.Since(start))
		}
	}
	b.StopTimer()
	for _, s := range sticks {
		slices.Sort(s.took)
		b.ReportMetric(float64(s.took[len(s.took)/2])/float64(unit), s.name+"-"+unitName)
	}
}

// BenchmarkConnections measures new connections from another machine to a published port, with one and with many
// published ports, on netyard's bridge and on Docker's own: four hosts in turn, 200 connections each. Docker has only
// 500 ports, since it takes minutes to publish ten thousand.
func BenchmarkConnections(b *testing.B) {
	const one, many, dockersMany, turn = 1, 10_000, 500, 200
	var sticks []*yardstick
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
		sticks = append(sticks, &yardstick{name: c.name, do: func() { connect(b, h, h.IP+":20000", turn) }})
	}
	inTurn(b, time.Microsecond*turn, "µs", sticks...)
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
	var sticks []*yardstick
	for _, c := range []struct{ name, network, ports string }{
		{"one", "net", port},
		{"range", "net", ranges},
		{"engine-one", "none", port},
		{"engine-range", "none", ranges},
	} {
		sticks = append(sticks, &yardstick{name: c.name + "-start", do: start(c.network, c.ports)},
			&yardstick{name: c.name + "-stop", do: stop})
	}
	inTurn(b, time.Millisecond, "ms", sticks...)
}
