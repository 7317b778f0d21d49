package trace

import (
	"netyard/kernel/explain"
	"netyard/kernel/lan"
	"netyard/modes"
	"netyard/yard"
)

// redirected says which other port of the container's a packet for one that it has published goes to.
func (t *tracer) redirected(p explain.Packet) {
	for _, port := range t.dstEndpoint.Ports {
		if port.Routed && port.HostPort != port.ContainerPort && port.Proto == t.proto && port.HostIP.Is4() == p.Dst.Is4() &&
			port.HostPort <= t.port && t.port-port.HostPort < max(port.Count, 1) {
			t.say("the container's own table sends it on to port %d (%s)", port.ContainerPort+(t.port-port.HostPort), port)
		}
	}
}

// wayTo is the link of the host that leads to the containers of a network: a bridge, or the host's own on their parent.
func wayTo(y *yard.Yard, n modes.Network) string {
	if br := y.BridgeOf(n); br != "" {
		return br
	}
	m, err := y.Mode(n.Mode)
	if err != nil {
		return ""
	}
	for _, o := range m.Objects(n) {
		if s, ok := o.(lan.Shim); ok {
			return s.Name
		}
	}
	return ""
}
