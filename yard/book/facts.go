package book

import (
	"net"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/device"
	"netyard/kernel/lan"
	"netyard/modes"
)

// BridgeOf returns the bridge of a network; empty if it has none.
func (y *Book) BridgeOf(n modes.Network) string {
	name, _ := y.Bridge(n)
	return name
}

// Bridge returns the bridge of a network; own: netyard made it.
func (y *Book) Bridge(n modes.Network) (name string, own bool) {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return "", false
	}
	for _, o := range m.Objects(n) {
		switch o := o.(type) {
		case bridge.Bridge:
			return o.Name, true
		case bridge.HostBridge:
			return o.Name, false
		}
	}
	return "", false
}

// placed returns the objects of an endpoint; none if its mode is unknown.
func (y *Book) placed(n modes.Network, e modes.Endpoint) []core.Object {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return nil
	}
	objects, _ := m.Place(n, e)
	return objects
}

// HostLink returns the host's link for an endpoint: the host end of its veth pair, its card, or its parent; empty if
// there is none.
func (y *Book) HostLink(n modes.Network, e modes.Endpoint) string {
	for _, o := range y.placed(n, e) {
		switch o := o.(type) {
		case bridge.Veth:
			return o.Name
		case device.Device:
			return o.Name
		case lan.Child:
			return o.Parent.Name
		}
	}
	return ""
}

// HostEnd returns the host's end of an endpoint's veth pair; empty if it has none, as one whose link is made on the
// host's card: what is done to the parent is done to all that use it.
func (y *Book) HostEnd(n modes.Network, e modes.Endpoint) string {
	for _, o := range y.placed(n, e) {
		if v, ok := o.(bridge.Veth); ok {
			return v.Name
		}
	}
	return ""
}

// GuardedMAC returns the only hardware address from which the guard of an endpoint's port takes frames; nil: it has no
// guard, or is open.
func (y *Book) GuardedMAC(n modes.Network, e modes.Endpoint) net.HardwareAddr {
	for _, o := range y.placed(n, e) {
		if p, ok := o.(bridge.StaticPort); ok && !p.Open {
			return p.MAC
		}
	}
	return nil
}

// Objects describes the kernel objects of a network and its endpoints.
func (y *Book) Objects(n modes.Network) ([]string, error) {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return nil, err
	}
	es, err := y.EndpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	words := []string{}
	for _, o := range y.Plan().Objects(m, n, es...) {
		if l, ok := o.(bridge.Limits); ok && l.None() {
			continue
		}
		words = append(words, o.String())
	}
	return words, nil
}

// Addressless reports whether the endpoints of a mode have no addresses.
func (y *Book) Addressless(mode string) bool {
	return y.Traits(modes.Network{Mode: mode}).Addressless
}

// Gatewayless reports for each family whether a network needs no gateway unless one is requested.
func (y *Book) Gatewayless(n modes.Network) (v4, v6 bool) {
	t := y.Traits(n)
	return t.Addressless || t.Gatewayless.V4, t.Addressless || t.Gatewayless.V6
}
