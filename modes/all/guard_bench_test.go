package all_test

import (
	"testing"
	"time"
)

// BenchmarkFrame measures the way of one small frame from a container to its neighbour's socket, and to one of the
// host: the processor that sends does all that a bridge, the guard and the ruleset do. Run alone it measures the cost
// of a frame; on a busy machine the shortest of all rounds still does.
func BenchmarkFrame(b *testing.B) {
	l := newGuardLab(b, false)
	for _, spec := range []siteSpec{{name: "plain", mode: "bridge"}, {name: "closed", mode: "bridge", closedIn: true}} {
		s := l.site(b, spec)
		for name, to := range map[string]*party{"neighbour": s.victim, "host": s.host} {
			b.Run(spec.name+"/to="+name, func(b *testing.B) {
				const few = 100
				var frames [][]byte
				for i := range few {
					frames = append(frames, s.from(s.evil, to, i))
				}
				least := time.Duration(1<<63 - 1)
				for b.Loop() {
					began := time.Now()
					s.evil.wire.Send(b, frames...)
					least = min(least, time.Since(began))
				}
				b.ReportMetric(float64(least.Nanoseconds())/few, "least-ns/frame") // without other processes
			})
		}
	}
}
