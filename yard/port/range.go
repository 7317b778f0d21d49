package port

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// A chain is a run of requests for ports that are consecutive on the host and in the container, or one request for any
// port, on one or more addresses. The same ports are chosen on all of them.
type chain struct {
	ask   book.PortRequest
	count uint16
	hosts []netip.Addr
}

// chains joins requests to chains, since an engine splits ranges before it sends them.
func chains(asks []book.PortRequest) (all []*chain) {
	sorted := slices.Clone(asks)
	slices.SortStableFunc(sorted, func(a, b book.PortRequest) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.HostPort, b.HostPort),
			cmp.Compare(a.ContainerPort, b.ContainerPort))
	})
	for _, a := range sorted {
		if len(all) > 0 {
			if last := all[len(all)-1]; last.followedBy(a) {
				last.count++
				continue
			}
		}
		all = append(all, &chain{ask: a, count: 1, hosts: []netip.Addr{a.HostIP}})
	}
	var merged []*chain
	for _, c := range all {
		at := slices.IndexFunc(merged, func(m *chain) bool { return m.equalExceptHosts(c) })
		if at < 0 {
			merged = append(merged, c)
			continue
		}
		merged[at].hosts = append(merged[at].hosts, c.hosts...)
	}
	// Requests for a certain port come first, so that a request for any port does not take what another one needs.
	slices.SortStableFunc(merged, func(a, b *chain) int { return cmp.Compare(b.fixed(), a.fixed()) })
	return merged
}

// fixed returns how narrow a request is: 0 for any port, 1 for a port of a range, 2 for exact ports.
func (c *chain) fixed() int {
	switch {
	case c.ask.HostPort == 0:
		return 0
	case c.ask.HostPortEnd > c.ask.HostPort:
		return 1
	}
	return 2
}

// followedBy reports whether a request continues the chain.
func (c *chain) followedBy(a book.PortRequest) bool {
	exact := func(x book.PortRequest) bool { return x.HostPort != 0 && x.HostPortEnd <= x.HostPort }
	return exact(c.ask) && exact(a) && a.Proto == c.ask.Proto && a.HostIP == c.ask.HostIP &&
		a.HostPort == c.ask.HostPort+c.count && a.ContainerPort == c.ask.ContainerPort+c.count
}

// equalExceptHosts reports whether two chains differ only in the host's address, and do differ in it.
func (c *chain) equalExceptHosts(o *chain) bool {
	a, b := c.ask, o.ask
	a.HostIP, b.HostIP = netip.Addr{}, netip.Addr{}
	return a == b && c.count == o.count && !slices.Contains(c.hosts, o.hosts[0])
}

// choose chooses the host ports of a chain.
func (c *Choice) choose(tx store.Tx, one *chain) error {
	a := one.ask
	if a.HostPort != 0 && a.HostPortEnd <= a.HostPort {
		if why := c.conflictOnAny(tx, one, a.HostPort); why != nil {
			return fmt.Errorf("publish %s: %w", a, why)
		}
		c.assign(one, a.HostPort)
		return nil
	}
	named := c.Holders
	first, last := a.HostPort, a.HostPortEnd
	if a.HostPort == 0 {
		first, last = c.first, c.last
		if had, ok := c.current(one); ok && c.conflictOnAny(tx, one, had) == nil { // a repeated request keeps its port
			c.assign(one, had)
			return nil
		}
	}
	for port := int(first); port <= int(last); port++ {
		if c.conflictOnAny(tx, one, uint16(port)) == nil {
			c.assign(one, uint16(port))
			if a.HostPort == 0 { // a request for any port needs no port of a dead endpoint
				c.Holders = named
			}
			return nil
		}
	}
	return fmt.Errorf("publish %s: no port from %d to %d of the host is free", a, first, last)
}

// current returns the host port that the endpoint, or another one in its sandbox, has for the request already.
func (c *Choice) current(one *chain) (uint16, bool) {
	for _, p := range c.E.Ports {
		if p.Proto == one.ask.Proto && slices.Contains(one.hosts, p.HostIP) &&
			p.ContainerPort <= one.ask.ContainerPort && one.ask.ContainerPort-p.ContainerPort < p.Count {
			return p.HostPort + one.ask.ContainerPort - p.ContainerPort, true
		}
	}
	at := slices.IndexFunc(c.Near, func(p modes.Port) bool { return !p.Routed && answers(p, one.ask) })
	if at >= 0 {
		return c.Near[at].HostPort + one.ask.ContainerPort - c.Near[at].ContainerPort, true
	}
	return 0, false
}

func (c *Choice) conflictOnAny(tx store.Tx, one *chain, port uint16) error {
	for _, host := range one.hosts {
		if why := c.conflict(tx, one.ask.Proto, host, port, one.count); why != nil {
			return why
		}
	}
	return nil
}

func (c *Choice) assign(one *chain, port uint16) {
	for _, host := range one.hosts {
		c.chosen = append(c.chosen, modes.Port{
			Proto: one.ask.Proto, HostIP: host, HostPort: port, ContainerPort: one.ask.ContainerPort, Count: one.count,
		})
	}
}

// ComparePorts orders ports by protocol, address and number.
func ComparePorts(a, b modes.Port) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.HostPort, b.HostPort))
}

// Join joins consecutive ports to ranges.
func Join(ports []modes.Port) (all []modes.Port) {
	for _, p := range ports {
		if len(all) > 0 {
			last := &all[len(all)-1]
			if last.Proto == p.Proto && last.HostIP == p.HostIP &&
				p.HostPort == last.HostPort+last.Count && p.ContainerPort == last.ContainerPort+last.Count {
				last.Count += p.Count
				continue
			}
		}
		all = append(all, p)
	}
	return all
}
