package trace

import (
	"netyard/kernel/explain"
	"netyard/kernel/lan"
	"netyard/modes"
	"netyard/yard"
)

// redirected adds a step for a published port that the container's own table redirects to another of its ports.
func (t *tracer) redirected(p explain.Packet) {
	for _, port := range t.dstEndpoint.Ports {
		redirects := port.Routed && port.HostPort != port.ContainerPort
		applies := port.Proto == t.proto && port.HostIP.Is4() == p.Dst.Is4() &&
			port.HostPort <= t.port && t.port-port.HostPort < max(port.Count, 1)
		if redirects && applies {
			to := port.ContainerPort + (t.port - port.HostPort)
			t.say("the container's own table redirects it to port %d (%s)", to, port)
		}
	}
}

// linkTo returns the host's link to the containers of a network: a bridge, or the host's own link on their parent.
func linkTo(y *yard.Yard, n modes.Network) string {
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
