package record

// A Change is one record that was added, removed or changed.
type Change struct {
	Key string
	// Old is nil for a record that was added, New for one that was removed.
	Old, New Record
}
