package port

import (
	"slices"

	"netyard/modes"
	"netyard/yard/book"
)

// asked returns requests as they are recorded, runs of consecutive ports as one.
func asked(asks []book.PortRequest) (all []modes.AskedPort) {
	for _, a := range asks {
		one := modes.AskedPort{
			Proto: a.Proto, HostIP: a.HostIP, HostPort: a.HostPort, HostPortEnd: a.HostPortEnd,
			ContainerPort: a.ContainerPort, Count: 1,
		}
		if len(all) > 0 && follows(all[len(all)-1], one) {
			all[len(all)-1].Count++
		} else {
			all = append(all, one)
		}
	}
	return all
}

// follows reports whether a request for one port continues a run of requests for exact ports.
func follows(run, a modes.AskedPort) bool {
	exact := func(p modes.AskedPort) bool { return p.HostPort != 0 && p.HostPortEnd <= p.HostPort }
	return exact(run) && exact(a) && a.Proto == run.Proto && a.HostIP == run.HostIP &&
		a.HostPort == run.HostPort+run.Count && a.ContainerPort == run.ContainerPort+run.Count
}

// Asks returns what an engine asked of an endpoint, with the host ports that were chosen for it.
func Asks(asked []modes.AskedPort, had []modes.Port) (asks []book.PortRequest) {
	for _, a := range asked {
		for i := range a.Count {
			one := book.PortRequest{
				Proto: a.Proto, HostIP: a.HostIP, HostPort: a.HostPort, HostPortEnd: a.HostPortEnd,
				ContainerPort: a.ContainerPort + i,
			}
			at := slices.IndexFunc(had, func(p modes.Port) bool { return !p.Routed && answers(p, one) })
			switch {
			case a.HostPort > 0 && a.HostPortEnd <= a.HostPort:
				one.HostPort, one.HostPortEnd = a.HostPort+i, 0
			case at >= 0:
				one.HostPort, one.HostPortEnd = had[at].HostPort+one.ContainerPort-had[at].ContainerPort, 0
			}
			asks = append(asks, one)
		}
	}
	return asks
}

// answers reports whether a published port is of the protocol and the container's port that are asked for.
func answers(p modes.Port, a book.PortRequest) bool {
	return p.Proto == a.Proto && p.ContainerPort <= a.ContainerPort && a.ContainerPort-p.ContainerPort < p.Count
}

// Leaving returns an endpoint as it is after it has left its sandbox: with what the engine asked of it, and the chosen
// host ports, if the engine has not withdrawn that.
func Leaving(e modes.Endpoint) modes.Endpoint {
	left := book.WithoutSandbox(e)
	if len(e.Asked) > 0 {
		left.Left, left.Asked = e.Sandbox, asked(Asks(e.Asked, e.Ports))
	}
	return left
}
