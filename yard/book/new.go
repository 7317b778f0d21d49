package book

import (
	"time"

	"netyard/modes"
	"netyard/wake"
)

// New returns a Book with the defaults of its configuration filled in.
func New(c Config) *Book {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	return &Book{
		Config: c, Started: c.Now(), Options: modes.NewTable(c.Modes),
		Sharing: Sharing{Wake: wake.New(), Conflicts: map[string][]Conflict{}},
		Keeper:  Keeper{Wake: wake.New()},
	}
}
