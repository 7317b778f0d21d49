package integration

import (
	"fmt"
	"net"
	"testing"
	"time"

	"netyard/integration/lab"
)

// BenchmarkConnections is what a new connection to a published port costs, from another machine: with one port published and with
// many, on netyard's bridge and on Docker's own, side by side. Docker takes minutes to publish ten thousand.
func BenchmarkConnections(b *testing.B) {
	const one, many, dockersMany = 1, 10_000, 500
	h := lab.New(b, lab.Engine285, lab.DockerdArgs("--userland-proxy=false"))
	h.Netyard.Start()
	h.Docker("network create -d netyard-bridge net")
	h.Docker("network create own")
	for _, c := range []struct {
		network string
		ports   int
	}{{"net", one}, {"net", many}, {"own", one}, {"own", dockersMany}} {
		b.Run(fmt.Sprintf("network=%s/ports=%d", c.network, c.ports), func(b *testing.B) {
			h.Use(b)
			h.Run("web", "--network "+c.network+fmt.Sprintf(" -p %d-%[1]d:80", 20_000))
			for i := 1; i < c.ports; i += 500 { // not one range: as many ports as many containers have
				flags := ""
				for p := i; p < min(i+500, c.ports); p++ {
					flags += fmt.Sprintf(" -p %d:%d", 20_000+p, 30_000-p)
				}
				h.Run(fmt.Sprint("many", i), "--network "+c.network+flags)
			}
			h.In("web").Listen("tcp", ":80")
			h.Outside.Dial("tcp", h.IP+":20000")
			b.ResetTimer()
			connect(b, h, h.IP+":20000")
			b.StopTimer()
			h.RemoveContainers()
		})
	}
}

// connect makes a connection an iteration and closes it at once.
func connect(b *testing.B, h *lab.Host, addr string) {
	b.Helper()
	err := h.Outside.Do(func() error {
		d := net.Dialer{Timeout: time.Second}
		d.SetMultipathTCP(false)
		for range b.N {
			c, err := d.Dial("tcp", addr)
			if err != nil {
				return err
			}
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // no TIME_WAIT, or the ports would run out
			}
			_ = c.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
