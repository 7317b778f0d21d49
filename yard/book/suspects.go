package book

import (
	"sync"
)

// suspects has what was missing in the last census of each engine.
type suspects struct {
	mu   sync.Mutex
	last map[string]map[string]bool
}

// A Round is one census. What is missing for the first time is only suspected to be gone.
type Round struct {
	last, now map[string]bool
}

// Begin starts a round for an engine.
func (s *suspects) Begin(engine string) *Round {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Round{last: s.last[engine], now: map[string]bool{}}
}

// Again records that something is missing in this round, and reports whether it was missing in the last one too.
func (r *Round) Again(what string) bool {
	r.now[what] = true
	return r.last[what]
}

// End ends the round; the next one compares with it.
func (s *suspects) End(engine string, r *Round) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]map[string]bool{}
	}
	s.last[engine] = r.now
}
