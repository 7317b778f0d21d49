package book

import (
	"netyard/kernel/core"
	"netyard/modes"
)

// JoinedOf returns the endpoints that have joined a sandbox.
func JoinedOf(es []modes.Endpoint) (in []modes.Endpoint) {
	for _, e := range es {
		if Joined(e) {
			in = append(in, e)
		}
	}
	return in
}

// Joined reports whether an endpoint has joined a sandbox.
func Joined(e modes.Endpoint) bool { return e.Phase == modes.Ready && e.Sandbox != "" }

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

// Enterable reports whether an endpoint's sandbox is at its path: a process that got the number of a dead one may have
// another one there.
func (y *Book) Enterable(e modes.Endpoint) bool {
	if e.Sandbox == "" {
		return false
	}
	now, ok := y.Config.Kernel.NamespaceAt(e.Sandbox)
	return ok && (e.NS == core.NamespaceID{} || e.NS == now)
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
