package book

import (
	"sync"
	"sync/atomic"
)

// A Keeper is what KeepLeases has under way.
type Keeper struct {
	Poked chan struct{}
	Dirty atomic.Bool // a lease was given back in a transaction
	Mu    sync.Mutex
	Busy  map[string]bool // leases that something is being done about
	Work  sync.WaitGroup
}

// PokeLeases has the leases looked at.
func (y *Book) PokeLeases() {
	select {
	case y.Keeper.Poked <- struct{}{}:
	default:
	}
}
