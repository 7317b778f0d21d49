package port

import (
	"net/netip"
	"slices"

	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

func bothFamilies() modes.Families { return modes.Families{V4: true, V6: true} }

// A lead says for which families an endpoint publishes ports. Engines from 29 on choose a gateway for each family, and
// ask both endpoints for all ports; the default routes of the sandbox, which they set before, say which is which.
type lead struct {
	modes.Families
	// known: the sandbox has a default route by the endpoint. Older engines ask before there is a sandbox.
	known bool
}

// leadOf returns for which families an endpoint publishes ports when an engine has chosen it as gateway. A family
// without a default route is that of the endpoint that was chosen last.
func leadOf(y *book.Book, e modes.Endpoint) lead {
	unknown := lead{Families: bothFamilies()}
	routes, err := y.Config.Kernel.DefaultRoutes(e.Sandbox, e.NS)
	if err != nil {
		y.Config.Log.Warn("default routes of a sandbox not known: ports are published for all families",
			"endpoint", e.ID, "err", err)
		return unknown
	}
	var own, others modes.Families
	for _, r := range routes {
		to := &others
		if leadsTo(r, e) {
			to = &own
		}
		to.V4, to.V6 = to.V4 || !r.V6, to.V6 || r.V6
	}
	if own == (modes.Families{}) {
		return unknown
	}
	return lead{modes.Families{V4: own.V4 || !others.V4, V6: own.V6 || !others.V6}, true}
}

func leadsTo(r sandbox.DefaultRoute, e modes.Endpoint) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return slices.Contains(r.Addrs, p.Addr()) })
}

// A group is the endpoint of a request, with those in its sandbox whose ports it gets.
type group struct {
	*book.Held
	lead lead
	// from are the endpoints that lose ports to this one.
	from []*book.Held
	// near are the ports of all others.
	near []modes.Port
}

// others reads the other endpoints in the sandbox, and returns those that lose ports to this one.
func (g *group) others() (from []book.Holder, err error) {
	var all []modes.Endpoint
	err = g.Book.Config.Store.View(func(tx store.Tx) error {
		all, err = book.Neighbours(tx, g.Endpoint)
		return err
	})
	g.near = nil
	for _, o := range all {
		g.near = append(g.near, o.Ports...)
		if len(g.left(o)) < len(o.Ports) {
			from = append(from, book.Holder{Network: o.NetworkID, Endpoint: o.ID})
		}
	}
	return from, err
}

// left returns the ports that another endpoint of the sandbox keeps: not those that it was only lent, nor ports of the
// host of families whose gateway is this endpoint now.
func (g *group) left(o modes.Endpoint) []modes.Port {
	if o.Lent {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(o.Ports), func(p modes.Port) bool {
		return g.lead.known && !p.Routed && g.lead.Has(p.HostIP)
	})
}

// reclaim removes the ports from the records of the endpoints that lose them, and returns those as they are then.
func (g *group) reclaim(tx store.Tx) (now []modes.Endpoint, err error) {
	for _, h := range g.from {
		e := h.Endpoint
		e.Ports, e.Lent = g.left(e), false
		if err := h.PutIn(tx, e); err != nil {
			return nil, err
		}
		now = append(now, e)
	}
	return now, nil
}
