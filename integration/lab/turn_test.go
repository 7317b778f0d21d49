package lab

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestSlots: with more tests than slots, some of which want all slots, exactly all slots are used.
func TestSlots(t *testing.T) {
	const slots = 3
	h := newLimiter(slots)
	var granted, most atomic.Int32
	t.Run("all", func(t *testing.T) {
		for i := range 24 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				want := int32(1 + i%slots)
				if want == 1 {
					h.addHost(t)
				} else if !h.acquire(t, int(want)) {
					t.Error("a test without slots was refused")
				}
				if h.acquire(t, 1) {
					t.Error("a test got slots twice")
				}
				now := granted.Add(want)
				if now > slots {
					t.Errorf("%d slots are used, and there are %d", now, slots)
				}
				was := most.Load()
				for now > was && !most.CompareAndSwap(was, now) {
					was = most.Load()
				}
				t.Run("part", func(t *testing.T) {
					h.mu.Lock()
					made := h.grantOf(t.Name()).hosts
					h.mu.Unlock()
					if h.addHost(t) != (int32(made) < want || want == slots) {
						t.Errorf("addHost with %d hosts and %d slots has the wrong result", made, want)
					}
				})
				granted.Add(-want)
			})
		}
	})
	if most.Load() != slots {
		t.Errorf("%d slots of %d were used", most.Load(), slots)
	}
	if h.used != 0 || len(h.granted) != 0 || len(h.queue) != 0 {
		t.Errorf("the limiter is not empty: %+v", h)
	}
}

// TestSlotsInOrder: a test that wants all slots is not overtaken by tests that want few.
func TestSlotsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newLimiter(2)
		a, all, late := &caller{TB: t, name: "a"}, &caller{TB: t, name: "all"}, &caller{TB: t, name: "late"}
		h.addHost(a)
		for _, c := range []*caller{all, late} {
			go func() {
				h.acquire(c, map[*caller]int{all: 2, late: 1}[c])
				c.in.Store(true)
			}()
			synctest.Wait()
		}
		if all.in.Load() || late.in.Load() {
			t.Fatal("a test got slots beside a host, although a test before it wants all slots")
		}
		a.end()
		synctest.Wait()
		if !all.in.Load() || late.in.Load() {
			t.Fatal("the test that wants all slots is not the next, and alone")
		}
		all.end()
		synctest.Wait()
		if !late.in.Load() {
			t.Fatal("the last test gets no slot")
		}
		late.end()
	})
}

// A caller is a test that ends when its end method is called.
type caller struct {
	testing.TB
	name string
	in   atomic.Bool
	ends []func()
}

func (c *caller) Name() string     { return c.name }
func (c *caller) Helper()          {}
func (c *caller) Cleanup(f func()) { c.ends = append(c.ends, f) }

func (c *caller) end() {
	for _, f := range c.ends {
		f()
	}
}
