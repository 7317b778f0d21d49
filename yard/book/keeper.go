package book

import (
	"sync"
	"sync/atomic"
)

// A Keeper is the state of KeepLeases.
type Keeper struct {
	Poked chan struct{}
	Dirty atomic.Bool // a transaction marked a lease to be released
	Mu    sync.Mutex
	Busy  map[string]bool // the leases whose task is running
	Work  sync.WaitGroup
}

// WakeLeases makes KeepLeases check the leases now.
func (y *Book) WakeLeases() {
	select {
	case y.Keeper.Poked <- struct{}{}:
	default:
	}
}
