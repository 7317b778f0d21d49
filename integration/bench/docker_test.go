package bench

import (
	"testing"

	"netyard/integration/lab"
	"netyard/integration/turns"
)

// BenchmarkRowDocker measures what the network costs of docker run --rm: its time on netyard's bridge beyond that
// without a network, beside the same on Docker's bridge.
func BenchmarkRowDocker(b *testing.B) {
	lab.Alone(b)
	var sides []turns.Side
	for _, h := range []*lab.Host{yard(b), without(b)} {
		driver := map[string]string{"netyard": "-d netyard-bridge", "docker": ""}[h.Name]
		h.Docker("network create", driver, "net")
		for name, network := range map[string]string{h.Name: "net", h.Name + "-none": "none"} {
			sides = append(sides, turns.Side{Name: name, Times: 3, Measure: func() float64 {
				return turns.Milliseconds(func() { h.Docker("run --rm --network", network, lab.Image, "true") })
			}})
		}
	}
	r := turns.Take(b, 15, sides...)
	r.Row(b, turns.Row{
		Table: "docker", What: "`docker run --rm`, the whole", Unit: "ms", Beside: "Docker's bridge",
	}, "netyard", "docker")
	r.Beyond("netyard-net", "netyard", "netyard-none")
	r.Beyond("docker-net", "docker", "docker-none")
	r.Row(b, turns.Row{
		Table: "docker", What: "`docker run --rm`, part of the network", Unit: "ms", Beside: "Docker's bridge",
		AtMost: 0.9,
	}, "netyard-net", "docker-net")
}
