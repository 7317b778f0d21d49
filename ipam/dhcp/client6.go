package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// A Transport6 carries the messages of one DHCPv6 client on one link.
type Transport6 interface {
	// Multicast sends a message to every server and relay on the link (ff02::1:2).
	Multicast(msg []byte) error
	// Receive waits for the next message to a client, whoever's it is, and says whom it came from. It ends with ctx.
	Receive(ctx context.Context) (msg []byte, from netip.Addr, err error)
}

// A Client6 is one client on one link that wants an address (RFC 8415, IA_NA).
type Client6 struct {
	Transport6
	// DUID is who the client is, and IAID which link of it.
	DUID []byte
	IAID [4]byte
	// Hostname is option 39; empty: not said.
	Hostname string
	// Now tells the time; nil: time.Now.
	Now func() time.Time
}

func (c *Client6) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Acquire gets an address: SOLICIT, ADVERTISE, REQUEST, REPLY (RFC 8415, 18.2.1 and 18.2.2). The first server that has
// one is taken: RFC 8415 would have a client wait for a better one for a second. want is asked for; invalid: any.
func (c *Client6) Acquire(ctx context.Context, want netip.Addr) (Lease, error) {
	m, err := c.message(dhcpv6.MessageTypeSolicit, want, nil)
	if err != nil {
		return Lease{}, err
	}
	offer, err := c.ask(ctx, m, dhcpv6.MessageTypeAdvertise)
	if err != nil {
		return Lease{}, err
	}
	if m, err = c.message(dhcpv6.MessageTypeRequest, offer.Addr.Addr(), offer.ServerID); err != nil {
		return Lease{}, err
	}
	return c.ask(ctx, m, dhcpv6.MessageTypeReply)
}

// Extend asks for more time: of the server whose lease it is while there is time (RENEW), and then of everyone
// (REBIND).
func (c *Client6) Extend(ctx context.Context, l Lease) (Lease, error) {
	kind, server := dhcpv6.MessageTypeRebind, []byte(nil)
	if s := l.State(c.now()); s == Bound || s == Renewing {
		kind, server = dhcpv6.MessageTypeRenew, l.ServerID
	}
	m, err := c.message(kind, l.Addr.Addr(), server)
	if err != nil {
		return Lease{}, err
	}
	more, err := c.ask(ctx, m, dhcpv6.MessageTypeReply)
	if err == nil && more.Addr != l.Addr {
		err = fmt.Errorf("%w: it has %s instead of %s", ErrRefused, more.Addr.Addr(), l.Addr.Addr())
	}
	return more, err
}

// Release gives an address back, and waits until the server says that it heard.
func (c *Client6) Release(ctx context.Context, l Lease) error {
	return c.giveBack(ctx, dhcpv6.MessageTypeRelease, l)
}

// Decline gives back an address that somebody else on the link has.
func (c *Client6) Decline(ctx context.Context, l Lease) error {
	return c.giveBack(ctx, dhcpv6.MessageTypeDecline, l)
}

func (c *Client6) giveBack(ctx context.Context, kind dhcpv6.MessageType, l Lease) error {
	m, err := c.message(kind, l.Addr.Addr(), l.ServerID)
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, m, dhcpv6.MessageTypeReply)
	if errors.Is(err, ErrRefused) { // it is not the client's any more
		return nil
	}
	return err
}

// message is one about an address of the client's, to the server of that DUID or to all.
func (c *Client6) message(kind dhcpv6.MessageType, addr netip.Addr, server []byte) (*dhcpv6.Message, error) {
	m, err := dhcpv6.NewMessage()
	if err != nil {
		return nil, fmt.Errorf("make a DHCPv6 message: %w", err)
	}
	m.MessageType = kind
	duid, err := dhcpv6.DUIDFromBytes(c.DUID)
	if err != nil {
		return nil, fmt.Errorf("make a DHCPv6 message: %w", err)
	}
	m.AddOption(dhcpv6.OptClientID(duid))
	if server != nil {
		if duid, err = dhcpv6.DUIDFromBytes(server); err != nil {
			return nil, fmt.Errorf("make a DHCPv6 message: %w", err)
		}
		m.AddOption(dhcpv6.OptServerID(duid))
	}
	ia := &dhcpv6.OptIANA{IaId: c.IAID}
	if addr.IsValid() {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice()})
	}
	m.AddOption(ia)
	m.AddOption(dhcpv6.OptElapsedTime(0))
	if kind == dhcpv6.MessageTypeRelease || kind == dhcpv6.MessageTypeDecline {
		return m, nil
	}
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer))
	if c.Hostname != "" {
		dhcpv6.WithFQDN(0, c.Hostname)(m)
	}
	return m, nil
}

