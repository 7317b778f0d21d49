package driver_test

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkScale measures the calls of BenchmarkEndpoint on hosts with more endpoints, on up to 100 networks: what
// one endpoint costs must not depend on the others.
func BenchmarkScale(b *testing.B) {
	for _, others := range []int{10, 1_000, 3_000, 10_000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			y := newScale(b, others)
			first := others
			for i := first; b.Loop(); i++ {
				y.start(i)
				b.StopTimer()
				y.stop(i)
				b.StartTimer()
			}
		})
	}
}

// A scale is a host with many endpoints.
type scale struct {
	*engine

	networks int
}

// newScale makes a host with that many endpoints, evenly on up to a hundred networks.
func newScale(b *testing.B, endpoints int) scale {
	b.Helper()
	s := scale{newEngine(b, "bridge"), min(endpoints, 100)}
	for i := range s.networks {
		s.ok("NetworkDriver.CreateNetwork", strings.NewReplacer(
			"aaaaaaaaaaaa01", s.network(i), "10.9.0.", fmt.Sprintf("10.%d.0.", 10+i), "/24", "/16",
		).Replace(plain()))
	}
	for i := range endpoints {
		s.start(i)
	}
	return s
}

func (s scale) network(i int) string { return fmt.Sprintf("%011x000", 0xa00_0000+i%s.networks) }

func (s scale) of(i int, body string) string {
	k := 2 + i/s.networks
	return strings.NewReplacer(
		"aaaaaaaaaaaa01", s.network(i), "eeeeeeeeeeee01", fmt.Sprintf("%011x000", i),
		"/run/docker/netns/5", fmt.Sprintf("/run/docker/netns/%012x", i),
		"10.9.0.2/24", fmt.Sprintf("10.%d.%d.%d/16", 10+i%s.networks, k/250, k%250+1),
		"10.9.0.1", fmt.Sprintf("10.%d.0.1", 10+i%s.networks),
	).Replace(body)
}

func (s scale) start(i int) {
	s.ok("NetworkDriver.CreateEndpoint", s.of(i, endpoint))
	s.ok("NetworkDriver.Join", s.of(i, join))
}

func (s scale) stop(i int) {
	s.ok("NetworkDriver.Leave", s.of(i, ids))
	s.ok("NetworkDriver.DeleteEndpoint", s.of(i, ids))
}
