// Package all lists every mode. A new mode needs a folder and a line here.
package all

import (
	"sync"

	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/host"
	"netyard/modes/ipvlan"
	"netyard/modes/macvlan"
	"netyard/modes/none"
	"netyard/modes/overlay"
)

// Modes returns the modes by name.
func Modes() map[string]modes.New {
	return map[string]modes.New{
		"bridge":  bridge.New,
		"host":    host.New,
		"ipvlan":  ipvlan.New,
		"macvlan": macvlan.New,
		"none":    none.New,
		"overlay": overlay.New,
	}
}

// On returns all modes for one host.
func On(e modes.Env) map[string]modes.Mode {
	all := map[string]modes.Mode{}
	for name, newMode := range Modes() {
		all[name] = newMode(e)
	}
	return all
}

// Options returns the table of options of all modes.
func Options() *modes.Table { return table() }

var table = sync.OnceValue(func() *modes.Table { return modes.NewTable(On(modes.Env{})) })
