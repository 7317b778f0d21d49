package port

import (
	"net/netip"

	"netyard/modes"
	"netyard/yard/book"
)

// LostAddrs returns the addresses that ports are published on and that the host does not have any more. Their elements
// stay in the kernel, so that the ports are back as soon as the addresses are.
func LostAddrs(y *book.Book, es []modes.Endpoint) (lost map[netip.Addr]bool, err error) {
	lost = map[netip.Addr]bool{}
	for _, e := range es {
		for _, p := range e.Ports {
			if _, asked := lost[p.HostIP]; asked || p.Routed || p.HostIP.IsUnspecified() {
				continue
			}
			has, err := y.Config.Kernel.HasAddr(p.HostIP)
			if err != nil {
				return nil, err
			}
			lost[p.HostIP] = !has
		}
	}
	return lost, nil
}
