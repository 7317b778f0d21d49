package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// firstWait is how long the first answer is waited for before the question is put again; each time twice as long.
	// RFC 2131 begins with 4 s: an engine has not that much patience, and a LAN answers in milliseconds.
	firstWait = 500 * time.Millisecond
	// maxTries bounds the offers that are declined because somebody has the address.
	maxTries = 4
)

// A Client is one client on one link.
type Client struct {
	Transport
	Identity
	// Now tells the time; nil: time.Now.
	Now func() time.Time
	// Probe: before an address is taken, the link is asked whether somebody has it.
	Probe bool
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// A Wish is what a client would like to be offered.
type Wish struct {
	// Addr is the address it asks for; invalid: any.
	Addr netip.Addr
	// Must: no other will do.
	Must bool
	// Offered is called with what a server offers before the client takes it up; an error ends it.
	Offered func(Lease) error
	// Declined is called with what was given back since somebody has it; nil: nobody wants to know.
	Declined func(l Lease, holder net.HardwareAddr)
}

// Acquire gets a lease: DISCOVER, OFFER, REQUEST, ACK (RFC 2131, 3.1). A server that takes its offer back, and an
// address that somebody has, make it begin again.
func (c *Client) Acquire(ctx context.Context, w Wish) (l Lease, err error) {
	for range maxTries {
		if l, err = c.acquire(ctx, w); err == nil {
			return l, nil
		}
		if !errors.Is(err, ErrRefused) && !errors.Is(err, ErrConflict) || w.Must || ctx.Err() != nil {
			return l, err
		}
		w.Addr = netip.Addr{}
	}
	return l, err
}

func (c *Client) acquire(ctx context.Context, w Wish) (Lease, error) {
	m, err := c.message(dhcpv4.MessageTypeDiscover)
	if err != nil {
		return Lease{}, err
	}
	m.SetBroadcast() // it has no address yet, and not every link lets through what is for another hardware address
	if w.Addr.IsValid() {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(w.Addr.AsSlice()))
	}
	var other netip.Addr
	offer, err := c.ask(ctx, question{m: m, fits: func(l Lease, kind dhcpv4.MessageType) bool {
		if kind == dhcpv4.MessageTypeOffer && w.Must && l.Addr.Addr() != w.Addr {
			other = l.Addr.Addr() // another server may have the right one
			return false
		}
		return kind == dhcpv4.MessageTypeOffer
	}})
	if errors.Is(err, ErrNoServer) && other.IsValid() {
		return offer, fmt.Errorf("%w: asked for %s, offered %s", ErrOtherAddress, w.Addr, other)
	}
	if err != nil {
		return offer, err
	}
	if w.Offered != nil {
		if err := w.Offered(offer); err != nil {
			return offer, err
		}
	}
	l, err := c.take(ctx, m.TransactionID, offer)
	if err != nil || !c.Probe {
		return l, err
	}
	return l, c.probe(ctx, l, w.Declined)
}

// take takes an offer up.
func (c *Client) take(ctx context.Context, id dhcpv4.TransactionID, offer Lease) (Lease, error) {
	m, err := c.message(dhcpv4.MessageTypeRequest)
	if err != nil {
		return Lease{}, err
	}
	m.TransactionID = id
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.Addr.Addr().AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(offer.Server.AsSlice()))
	return c.ask(ctx, question{m: m, of: offer.Server, fits: func(l Lease, kind dhcpv4.MessageType) bool {
		return kind == dhcpv4.MessageTypeAck && l.Server == offer.Server
	}})
}

// probe declines an address that somebody has.
func (c *Client) probe(ctx context.Context, l Lease, declined func(Lease, net.HardwareAddr)) error {
	holder, err := c.InUse(ctx, l.Addr.Addr())
	if err != nil || holder == nil {
		return err
	}
	if declined != nil {
		declined(l, holder)
	}
	conflict := fmt.Errorf("%w %s: %s answers for it", ErrConflict, l.Addr.Addr(), holder)
	m, err := c.message(dhcpv4.MessageTypeDecline)
	if err != nil {
		return errors.Join(conflict, err)
	}
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(l.Addr.Addr().AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice()))
	return errors.Join(conflict, c.Broadcast(m.ToBytes()))
}

