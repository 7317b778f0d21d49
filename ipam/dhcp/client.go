package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// firstWait is the time until a message is sent again without an answer; it doubles each time. RFC 2131 begins with
	// 4 s, but an engine does not wait that long, and a LAN answers in milliseconds.
	firstWait = 500 * time.Millisecond
	// maxTries bounds the attempts of Acquire, after conflicts, refusals and servers that fell silent.
	maxTries = 4
	// firstAccept is how long Acquire waits for the answer to its request for an offered address, which is sent twice
	// or three times meanwhile, before it looks for servers again (RFC 2131, 3.1.5); it doubles each time.
	firstAccept = 3 * firstWait
	// silentWait is how long offers of a server that fell silent are ignored, as another server may make one.
	silentWait = firstWait / 2
)

// errSilent says that a server made an offer and did not answer the request for it.
var errSilent = fmt.Errorf("%w the request for an address that was offered", ErrNoServer)

// A Client is a DHCPv4 client on one link.
type Client struct {
	Transport
	Identity
	// Now returns the time. Default: time.Now.
	Now func() time.Time
	// Probe says that Acquire asks the link whether a station already has the address.
	Probe bool
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// A Wish says which lease a client wants.
type Wish struct {
	// Addr is the address to request; any if it is not valid.
	Addr netip.Addr
	// Must says that no other address than Addr is accepted.
	Must bool
	// Offered, if not nil, is called with an offer before the client accepts it. An error ends Acquire.
	Offered func(Lease) error
	// Declined, if not nil, is called with a lease that is declined, and the station that has its address.
	Declined func(l Lease, holder net.HardwareAddr)
}

// Acquire acquires a lease: DISCOVER, OFFER, REQUEST, ACK (RFC 2131, 3.1). It starts again if the server withdraws its
// offer or falls silent after it, or if a station already has the address.
func (c *Client) Acquire(ctx context.Context, w Wish) (l Lease, err error) {
	t := attempt{Wish: w, patience: firstAccept}
	for range maxTries {
		l, err = c.acquire(ctx, t)
		switch {
		case err == nil || ctx.Err() != nil:
			return l, err
		case errors.Is(err, errSilent):
			t.silent, t.patience = append(t.silent, l.Server), 2*t.patience
		case (errors.Is(err, ErrRefused) || errors.Is(err, ErrConflict)) && !w.Must:
			t.Addr = netip.Addr{}
		default:
			return l, err
		}
	}
	return l, err
}

// An attempt is one of those that Acquire makes.
type attempt struct {
	Wish

	// silent are the servers that made an offer and did not answer after it.
	silent []netip.Addr
	// patience is how long to wait for the answer to a request.
	patience time.Duration
}

// acquire makes an attempt. If the error is errSilent, it returns the offer.
func (c *Client) acquire(ctx context.Context, w attempt) (Lease, error) {
	m, err := c.message(dhcpv4.MessageTypeDiscover)
	if err != nil {
		return Lease{}, err
	}
	m.SetBroadcast() // the client has no address yet, and not every link passes frames to its hardware address
	if w.Addr.IsValid() {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(w.Addr.AsSlice()))
	}
	var other netip.Addr
	began := c.now()
	offer, err := c.ask(ctx, question{m: m, fits: func(l Lease, kind dhcpv4.MessageType) bool {
		if kind == dhcpv4.MessageTypeOffer && w.Must && l.Addr.Addr() != w.Addr {
			other = l.Addr.Addr() // another server may have the right one
			return false
		}
		if slices.Contains(w.silent, l.Server) && c.now().Sub(began) < silentWait {
			return false // another server may be there; if not, this one answers the next message
		}
		return kind == dhcpv4.MessageTypeOffer
	}})
	if errors.Is(err, ErrNoServer) && other.IsValid() {
		return offer, fmt.Errorf("%w: %s instead of %s", ErrOtherAddress, other, w.Addr)
	}
	if err != nil {
		return offer, err
	}
	if w.Offered != nil {
		if err := w.Offered(offer); err != nil {
			return offer, err
		}
	}
	asking, cancel := context.WithTimeout(ctx, w.patience)
	defer cancel()
	l, err := c.accept(asking, m.TransactionID, offer)
	if errors.Is(err, ErrNoServer) {
		return offer, fmt.Errorf("%w: %s from %s", errSilent, offer.Addr.Addr(), offer.Server)
	}
	if err != nil || !c.Probe {
		return l, err
	}
	return l, c.probe(ctx, l, w.Declined)
}

