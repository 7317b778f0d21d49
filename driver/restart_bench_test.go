package driver_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"netyard/yard"
	"netyard/yard/plan"
	"netyard/yard/reconcile"
)

// BenchmarkRestart measures what a daemon does when it starts on a host with that many endpoints, and what doctor does
// there: the processors' time, and the memory that the records and the kernel's state take afterwards.
func BenchmarkRestart(b *testing.B) {
	for _, endpoints := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("endpoints=%d", endpoints), func(b *testing.B) {
			s := newScale(b, endpoints)
			b.Run("restart", func(b *testing.B) {
				s.measure(b, true, func(y *yard.Yard) error { return reconcile.Restore(b.Context(), y, false) })
			})
			b.Run("doctor", func(b *testing.B) {
				s.measure(b, false, func(y *yard.Yard) error {
					fs, err := reconcile.Audit(b.Context(), y, nil)
					if len(fs) > 0 {
						b.Errorf("%d findings, of which the first is: %s", len(fs), fs[0].Text)
					}
					return err
				})
			})
		})
	}
}

// measure runs do for a daemon that has just been started, if restarted, or else for the one that runs.
func (s scale) measure(b *testing.B, restarted bool, do func(*yard.Yard) error) {
	b.Helper()
	var spent, held, allocated uint64
	for b.Loop() {
		b.StopTimer()
		y := s.yard
		if restarted {
			s.host.Reopen(b)
			c := s.yard.Config
			c.Kernel, c.Handle = plan.Host{Kernel: s.host.Kernel}, s.host.Handle
			y = yard.New(c)
			s.yard = y
		}
		runtime.GC()
		before, start := memory(), processorTime()
		b.StartTimer()
		if err := do(y); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		spent += uint64(processorTime() - start)
		allocated += memory().TotalAlloc - before.TotalAlloc
		runtime.GC()
		held += memory().HeapAlloc
		b.StartTimer()
	}
	n := float64(b.N)
	b.ReportMetric(float64(spent)/n/1e9, "cpu-s/op")
	b.ReportMetric(float64(allocated)/n/1e6, "MB/op")
	b.ReportMetric(float64(held)/n/1e6, "MB-held")
}

func memory() (m runtime.MemStats) {
	runtime.ReadMemStats(&m)
	return m
}

// processorTime returns the processors' time that this process has taken.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
