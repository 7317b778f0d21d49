package book

import (
	"sync"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/wake"
)

// A Conflict is a port that an endpoint wants to share with the host, and that has another owner.
type Conflict struct {
	Port modes.Port
	// Owner names the owner in words.
	Owner string
	// Shadow says that the endpoint has the port, and a program of the host that also listens on it receives nothing.
	Shadow bool

	Listener sandbox.Listener // the owner, if it is a program of the host
	Claim    string           // the key of the owner's claim, if it is an endpoint
}

// Sharing is the state of the watcher that shares ports of sandboxes with the host.
type Sharing struct {
	// Wake makes the watcher read the records now.
	Wake      wake.Signal
	Mu        sync.Mutex
	Conflicts map[string][]Conflict // by endpoint
}