// accept requests the address of an offer.
func (c *Client) accept(ctx context.Context, id dhcpv4.TransactionID, offer Lease) (Lease, error) {
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

// probe asks the link whether a station already has a lease's address, and declines the lease if one has.
func (c *Client) probe(ctx context.Context, l Lease, declined func(Lease, net.HardwareAddr)) error {
	holder, err := c.OwnerOf(ctx, l.Addr.Addr())
	if err != nil || holder == nil {
		return err
	}
	if declined != nil {
		declined(l, holder)
	}
	conflict := fmt.Errorf("%w: %s is in use by %s", ErrConflict, l.Addr.Addr(), holder)
	m, err := c.message(dhcpv4.MessageTypeDecline)
	if err != nil {
		return errors.Join(conflict, err)
	}
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(l.Addr.Addr().AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice()))
	return errors.Join(conflict, c.Broadcast(m.ToBytes()))
}

// Extend extends a lease. Until T2 it asks the server of the lease (RENEWING), after that every server (REBINDING).
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

// Release releases a lease. A server does not answer a DHCPRELEASE (RFC 2131, 4.4.6), so Release probes the server's
// address before it, since a new link may not yet carry frames, and after it: when that probe is answered, the message
// has been sent and the link can be removed.
func (c *Client) Release(ctx context.Context, l Lease) error {
	m, err := c.message(dhcpv4.MessageTypeRelease)
	if err != nil {
		return err
	}
	m.ClientIPAddr = l.Addr.Addr().AsSlice()
	m.UpdateOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice()))
	_, before := c.OwnerOf(ctx, l.Server)
	err = c.Unicast(m.ToBytes(), l.Addr.Addr(), l.Server)
	_, after := c.OwnerOf(ctx, l.Server)
	return errors.Join(before, err, after)
}

// message returns a new message with the client's identity.
func (c *Client) message(kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(c.MAC))
	if err != nil {
		return nil, fmt.Errorf("make DHCP message: %w", err)
	}
	if len(c.ID) > 0 {
		m.UpdateOption(dhcpv4.OptClientIdentifier(c.ID))
	}
	if kind == dhcpv4.MessageTypeRelease || kind == dhcpv4.MessageTypeDecline { // no other options: RFC 2131, table 5
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

// A question is a message and a test for its answer.
type question struct {
	m *dhcpv4.DHCPv4
	// of is the server that is asked; all servers if it is not valid.
	of netip.Addr
	// from is the client's address if the message is sent by unicast. If it is not valid, the message is broadcast.
	from netip.Addr
	// fits reports whether a lease in a message of that type is the answer.
	fits func(Lease, dhcpv4.MessageType) bool
}

// ask sends a question, repeatedly as exchange does, until an answer fits. A DHCPNAK is an error.
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
			return l, false, nil //nolint:nilerr // not an answer to the message, or not readable
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

// answers reports whether a is an answer to m.
func answers(a, m *dhcpv4.DHCPv4) bool {
	return a.OpCode == dhcpv4.OpcodeBootReply && a.TransactionID == m.TransactionID &&
		a.ClientHWAddr.String() == m.ClientHWAddr.String()
}

// refusal returns the error of a DHCPNAK, with the server's message if it has a printable one.
func refusal(a *dhcpv4.DHCPv4) error {
	server := net.IP(a.ServerIdentifier())
	if text := a.Message(); printable(text) == text && text != "" {
		return fmt.Errorf("%w: %s: %s", ErrRefused, server, text)
	}
	return fmt.Errorf("%w: %s", ErrRefused, server)
}
