package port

import (
	"fmt"
	"slices"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/event"
)

// Sharable returns the ports that the endpoint gets of those it wants, and the conflicts of the others.
func (c *Choice) Sharable(tx store.Tx, want []modes.Port) (get []modes.Port, conflicts []book.Conflict, err error) {
	c.readClaims(tx)
	for _, p := range want {
		had := slices.Contains(c.E.Ports, p)
		at := slices.IndexFunc(c.Claims, func(r book.ClaimedRange) bool {
			return r.Proto == p.Proto && r.First <= p.HostPort && p.HostPort <= r.Last && sameAddr(r.Addr, p.HostIP)
		})
		heard := slices.IndexFunc(c.Listeners, func(l sandbox.Listener) bool {
			return l.Receives(p.Proto, p.HostIP, p.HostPort, 1)
		})
		switch {
		case at >= 0:
			c.noteHolder(tx, c.Claims[at].Key)
			key := c.Claims[at].Key
			conflicts = append(conflicts, book.Conflict{Port: p, Claim: key, Owner: book.Claimant(tx, key)})
			continue
		case heard >= 0:
			conflicts = append(conflicts, book.Conflict{Port: p, Listener: c.Listeners[heard], Shadow: had})
		}
		if heard < 0 || had {
			get = append(get, p)
		}
	}
	return get, conflicts, nil
}

// Ignore logs and tells that requests to publish ports are ignored on a network that shares the host's ports. An engine
// does the same with --network host.
func Ignore(h *book.Held, asks []book.PortRequest) {
	y, n, e := h.Book, h.Network, h.Endpoint
	for _, a := range asks {
		y.Config.Log.Warn("published port ignored: the container shares the host's addresses",
			"network", n.Name, "network_id", n.ID, "endpoint", e.ID, "container", e.Container.Name, "port", a.String())
		v := book.About(event.PortIgnored, n, e, fmt.Sprintf(
			"-p %s of %s is ignored: the container shares the host's addresses, and its ports are those it listens on",
			a, book.Owned(e)))
		v.Port = a.String()
		y.Tell(v)
	}
}
