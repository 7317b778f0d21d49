package yard

import "netyard/yard/book"

// A Yard makes, changes and removes the networks and endpoints of one host.
type Yard struct {
	*book.Book

	work chan func()
}

// New returns a Yard. Call reconcile.Restore before use.
func New(c book.Config) *Yard {
	const backlog = 1 << 16 // more endpoints than a host can have
	y := &Yard{Book: book.New(c), work: make(chan func(), backlog)}
	if y.Config.Background == nil {
		y.Config.Background = func(f func()) { y.work <- f }
	}
	return y
}
