package book

import (
	"sync"
	"sync/atomic"

	"netyard/wake"
)

// A Keeper is the state of KeepLeases.
type Keeper struct {
	// Wake makes KeepLeases check the leases now.
	Wake  wake.Signal
	Dirty atomic.Bool // a transaction marked a lease to be released
	Mu    sync.Mutex
	Busy  map[string]bool // the leases whose task is running
	Work  sync.WaitGroup
}