// Extend asks for more time: of the server whose lease it is while there is time (RENEWING), and then of everyone
// (REBINDING).
func (c *Client) Extend(ctx context.Context, l Lease) (Lease, error) {
	m, err := c.message(dhcpv4.MessageTypeRequest)
	if err != nil {
		return Lease{}, err
	}
	m.ClientIPAddr = l.Addr.Addr().AsSlice()
	q := question{m: m, fits: func(n Lease, kind dhcpv4.MessageType) bool {
		return kind == dhcpv4.MessageTypeAck && n.Addr.Addr() == l.Addr.Addr()
	}}
	if s := l.State(c.now()); s == Bound || s == Renewing {
		q.of, q.from = l.Server, l.Addr.Addr()
	}
	return c.ask(ctx, q)
}

// Release gives a lease back. No answer comes (RFC 2131, 4.4.6), so the link is asked something that the server does
// answer, before, since a fresh link may not yet carry frames, and behind it: the link can go when that is answered.
func (c *Client) Release(ctx context.Context, l Lease) error {
	m, err := c.message(dhcpv4.MessageTypeRelease)
	if err != nil {
		return err
	}
	m.ClientIPAddr = l.Addr.Addr().AsSlice()
	m.UpdateOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice()))
	_, before := c.InUse(ctx, l.Server)
	err = c.Unicast(m.ToBytes(), l.Addr.Addr(), l.Server)
	_, behind := c.InUse(ctx, l.Server)
	return errors.Join(before, err, behind)
}

func (c *Client) message(kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(c.MAC))
	if err != nil {
		return nil, fmt.Errorf("make a DHCP message: %w", err)
	}
	if len(c.ID) > 0 {
		m.UpdateOption(dhcpv4.OptClientIdentifier(c.ID))
	}
	if kind == dhcpv4.MessageTypeRelease || kind == dhcpv4.MessageTypeDecline { // RFC 2131, table 5: these say no more
		return m, nil
	}
	if c.Hostname != "" {
		m.UpdateOption(dhcpv4.OptHostName(c.Hostname))
	}
	if c.VendorClass != "" {
		m.UpdateOption(dhcpv4.OptClassIdentifier(c.VendorClass))
	}
	m.UpdateOption(dhcpv4.OptParameterRequestList( // 121 before the router, RFC 3442
		dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionNTPServers,
		dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue))
	return m, nil
}

// A question is a message and what is an answer to it.
type question struct {
	m *dhcpv4.DHCPv4
	// of is the server that is asked; invalid: all of them.
	of netip.Addr
	// from is the client's address, when it is the one server only that the message goes to; invalid: it is broadcast.
	from netip.Addr
	fits func(Lease, dhcpv4.MessageType) bool
}

// ask puts a question, again and again with growing pauses, until an answer is the one, or ctx ends. A DHCPNAK is an
// error.
func (c *Client) ask(ctx context.Context, q question) (Lease, error) {
	var start time.Time
	send := func() error {
		start = c.now()
		if q.from.IsValid() {
			return c.Unicast(q.m.ToBytes(), q.from, q.of)
		}
		return c.Broadcast(q.m.ToBytes())
	}
	return exchange(ctx, send, c.Receive, func(raw []byte, from net.HardwareAddr) (l Lease, done bool, err error) {
		a, err := dhcpv4.FromBytes(raw)
		if err != nil || !answers(a, q.m) {
			return l, false, nil //nolint:nilerr // somebody else's, or nothing that can be read
		}
		if a.MessageType() == dhcpv4.MessageTypeNak {
			if q.of.IsValid() && !net.IP(q.of.AsSlice()).Equal(a.ServerIdentifier()) {
				return l, false, nil // a server that was not asked
			}
			return l, false, refusal(a)
		}
		l, err = read(a, from, start)
		return l, err == nil && q.fits(l, a.MessageType()), nil
	})
}

func answers(a, m *dhcpv4.DHCPv4) bool {
	return a.OpCode == dhcpv4.OpcodeBootReply && a.TransactionID == m.TransactionID && a.ClientHWAddr.String() == m.ClientHWAddr.String()
}

func refusal(a *dhcpv4.DHCPv4) error {
	server := net.IP(a.ServerIdentifier())
	if why := a.Message(); printable(why) == why && why != "" {
		return fmt.Errorf("%w: %s says: %s", ErrRefused, server, why)
	}
	return fmt.Errorf("%w: %s", ErrRefused, server)
}