// ask puts a question, again and again with growing pauses, until an answer of that type is the one, or ctx ends. What
// says that the address is not the client's is an error.
func (c *Client6) ask(ctx context.Context, m *dhcpv6.Message, kind dhcpv6.MessageType) (Lease, error) {
	start := c.now()
	asked := start
	send := func() error {
		asked = c.now()
		m.UpdateOption(dhcpv6.OptElapsedTime(asked.Sub(start)))
		return c.Multicast(m.ToBytes())
	}
	return exchange(ctx, send, c.Receive, func(raw []byte, from netip.Addr) (l Lease, done bool, err error) {
		a, err := dhcpv6.MessageFromBytes(raw)
		if err != nil || a.MessageType != kind || a.TransactionID != m.TransactionID || !c.isMine(a) {
			return l, false, nil //nolint:nilerr // somebody else's, or nothing that can be read
		}
		if m.MessageType == dhcpv6.MessageTypeRelease || m.MessageType == dhcpv6.MessageTypeDecline {
			return l, true, nil
		}
		l, err = c.read(a, from, asked)
		if err != nil && kind != dhcpv6.MessageTypeReply {
			return l, false, nil //nolint:nilerr // another server may have an address (RFC 8415, 18.2.9)
		}
		return l, err == nil, err
	})
}

func (c *Client6) isMine(a *dhcpv6.Message) bool {
	id := a.Options.ClientID()
	return id != nil && bytes.Equal(id.ToBytes(), c.DUID) && a.Options.ServerID() != nil
}

// read makes a Lease of an answer.
func (c *Client6) read(a *dhcpv6.Message, from netip.Addr, start time.Time) (l Lease, err error) {
	if err := status(a.Options.Status()); err != nil {
		return l, err
	}
	for _, ia := range a.Options.IANA() {
		if ia.IaId != c.IAID {
			continue
		}
		if err := status(ia.Options.Status()); err != nil {
			return l, err
		}
		for _, o := range ia.Options.Addresses() {
			addr, ok := netip.AddrFromSlice(o.IPv6Addr.To16())
			if !ok || !usable6(addr) || o.ValidLifetime <= 0 || status(o.Options.Status()) != nil {
				continue
			}
			l = Lease{Addr: netip.PrefixFrom(addr, addr.BitLen()), Server: from, ServerID: a.Options.ServerID().ToBytes(), DNS: addrs6(a.Options.DNS()), Start: start}
			l.setTimes6(ia, o)
			return l, nil
		}
	}
	return l, fmt.Errorf("%w: %s has no address for it", ErrRefused, from)
}

// status is what a server says went wrong (RFC 8415, 21.13).
func status(s *dhcpv6.OptStatusCode) error {
	if s == nil || s.StatusCode == iana.StatusSuccess {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrRefused, s.StatusCode)
}

// setTimes6: where the server leaves T1 and T2 to the client, they are at half of the preferred lifetime and eight
// tenths of it (RFC 8415, 21.4).
func (l *Lease) setTimes6(ia *dhcpv6.OptIANA, o *dhcpv6.OptIAAddress) {
	if o.ValidLifetime >= infinite {
		return
	}
	valid, preferred := o.ValidLifetime, o.PreferredLifetime
	if preferred <= 0 || preferred > valid {
		preferred = valid
	}
	t2 := ia.T2
	if t2 <= 0 || t2 >= valid {
		t2 = preferred * 8 / 10
	}
	t1 := ia.T1
	if t1 <= 0 || t1 >= t2 {
		t1 = min(preferred/2, t2*5/8)
	}
	l.Renew, l.Rebind, l.Expires = l.Start.Add(t1), l.Start.Add(t2), l.Start.Add(valid)
	l.Preferred = l.Start.Add(preferred)
}

func usable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

func addrs6(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.To16()); ok && a.Is6() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	return out
}
