package reconcile

import (
	"fmt"

	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/port"
	"netyard/yard/source"
)

// sharedWithHost finds endpoints that have an address which the host also has on their link, since it got the address
// later, or netyard was older when they were made.
func sharedWithHost(y *yard.Yard) (out []book.Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		host, err := source.HostAddrs(y.Book, n)
		if err != nil {
			return nil, err
		}
		if n.Phase != modes.Ready || len(host) == 0 {
			continue
		}
		es, err := y.EndpointsOf(n.ID)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			for _, p := range e.Addrs {
				link, shared := host[p.Addr()]
				if !shared {
					continue
				}
				out = append(out, book.Finding{
					Kind: book.Fault, Network: book.Label(n),
					Text: fmt.Sprintf("address %s of %s on network %s is also the host's own, on %s; "+
						"recreate the container with another address", p.Addr(), book.Owned(e), book.Label(n), link),
				})
			}
		}
	}
	return out, nil
}

// portsWithoutAddress finds published ports that nobody reaches, since the host has lost the address.
func portsWithoutAddress(y *yard.Yard) (out []book.Finding, err error) {
	es, err := y.Endpoints()
	if err != nil {
		return nil, err
	}
	lost, err := port.LostAddrs(y.Book, es)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		for _, p := range e.Ports {
			if !lost[p.HostIP] || e.Phase != modes.Ready {
				continue
			}
			n, err := y.Network(e.NetworkID)
			if err != nil {
				continue // deleted meanwhile
			}
			out = append(out, book.Finding{
				Kind: book.Fault, Network: book.Label(n),
				Text: fmt.Sprintf("port %s of %s on network %s is unreachable: %s is not an address of this host any "+
					"more; add it to the host again, or recreate the container with another address in -p",
					p, book.Owned(e), book.Label(n), p.HostIP),
			})
		}
	}
	return out, nil
}
