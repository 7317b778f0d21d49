package yard

import (
	"netyard/kernel"
	"netyard/modes"
)

// State is how an endpoint is doing, in a word.
func (y *Yard) State(e modes.Endpoint) string {
	switch {
	case e.Phase == modes.Deleting:
		return "leaving"
	case e.Phase == modes.Pending:
		return "joining"
	case e.Sandbox == "":
		return "created"
	case y.dead(e):
		return "dead"
	case e.Fenced != "":
		return "fenced"
	}
	return "up"
}

// HostLink is the name of the link by which the host sees the endpoint: its own, or the parent that it is on; empty when there is none.
func (y *Yard) HostLink(n modes.Network, e modes.Endpoint) string {
	m, err := y.mode(n.Mode)
	if err != nil {
		return ""
	}
	for _, o := range m.Objects(n, []modes.Endpoint{e}) {
		switch o := o.(type) {
		case kernel.Veth:
			return o.Name
		case kernel.Device:
			return o.Name
		case kernel.Child:
			return o.Parent.Name
		}
	}
	return ""
}

// Objects says in words what a network and its endpoints have in the kernel.
func (y *Yard) Objects(n modes.Network) ([]string, error) {
	m, err := y.mode(n.Mode)
	if err != nil {
		return nil, err
	}
	es, err := y.endpointsOf(n.ID)
	if err != nil {
		return nil, err
	}
	words := []string{}
	for _, o := range m.Objects(n, es) {
		if l, ok := o.(kernel.Limits); ok && l.None() {
			continue
		}
		words = append(words, o.String())
	}
	return words, nil
}

// Addressless says whether the endpoints of a mode have no addresses at all.
func (y *Yard) Addressless(mode string) bool {
	_, yes := y.c.Modes[mode].(modes.Addressless)
	return yes
}

// Knows says whether there is a mode of that name.
func (y *Yard) Knows(mode string) bool {
	_, yes := y.c.Modes[mode]
	return yes
}

// Gatewayless says for each family whether the host needs no address on a network.
func (y *Yard) Gatewayless(n modes.Network) (v4, v6 bool) {
	if y.Addressless(n.Mode) {
		return true, true
	}
	if g, ok := y.c.Modes[n.Mode].(modes.Gatewayless); ok {
		return g.Gatewayless(n)
	}
	return false, false
}
