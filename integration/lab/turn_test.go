package lab

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestPlaces has more tests than there is room for, some of which want all of it; fewer places would be seen, more too.
func TestPlaces(t *testing.T) {
	const places = 3
	h := newHall(places)
	var inside, most atomic.Int32
	t.Run("all", func(t *testing.T) {
		for i := range 24 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				want := int32(1 + i%places)
				if want == 1 {
					h.host(t)
				} else if !h.claim(t, int(want)) {
					t.Error("a test that has no places was refused them")
				}
				if h.claim(t, 1) {
					t.Error("a test got places twice")
				}
				now := inside.Add(want)
				if now > places {
					t.Errorf("%d are inside, and there are %d places", now, places)
				}
				was := most.Load()
				for now > was && !most.CompareAndSwap(was, now) {
					was = most.Load()
				}
				t.Run("part", func(t *testing.T) {
					h.mu.Lock()
					made := h.of(t.Name()).hosts
					h.mu.Unlock()
					if h.host(t) != (int32(made) < want || want == places) {
						t.Errorf("a host beside %d, of %d places, is taken wrongly", made, want)
					}
				})
				inside.Add(-want)
			})
		}
	})
	if most.Load() != places {
		t.Errorf("%d places of %d were used", most.Load(), places)
	}
	if h.taken != 0 || len(h.inside) != 0 || len(h.queue) != 0 {
		t.Errorf("left in the hall: %+v", h)
	}
}

// TestPlacesInOrder: who wants the whole machine is not passed by those who want little.
func TestPlacesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(2)
		a, all, late := &caller{TB: t, name: "a"}, &caller{TB: t, name: "all"}, &caller{TB: t, name: "late"}
		h.host(a)
		for _, c := range []*caller{all, late} {
			go func() {
				h.claim(c, map[*caller]int{all: 2, late: 1}[c])
				c.in.Store(true)
			}()
			synctest.Wait()
		}
		if all.in.Load() || late.in.Load() {
			t.Fatal("somebody got in beside a host, before or as one that wants the machine for itself")
		}
		a.end()
		synctest.Wait()
		if !all.in.Load() || late.in.Load() {
			t.Fatal("who wants the machine for itself is not the next, and alone")
		}
		all.end()
		synctest.Wait()
		if !late.in.Load() {
			t.Fatal("the last does not get in")
		}
		late.end()
	})
}

// A caller is a test whose end is somebody else's choice.
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
