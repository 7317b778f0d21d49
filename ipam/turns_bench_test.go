package ipam

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"netyard/integration/turns"
	"netyard/store"
)

// BenchmarkRowAllocate measures the rate of allocations, each of which is on the disk when its client goes on, of
// several clients at a time, beside one.
func BenchmarkRowAllocate(b *testing.B) {
	r := newRig(b, Config{})
	pool := r.subnet("10.7.0.0/16", "n")
	side := func(clients int) turns.Side {
		return turns.Side{Name: fmt.Sprint(clients), Measure: func() float64 {
			return r.rate(clients, pool, time.Duration(turns.Scaled(500, 100))*time.Millisecond)
		}}
	}
	all := turns.Take(b, 20, side(1), side(8), side(32))
	for _, c := range []struct {
		clients string
		goal    float64
	}{{"8", 4}, {"32", 8}} {
		all.Row(b, turns.Row{
			Table: "addresses", What: "durable allocations, " + c.clients + " clients", Unit: "/s", Beside: "1 client",
			AtLeast: c.goal,
		}, c.clients, "1")
	}
}

// rate returns how many allocations a second clients make. Each releases its address in the same transaction.
func (r *rig) rate(clients int, pool string, during time.Duration) float64 {
	var all sync.WaitGroup
	var done atomic.Int64
	start := time.Now()
	for range clients {
		all.Go(func() {
			for time.Since(start) < during {
				r.do(func(tx store.Tx) error { return r.pair(tx, pool) })
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}
