package lab

import (
	"runtime"
	"strings"
	"sync"
	"testing"
)

// A limiter allows as many hosts as it has slots, in the order in which tests ask, so that a test that wants many slots
// is not starved.
type limiter struct {
	mu      sync.Mutex
	slots   int
	used    int
	queue   []*grant
	granted map[string]*grant // by the name of the test
}

// A grant has the slots of a test and its subtests until the test ends.
type grant struct {
	slots int
	hosts int // how many hosts the test has
	enter chan struct{}
}

// hostLimit limits the hosts of this program by the machine's cores: more engines at the same time would only take
// longer, and run into timeouts.
//
//nolint:gochecknoglobals // the tests of a program share one machine
var hostLimit = newLimiter(max(2, runtime.NumCPU()))

func newLimiter(slots int) *limiter { return &limiter{slots: slots, granted: map[string]*grant{}} }

// Hosts waits until many hosts with an engine may run, and keeps their slots until the test ends. New acquires one slot
// by itself. A test with several hosts calls Hosts first, so that two tests that each have half of their slots never
// wait for each other.
func Hosts(t testing.TB, many int) {
	t.Helper()
	if !hostLimit.acquire(t, many) {
		t.Fatal("lab: the test has its slots already; call Hosts or Alone once, before the first host")
	}
}

// Alone waits until no host runs, and blocks hosts of other tests until the test ends. A test calls it that needs the
// whole machine.
func Alone(t testing.TB) {
	t.Helper()
	Hosts(t, hostLimit.slots)
}

// acquire waits for slots for a test; it returns false if the test has some already.
func (h *limiter) acquire(t testing.TB, slots int) bool {
	t.Helper()
	name := t.Name()
	h.mu.Lock()
	if h.grantOf(name) != nil {
		h.mu.Unlock()
		return false
	}
	c := &grant{slots: min(slots, h.slots), enter: make(chan struct{})}
	h.granted[name] = c
	h.queue = append(h.queue, c)
	h.admit()
	h.mu.Unlock()
	<-c.enter
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.granted, name)
		h.used -= c.slots
		h.admit()
	})
	return true
}

// addHost counts a host of a test, for which it acquires one slot if the test has none. It returns false if the test
// has more hosts than slots.
func (h *limiter) addHost(t testing.TB) bool {
	t.Helper()
	h.acquire(t, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.grantOf(t.Name())
	c.hosts++
	return c.hosts <= c.slots || c.slots == h.slots
}

// removeHost undoes addHost.
func (h *limiter) removeHost(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.grantOf(t.Name()); c != nil {
		c.hosts--
	}
}

// grantOf returns the grant of a test, or of the test that it is a subtest of; nil if there is none.
func (h *limiter) grantOf(name string) *grant {
	for {
		if c := h.granted[name]; c != nil {
			return c
		}
		end := strings.LastIndexByte(name, '/')
		if end < 0 {
			return nil
		}
		name = name[:end]
	}
}

// admit grants slots to those who have waited longest, while there are enough.
func (h *limiter) admit() {
	for len(h.queue) > 0 && h.used+h.queue[0].slots <= h.slots {
		h.used += h.queue[0].slots
		close(h.queue[0].enter)
		h.queue = h.queue[1:]
	}
}
