package port

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netyard/kernel/core"
	"netyard/kernel/sandbox"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// A Request is a request to publish ports of an endpoint.
type Request struct {
	book.Holder

	// Ports replace the published ones.
	Ports []book.PortRequest
	// Lent: the ports move when the engine announces another endpoint of the container.
	Lent bool
	// Gateway: an engine has chosen the endpoint as gateway of its sandbox, for one family or both.
	Gateway bool
	// Left is a sandbox that the endpoint with these ports has left. They are for an endpoint of the same sandbox, if
	// one of its default routes leads there.
	Left string
	// Opened: only those are published which are open wherever the container's default route is.
	Opened bool
}

// Publish publishes the requested ports of an endpoint. It fails if another endpoint or program has one of them.
func Publish(ctx context.Context, j *book.LiveCheck, r Request) ([]modes.Port, error) {
	g, err := hold(ctx, j.Y, r)
	if err != nil {
		return nil, err
	}
	defer g.Release()
	y, h, was := j.Y, g.Held, g.Endpoint
	if r.Left != "" && (was.Sandbox != r.Left || !g.lead.known) {
		return was.Ports, nil
	}
	if h.Traits().Sharing != nil {
		Ignore(h, r.Ports)
		return was.Ports, nil
	}
	asks, own, err := expand(g, r)
	if err != nil {
		return nil, err
	}
	choice := &Choice{Y: y, E: was, Judge: j, Near: g.near}
	if err := choice.ReadHost(asks); err != nil {
		return nil, err
	}
	var lost []modes.Endpoint // as they are without the ports that this one gets
	err = h.Change("ports recorded", func(tx store.Tx, e *modes.Endpoint) error {
		if lost, err = g.reclaim(tx); err != nil {
			return err
		}
		if e.Ports, err = choice.Ports(tx, asks); err != nil {
			return err
		}
		e.Ports, e.Lent = append(e.Ports, own...), r.Lent && len(r.Ports) > 0
		e.Opened = r.Opened && len(e.Ports) > 0
		if e.Asked = nil; r.asGateway() {
			e.Asked = asked(r.Ports)
		}
		e.Beside, err = beside(tx, *e)
		return err
	})
	if err != nil {
		return nil, choice.Explain(err)
	}
	for i, l := range g.from {
		y.TellPorts(l.Network, l.Endpoint, lost[i], nil)
		if err := Program(ctx, l, l.Endpoint, lost[i]); err != nil {
			return nil, err
		}
	}
	is := h.Endpoint
	err = Program(ctx, h, was, is)
	if err == nil && len(r.Ports) > 0 && ctx.Err() != nil { // the caller has gone
		err = fmt.Errorf("publish ports of endpoint %s: %w", modes.Short(is.ID), ctx.Err())
	}
	if err != nil {
		back := h.Put("ports taken back", was)
		return nil, errors.Join(err, back, Program(context.WithoutCancel(ctx), h, is, was))
	}
	y.TellPorts(h.Network, was, is, nil)
	y.Config.Changed()
	return is.Ports, nil
}

// asGateway reports whether the ports are for the families whose default route leads to the endpoint.
func (r Request) asGateway() bool { return (r.Gateway || r.Left != "") && len(r.Ports) > 0 }

// hold holds the endpoint of a request, and the endpoints in the same sandbox whose ports it gets.
func hold(ctx context.Context, y *book.Book, r Request) (*group, error) {
	for of := []book.Holder{r.Holder}; ; {
		all, err := y.HoldAll(ctx, of...)
		if err != nil {
			return nil, err
		}
		g := &group{Held: all[0], from: all[1:], lead: lead{Families: bothFamilies()}}
		if g.Endpoint.ID == "" {
			g.Release()
			return nil, book.NoEndpoint(r.Network, r.Endpoint)
		}
		if r.asGateway() && g.Endpoint.Sandbox != "" {
			g.lead = leadOf(y, g.Endpoint)
		}
		if g.Endpoint.Lent || r.Opened || len(r.Ports) == 0 {
			return g, nil
		}
		now, err := g.others()
		if err == nil && slices.Equal(now, of[1:]) {
			return g, nil
		}
		g.Release()
		if err != nil {
			return nil, err
		}
		of = append(of[:1:1], now...)
	}
}

// Program changes the kernel from the former state of an endpoint to the current one.
func Program(ctx context.Context, h *book.Held, was, is modes.Endpoint) error {
	y := h.Book
	gone := without(y.Plan().Objects(h.Mode, h.Network, was), y.Plan().Objects(h.Mode, h.Network, is))
	if err := y.Config.Kernel.Remove(gone...); err != nil {
		return err
	}
	y.Config.Step("after ports withdrawn")
	if is.Sandbox == "" {
		return nil
	}
	_, err := y.Plan().Attach(ctx, h.Mode, h.Network, is)
	y.Config.Step("after ports published")
	return err
}

// without returns the objects of the old list that are not in the new one.
func without(old, now []core.Object) (gone []core.Object) {
	still := map[string]bool{}
	for _, o := range now {
		still[o.String()] = true
	}
	for _, o := range old {
		if !still[o.String()] {
			gone = append(gone, o)
		}
	}
	return gone
}

