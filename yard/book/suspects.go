package book

import (
	"sync"
)

// suspects remembers what each engine's census missed the last time.
type suspects struct {
	mu   sync.Mutex
	last map[string]map[string]bool
}

// A Round is one look; what it finds missing and the last one did not is only suspected.
type Round struct {
	last, now map[string]bool
}

// Begin begins a round.
func (s *suspects) Begin(engine string) *Round {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Round{last: s.last[engine], now: map[string]bool{}}
}

// Again says whether a thing was suspected in the round before, and is suspected in this one.
func (r *Round) Again(what string) bool {
	r.now[what] = true
	return r.last[what]
}

// End ends the round.
func (s *suspects) End(engine string, r *Round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]map[string]bool{}
	}
	s.last[engine] = r.now
}
