package lab

// Do runs f on a thread inside the network namespace, for tests that need sockets of their own kind there.
func (n *Net) Do(f func() error) error { return n.do(f) }
