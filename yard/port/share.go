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

// Sharable returns the ports that the endpoint gets of those it wants, and the conflicts of the others. A container
// decides how many it wants, so the work is linear in their number, and reads each owner once.
func (c *Choice) Sharable(tx store.Tx, want []modes.Port) (get []modes.Port, conflicts []book.Conflict, err error) {
	c.readClaims(tx)
	taken, owners := c.index(), map[book.Holder]string{}
	had := map[modes.Port]bool{}
	for _, p := range c.E.Ports {
		had[p] = true
	}
	for _, p := range want {
		if r, found := taken.claim(p); found {
			c.noteHolder(tx, r.Key)
			conflicts = append(conflicts, book.Conflict{Port: p, Claim: r.Key, Owner: ownerOf(tx, r.Key, owners)})
			continue
		}
		l, heard := taken.listener(p)
		if heard {
			conflicts = append(conflicts, book.Conflict{Port: p, Listener: l, Shadow: had[p]})
		}
		if !heard || had[p] {
			get = append(get, p)
		}
	}
	return get, conflicts, nil
}

// ownerOf names the owner of a claim, like book.Claimant.
func ownerOf(tx store.Tx, key string, known map[book.Holder]string) string {
	by, err := book.PortClaims.Get(tx, key)
	if err != nil {
		return book.Claimant(tx, key)
	}
	h := book.Holder(by)
	if known[h] == "" {
		known[h] = book.Claimant(tx, key)
	}
	return known[h]
}

// A number is a port of a protocol, whatever the address.
type number struct {
	proto string
	port  uint16
}

// An index finds who has a port.
type index struct {
	claims    map[number][]book.ClaimedRange
	ranges    []book.ClaimedRange // of several ports
	listeners map[number][]sandbox.Listener
}

func (c *Choice) index() index {
	x := index{claims: map[number][]book.ClaimedRange{}, listeners: map[number][]sandbox.Listener{}}
	for _, r := range c.Claims {
		if n := (number{r.Proto, r.First}); r.First == r.Last {
			x.claims[n] = append(x.claims[n], r)
		} else {
			x.ranges = append(x.ranges, r)
		}
	}
	for _, l := range c.Listeners {
		n := number{l.Proto, l.Port}
		x.listeners[n] = append(x.listeners[n], l)
	}
	return x
}

// claim returns the claim that another endpoint has to a port.
func (x index) claim(p modes.Port) (r book.ClaimedRange, found bool) {
	for _, rs := range [][]book.ClaimedRange{x.claims[number{p.Proto, p.HostPort}], x.ranges} {
		for _, r := range rs {
			if r.Proto == p.Proto && r.First <= p.HostPort && p.HostPort <= r.Last && sameAddr(r.Addr, p.HostIP) {
				return r, true
			}
		}
	}
	return r, false
}

// listener returns the socket of the host that receives what comes to a port.
func (x index) listener(p modes.Port) (l sandbox.Listener, found bool) {
	ls := x.listeners[number{p.Proto, p.HostPort}]
	at := slices.IndexFunc(ls, func(l sandbox.Listener) bool { return l.Receives(p.Proto, p.HostIP, p.HostPort, 1) })
	if at < 0 {
		return l, false
	}
	return ls[at], true
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
