package book

import (
	"netyard/modes"
)

// State returns the state of an endpoint in one word.
func (y *Book) State(e modes.Endpoint) string {
	switch {
	case e.Phase == modes.Deleting:
		return "leaving"
	case e.Phase == modes.Pending:
		return "joining"
	case e.Sandbox == "":
		return "created"
	case y.Dead(e):
		return "dead"
	case e.Fenced != "":
		return "fenced"
	}
	return "up"
}
