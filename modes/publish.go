package modes

import (
	"net"
	"net/netip"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/ports"
)

// Address is the endpoint's first address of a family; invalid: it has none.
func (e Endpoint) Address(v4 bool) netip.Addr {
	for _, a := range e.Addrs {
		if a.Addr().Is4() == v4 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// Guard binds a port of a bridge to what the endpoint was given.
func (e Endpoint) Guard(port string, mac net.HardwareAddr) bridge.PortGuard {
	g := bridge.PortGuard{Port: port, MAC: mac}
	for _, a := range e.Addrs {
		g.Addrs = append(g.Addrs, a.Addr())
	}
	return g
}

// Published are the elements that give ports of the host to the endpoint.
func (e Endpoint) Published() []core.Object {
	return append(e.PublishedTo(e.Address(true)), e.PublishedTo(e.Address(false))...)
}

// PublishedTo are those of them that lead to one of its addresses.
func (e Endpoint) PublishedTo(to netip.Addr) (objects []core.Object) {
	for _, p := range e.Ports {
		if p.Routed || !to.IsValid() || p.HostIP.Is4() != to.Is4() {
			continue
		}
		pub := ports.Publication{Proto: p.Proto, Host: p.HostIP, Port: p.HostPort, Count: p.Count, To: to, ToPort: p.ContainerPort}
		for _, el := range pub.Elements() {
			objects = append(objects, el.For(e.ID))
		}
	}
	return objects
}

// Redirects is what makes the ports that an endpoint publishes on its own addresses lead to where its programs listen;
// nothing where that is the same port.
func (e Endpoint) Redirects() []core.Object {
	r := ports.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS, Into: e.Into}
	for _, p := range e.Ports {
		if !p.Routed || p.HostPort == p.ContainerPort {
			continue
		}
		if a := e.Address(p.HostIP.Is4()); a.IsValid() {
			r.Ports = append(r.Ports, ports.Publication{Proto: p.Proto, Host: a, Port: p.HostPort, Count: p.Count, To: a, ToPort: p.ContainerPort})
		}
	}
	if len(r.Ports) == 0 {
		return nil
	}
	return []core.Object{r}
}
