package bridge

import (
	"cmp"
	"slices"

	"netyard/kernel/core"
	kports "netyard/kernel/ports"
	"netyard/modes"
)

// trustedPorts returns what opens an endpoint's published ports, at its own addresses, to the interfaces of the host
// that the network trusts. Docker's bridge also opens ports that are published on one address of the host, or on
// loopback (moby, libnetwork/drivers/bridge/internal/nftabler/endpoint.go).
func trustedPorts(n modes.Network, e modes.Endpoint) (objects []core.Object) {
	links := trusted.Of(n)
	if len(links) == 0 {
		return nil
	}
	for _, p := range insidePorts(e) {
		for _, link := range links {
			objects = append(objects, p.From(link).For(e.ID))
		}
	}
	return objects
}

// insidePorts returns the ports of the container that ports of the host lead to, of which no two overlap.
func insidePorts(e modes.Endpoint) (apart []kports.OpenPort) {
	var all []kports.OpenPort
	for _, p := range e.Ports {
		if to := e.Address(p.HostIP.Is4()); !p.Routed && to.IsValid() {
			all = append(all, kports.OpenPort{Proto: p.Proto, Addr: to, Port: p.ContainerPort, Count: max(p.Count, 1)})
		}
	}
	slices.SortFunc(all, func(a, b kports.OpenPort) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	for _, p := range all {
		if len(apart) > 0 {
			last := &apart[len(apart)-1]
			if last.Proto == p.Proto && last.Addr == p.Addr && int(p.Port) <= int(last.Port)+int(last.Count) {
				last.Count = max(last.Count, p.Port+p.Count-last.Port)
				continue
			}
		}
		apart = append(apart, p)
	}
	return apart
}