// A Choice chooses host ports for the requests of an endpoint.
type Choice struct {
	Y *book.Book
	E modes.Endpoint
	// first and last are the host's range for requests of any port.
	first, last uint16
	Listeners   []sandbox.Listener
	Claims      []book.ClaimedRange
	chosen      []modes.Port
	// Reserver finds the process that listens on the ports only to reserve them (book.AttachRequest); may be nil.
	Reserver func() (pid int)
	Judge    *book.LiveCheck
	// Near are the ports of other endpoints in the sandbox: a request for any port gets the same for each family.
	Near []modes.Port
	// Holders are the endpoints that have requested ports.
	Holders []book.Holder
}

// ReadHost checks the requested addresses and reads the host's listeners. It must not be called in a transaction.
func (c *Choice) ReadHost(asks []book.PortRequest) (err error) {
	if len(asks) == 0 {
		return nil
	}
	for _, a := range asks {
		if a.HostIP.IsUnspecified() {
			continue
		}
		ok, err := c.Y.Config.Kernel.HasAddr(a.HostIP)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("publish %s: %s is not an address of this host", a, a.HostIP)
		}
	}
	var protos []string
	for _, a := range asks {
		protos = append(protos, a.Proto)
		if a.HostPort > 0 || c.last > 0 {
			continue
		}
		if c.first, c.last, err = c.Y.Config.Kernel.EphemeralPorts(); err != nil {
			return err
		}
	}
	c.Listeners, err = c.Y.Config.Kernel.Listeners(protos...)
	return err
}

// Ports chooses a port for each request and joins consecutive ones to ranges.
func (c *Choice) Ports(tx store.Tx, asks []book.PortRequest) ([]modes.Port, error) {
	if len(asks) == 0 {
		return nil, nil
	}
	c.readClaims(tx)
	for _, one := range chains(asks) {
		if err := c.choose(tx, one); err != nil {
			return nil, &book.HeldError{Err: err, Holders: c.Holders}
		}
	}
	// A request for a range gets the first port that no live endpoint has.
	if unjudged := c.Unjudged(); len(unjudged) > 0 {
		return nil, &book.HeldError{Err: book.ErrUnjudged, Holders: unjudged}
	}
	slices.SortFunc(c.chosen, ComparePorts)
	return Join(c.chosen), nil
}

// readClaims reads the port claims of all other endpoints.
func (c *Choice) readClaims(tx store.Tx) {
	own := map[string]bool{}
	for _, p := range c.E.Ports {
		own[book.ClaimOf(p).String()] = true
	}
	for _, key := range book.PortClaims.Keys(tx, "") {
		if r, ok := book.ParseClaim(key); ok && !own[key] {
			c.Claims = append(c.Claims, r)
		}
	}
}

// conflict returns an error that names the owner if a port of a range is in use, otherwise nil.
func (c *Choice) conflict(tx store.Tx, proto string, a netip.Addr, first, count uint16) (why error) {
	for _, r := range c.Claims {
		if r.Proto == proto && r.First <= first+count-1 && first <= r.Last && sameAddr(r.Addr, a) {
			c.noteHolder(tx, r.Key)
			return fmt.Errorf("%w: port %d/%s of the host is published by %s",
				book.ErrInUse, max(first, r.First), proto, book.Claimant(tx, r.Key))
		}
	}
	for _, p := range c.chosen {
		overlap := p.HostPort <= first+count-1 && first <= p.HostPort+p.Count-1
		if p.Proto == proto && overlap && sameAddr(p.HostIP, a) {
			return fmt.Errorf("%w: port %d/%s of the host is asked for twice",
				book.ErrInUse, max(first, p.HostPort), proto)
		}
	}
	for _, l := range c.Listeners {
		if l.Receives(proto, a, first, count) && (c.Reserver == nil || !l.OpenIn(c.Reserver())) {
			return listenerError{l}
		}
	}
	return nil
}

// A listenerError says that a program of the host listens on a port. To find the program takes a scan of all processes,
// so only Explain does it.
type listenerError struct{ sandbox.Listener }

func (e listenerError) Error() string {
	return fmt.Sprintf("port %d/%s of the host is in use", e.Port, e.Proto)
}

func (listenerError) Unwrap() error { return book.ErrInUse }

// Explain adds the name of the program that listens on the port. It must not be called in a transaction.
func (*Choice) Explain(err error) error {
	if l := (listenerError{}); errors.As(err, &l) {
		return fmt.Errorf("%w by %s", err, l.Owner())
	}
	return err
}

// sameAddr reports whether a packet can be for both addresses that ports are published on.
func sameAddr(a, b netip.Addr) bool {
	return a == b || a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified())
}

// noteHolder adds the endpoint that has a claim to Holders.
func (c *Choice) noteHolder(tx store.Tx, key string) {
	by, err := book.PortClaims.Get(tx, key)
	if h := book.Holder(by); err == nil && !slices.Contains(c.Holders, h) {
		c.Holders = append(c.Holders, h)
	}
}

// Unjudged returns the holders that the Judge has not found to be live.
func (c *Choice) Unjudged() []book.Holder {
	if c.Judge == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.Holders), func(h book.Holder) bool { return c.Judge.Living[h] })
}
