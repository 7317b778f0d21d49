package modes

import (
	"slices"
	"strings"
)

// CNIMode returns the mode of a network that is described with keys of the upstream CNI plugins, which have one plugin
// for each mode (containernetworking/plugins, main/bridge, main/macvlan, main/ipvlan).
func CNIMode(master, mode string) string {
	switch {
	case master == "":
		return DefaultMode
	case strings.HasPrefix(mode, "l"): // l2, l3, l3s
		return "ipvlan"
	}
	return "macvlan"
}

// CNI returns the option of a mode that means the same as a key of the upstream CNI plugins; ok is false if there is
// none.
func (t *Table) CNI(mode, key string) (name string, ok bool) {
	at := slices.IndexFunc(t.rows, func(o Option) bool { return o.CNI == key && slices.Contains(o.Modes, mode) })
	if at < 0 {
		return "", false
	}
	return t.rows[at].Name, true
}

// Knows says whether there is a mode of that name.
func (t *Table) Knows(mode string) bool { return slices.Contains(t.row(modeOption).Values, mode) }
