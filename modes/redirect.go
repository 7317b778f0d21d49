package modes

import "netyard/kernel"

// Redirects is what makes the ports that an endpoint publishes on its own addresses lead to where its programs listen; nothing where
// that is the same port.
func (e Endpoint) Redirects() []kernel.Object {
	r := kernel.Redirect{Endpoint: e.ID, Sandbox: e.Sandbox, NS: e.NS, Into: e.Into}
	for _, p := range e.Ports {
		if !p.Routed || p.HostPort == p.ContainerPort {
			continue
		}
		for _, a := range e.Addrs {
			if a.Addr().Is4() == p.HostIP.Is4() {
				r.Ports = append(r.Ports, kernel.Publication{
					Proto: p.Proto, Host: a.Addr(), Port: p.HostPort, Count: p.Count, To: a.Addr(), ToPort: p.ContainerPort,
				})
				break
			}
		}
	}
	if len(r.Ports) == 0 {
		return nil
	}
	return []kernel.Object{r}
}
