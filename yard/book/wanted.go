package book

import (
	"netyard/kernel/core"
	"netyard/modes"
)

// JoinedOf returns the endpoints that have joined a sandbox.
func JoinedOf(es []modes.Endpoint) (in []modes.Endpoint) {
	for _, e := range es {
		if e.Phase == modes.Ready && e.Sandbox != "" {
			in = append(in, e)
		}
	}
	return in
}

// Dead reports whether an endpoint's sandbox certainly no longer exists.
func (y *Book) Dead(e modes.Endpoint) bool {
	switch {
	case e.Sandbox == "" || e.BootID == y.Config.BootID && !e.Seen:
		return false
	case e.BootID != y.Config.BootID:
		return true
	case e.NS == core.NamespaceID{}:
		return !y.Config.Kernel.IsNamespace(e.Sandbox)
	}
	now, ok := y.Config.Kernel.NamespaceAt(e.Sandbox)
	return !ok || now != e.NS // a process of the same number, or a file of the same name, with another namespace
}

// Unplugged reports whether no sandbox has an endpoint's link, so that it can be removed.
func (y *Book) Unplugged(m modes.Mode, n modes.Network, e modes.Endpoint) (bool, error) {
	if y.Dead(e) {
		return true, nil
	}
	objects, _ := m.Place(n, e)
	for _, o := range objects {
		if plugged, err := y.Config.Kernel.Plugged(o); plugged || err != nil {
			return false, err
		}
	}
	return true, nil
}
