package lab

import (
	"runtime"
	"strings"
	"sync"
	"testing"
)

// A hall lets in as many hosts as it has places, in the order in which their tests came, so that a test that wants many
// places gets them.
type hall struct {
	mu     sync.Mutex
	places int
	taken  int
	queue  []*claim
	inside map[string]*claim // by the name of the test
}

// A claim is the places that a test has until it ends, for itself and its subtests.
type claim struct {
	places int
	hosts  int // how many were made
	enter  chan struct{}
}

// machine is where all hosts of this program are. How many engines a machine bears at once follows from its cores:
// beside each other they would only take longer, and what waits for an answer would wait too long.
var machine = newHall(max(2, runtime.NumCPU())) //nolint:gochecknoglobals // the tests of a program share one machine

func newHall(places int) *hall { return &hall{places: places, inside: map[string]*claim{}} }

// Hosts waits until there is room for so many hosts with an engine, and keeps the room until the test ends. New asks
// for one itself; a test with more asks here, before the first, so that no two tests wait for each other with half of
// what they need.
func Hosts(t testing.TB, many int) {
	t.Helper()
	if !machine.claim(t, many) {
		t.Fatal("lab: the test has its places already: say Hosts, or Alone, once and before the first host")
	}
}

// Alone waits until no host runs, and keeps others out until the test ends: for a test that does a lot at once.
func Alone(t testing.TB) {
	t.Helper()
	Hosts(t, machine.places)
}

// claim says false if the test has places already.
func (h *hall) claim(t testing.TB, places int) bool {
	t.Helper()
	name := t.Name()
	h.mu.Lock()
	if h.of(name) != nil {
		h.mu.Unlock()
		return false
	}
	c := &claim{places: min(places, h.places), enter: make(chan struct{})}
	h.inside[name] = c
	h.queue = append(h.queue, c)
	h.admit()
	h.mu.Unlock()
	<-c.enter
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.inside, name)
		h.taken -= c.places
		h.admit()
	})
	return true
}

// host takes one of the test's places, which it waits for if nobody has asked for any. It says false if there are more
// hosts than that.
func (h *hall) host(t testing.TB) bool {
	t.Helper()
	h.claim(t, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.of(t.Name())
	c.hosts++
	return c.hosts <= c.places || c.places == h.places
}

// leave gives a host's place back to its test.
func (h *hall) leave(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.of(t.Name()); c != nil {
		c.hosts--
	}
}

// of is the claim of a test or of one that it is a part of.
func (h *hall) of(name string) *claim {
	for {
		if c := h.inside[name]; c != nil {
			return c
		}
		end := strings.LastIndexByte(name, '/')
		if end < 0 {
			return nil
		}
		name = name[:end]
	}
}

// admit lets in who has waited longest, for as long as there is room.
func (h *hall) admit() {
	for len(h.queue) > 0 && h.taken+h.queue[0].places <= h.places {
		h.taken += h.queue[0].places
		close(h.queue[0].enter)
		h.queue = h.queue[1:]
	}
}
