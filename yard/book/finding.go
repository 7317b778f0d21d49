package book

import (
	"context"
	"time"

	"netyard/modes"
)

// A Finding is one difference between the records, the kernel and the engines.
type Finding struct {
	// Kind is "fault" for what is missing or wrong, "stray" for an object that no record wants, "orphan" for a record
	// without an owner, "note" for what is as it should be and may surprise.
	Kind    string `json:"kind"`
	Network string `json:"network,omitempty"`
	Text    string `json:"text"`
	// Removable: gc removes it.
	Removable bool `json:"removable"`

	// Error is why gc failed to remove it.
	Error string `json:"error,omitempty"`

	// Remove removes it; nil unless it is removable.
	Remove func(context.Context) error `json:"-"`
}

// The kinds of findings.
const (
	Fault  = "fault"
	Note   = "note"
	Orphan = "orphan"
	Stray  = "stray"
)

// Young is how long a change may be under way before it is a finding.
const Young = 5 * time.Second

// Stuck reports whether a change has been under way for at least the given time.
func (y *Book) Stuck(p modes.Phase, since time.Time, age time.Duration) bool {
	return p != modes.Ready && y.Config.Now().Sub(since) >= age
}
