package book

import (
	"sync"

	"netyard/kernel/sandbox"
	"netyard/modes"
)

// A Conflict is a port that an endpoint wants to share with the host, and somebody else has.
type Conflict struct {
	Port modes.Port
	// Owner is who has it, in words.
	Owner string
	// Shadow says that the endpoint has the port, and a program of the host listens on it all the same, and hears
	// nothing.
	Shadow bool

	Listener sandbox.Listener // if a program of the host has it
	Claim    string           // if an endpoint has
}

// Sharing is what the watcher of sandboxes and the rest of the yard tell each other.
type Sharing struct {
	Poked     chan struct{}
	Mu        sync.Mutex
	Conflicts map[string][]Conflict // by endpoint
}

// Poke has the watcher read the records.
func (s *Sharing) Poke() {
	select {
	case s.Poked <- struct{}{}:
	default:
	}
}
