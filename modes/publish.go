package modes

import (
	"net"
	"net/netip"

	"netyard/kernel/bridge"
	"netyard/kernel/core"
	"netyard/kernel/ports"
)

// Address returns the endpoint's first address of a family; invalid: it has none.
func (e Endpoint) Address(v4 bool) netip.Addr {
	for _, a := range e.Addrs {
		if a.Addr().Is4() == v4 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// Guard returns the rules that drop what the endpoint may not send on its port of a bridge.
func (e Endpoint) Guard(port string, mac net.HardwareAddr) bridge.PortGuard {
	g := bridge.PortGuard{Port: port, MAC: mac}
	for _, a := range e.Addrs {
		g.Addrs = append(g.Addrs, a.Addr())
	}
	return g
}

// Published returns the elements that publish the endpoint's ports on addresses of the host.
func (e Endpoint) Published() []core.Object {
	return append(e.PublishedTo(e.Address(true)), e.PublishedTo(e.Address(false))...)
}

// PublishedTo returns those of them that lead to one of the endpoint's addresses.
func (e Endpoint) PublishedTo(to netip.Addr) (objects []core.Object) {
	for _, p := range e.Ports {
		if p.Routed || !to.IsValid() || p.HostIP.Is4() != to.Is4() {
			continue
		}
		pub := ports.Publication{
			Proto: p.Proto, Host: p.HostIP, Port: p.HostPort, Count: p.Count, To: to, ToPort: p.ContainerPort,
		}
		for _, el := range pub.Elements() {
			objects = append(objects, el.For(e.ID))
		}
	}
	return objects
}

// Redirects returns what redirects ports that are published on the endpoint's own addresses to the ports on which its
// programs listen. It is empty where they are the same.
func (e Endpoint) Redirects() []core.Object {
	r := ports.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS, Into: e.Into}
	for _, p := range e.Ports {
		if !p.Routed || p.HostPort == p.ContainerPort {
			continue
		}
		if a := e.Address(p.HostIP.Is4()); a.IsValid() {
			r.Ports = append(r.Ports, ports.Publication{
				Proto: p.Proto, Host: a, Port: p.HostPort, Count: p.Count, To: a, ToPort: p.ContainerPort,
			})
		}
	}
	if len(r.Ports) == 0 {
		return nil
	}
	return []core.Object{r}
}
