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

// A chain is a run of asks for ports that follow each other on the host and in the container, or one ask for any port,
// on one or more addresses: the same ports are chosen on all of them.
type chain struct {
	ask   book.Ask
	count uint16
	hosts []netip.Addr
}

// chains puts asks together. An engine takes ranges apart before it sends them.
func chains(asks []book.Ask) (all []*chain) {
	sorted := slices.Clone(asks)
	slices.SortStableFunc(sorted, func(a, b book.Ask) int {
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
		at := slices.IndexFunc(merged, func(m *chain) bool { return m.sameBut(c) })
		if at < 0 {
			merged = append(merged, c)
			continue
		}
		merged[at].hosts = append(merged[at].hosts, c.hosts...)
	}
	// Who asks for a port goes before who takes any, or the second could take what the first asks for.
	slices.SortStableFunc(merged, func(a, b *chain) int { return cmp.Compare(b.fixed(), a.fixed()) })
	return merged
}

func (c *chain) fixed() int {
	switch {
	case c.ask.HostPort == 0:
		return 0
	case c.ask.HostPortEnd > c.ask.HostPort:
		return 1
	}
	return 2
}

func (c *chain) followedBy(a book.Ask) bool {
	exact := func(x book.Ask) bool { return x.HostPort != 0 && x.HostPortEnd <= x.HostPort }
	return exact(c.ask) && exact(a) && a.Proto == c.ask.Proto && a.HostIP == c.ask.HostIP &&
		a.HostPort == c.ask.HostPort+c.count && a.ContainerPort == c.ask.ContainerPort+c.count
}

// sameBut says whether two chains differ in the host's address only, and those addresses are different.
func (c *chain) sameBut(o *chain) bool {
	a, b := c.ask, o.ask
	a.HostIP, b.HostIP = netip.Addr{}, netip.Addr{}
	return a == b && c.count == o.count && !slices.Contains(c.hosts, o.hosts[0])
}

// chain chooses the ports of a chain.
func (c *Choice) chain(tx store.Tx, one *chain) error {
	a := one.ask
	if a.HostPort != 0 && a.HostPortEnd <= a.HostPort {
		if why := c.takenOnAny(tx, one, a.HostPort); why != nil {
			return fmt.Errorf("publish %s: %w", a, why)
		}
		c.give(one, a.HostPort)
		return nil
	}
	named := c.Holders
	first, last := a.HostPort, a.HostPortEnd
	if a.HostPort == 0 {
		first, last = c.first, c.last
		if had, ok := c.had(one); ok && c.takenOnAny(tx, one, had) == nil { // said again, it stays what it is
			c.give(one, had)
			return nil
		}
	}
	for port := int(first); port <= int(last); port++ {
		if c.takenOnAny(tx, one, uint16(port)) == nil {
			if c.give(one, uint16(port)); a.HostPort == 0 { // who wants any port wants nobody's
				c.Holders = named
			}
			return nil
		}
	}
	return fmt.Errorf("publish %s: no port from %d to %d of the host is free", a, first, last)
}

// had is the port of the host that an endpoint has already for what it asks.
func (c *Choice) had(one *chain) (uint16, bool) {
	for _, p := range c.E.Ports {
		if p.Proto == one.ask.Proto && slices.Contains(one.hosts, p.HostIP) && p.ContainerPort <= one.ask.ContainerPort &&
			one.ask.ContainerPort-p.ContainerPort < p.Count {
			return p.HostPort + one.ask.ContainerPort - p.ContainerPort, true
		}
	}
	return 0, false
}

func (c *Choice) takenOnAny(tx store.Tx, one *chain, port uint16) error {
	for _, host := range one.hosts {
		if why := c.taken(tx, one.ask.Proto, host, port, one.count); why != nil {
			return why
		}
	}
	return nil
}

func (c *Choice) give(one *chain, port uint16) {
	for _, host := range one.hosts {
		c.given = append(c.given, modes.Port{
			Proto: one.ask.Proto, HostIP: host, HostPort: port, ContainerPort: one.ask.ContainerPort, Count: one.count,
		})
	}
}

// ComparePorts orders ports.
func ComparePorts(a, b modes.Port) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP), cmp.Compare(a.HostPort, b.HostPort))
}

// Join makes one range of ports that follow each other.
func Join(ports []modes.Port) (all []modes.Port) {
	for _, p := range ports {
		if len(all) > 0 {
			last := &all[len(all)-1]
			if last.Proto == p.Proto && last.HostIP == p.HostIP && p.HostPort == last.HostPort+last.Count && p.ContainerPort == last.ContainerPort+last.Count {
				last.Count += p.Count
				continue
			}
		}
		all = append(all, p)
	}
	return all
}
