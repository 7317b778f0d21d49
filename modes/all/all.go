// Package all lists every mode. A new mode is a folder and a line here.
package all

import (
	"netyard/modes"
	"netyard/modes/bridge"
	"netyard/modes/host"
	"netyard/modes/ipvlan"
	"netyard/modes/macvlan"
	"netyard/modes/none"
	"netyard/modes/overlay"
)

// Overlay is the name of the mode whose networks are on several hosts.
const Overlay = "overlay"

// Modes is the table of modes by name.
func Modes() map[string]modes.New {
	return map[string]modes.New{
		"bridge":  bridge.New,
		"host":    host.New,
		"ipvlan":  ipvlan.New,
		"macvlan": macvlan.New,
		"none":    none.New,
		Overlay:   overlay.New,
	}
}
