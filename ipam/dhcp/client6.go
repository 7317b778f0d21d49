package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// A Transport6 carries the messages of one DHCPv6 client on one link.
type Transport6 interface {
	// Multicast sends a message to every server and relay on the link (ff02::1:2).
	Multicast(msg []byte) error
	// Receive waits for the next message to any client, until ctx ends. It returns the address that the message came
	// from.
	Receive(ctx context.Context) (msg []byte, from netip.Addr, err error)
}

// A Client6 is a DHCPv6 client for one address on one link (RFC 8415, IA_NA).
type Client6 struct {
	Transport6
	// DUID identifies the client, and IAID its link.
	DUID []byte
	IAID [4]byte
	// Hostname is option 39. If empty, it is not sent.
	Hostname string
	// Now returns the time. Default: time.Now.
	Now func() time.Time
}

func (c *Client6) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Acquire acquires an address: SOLICIT, ADVERTISE, REQUEST, REPLY (RFC 8415, 18.2.1 and 18.2.2). It uses the first
// server that has one, and does not wait a second for a better one as RFC 8415 has it. If that server falls silent, it
// starts again. want is the address to request; any if it is not valid.
func (c *Client6) Acquire(ctx context.Context, want netip.Addr) (l Lease, err error) {
	var silent [][]byte
	patience := firstAccept
	for range maxTries {
		l, err = c.acquire(ctx, want, silent, patience)
		if !errors.Is(err, errSilent) || ctx.Err() != nil {
			return l, err
		}
		silent, patience = append(silent, l.ServerID), 2*patience
	}
	return l, err
}

// acquire makes one attempt. silent are the servers that made an offer and did not answer after it; patience is how
// long to wait for the answer to a request. If the error is errSilent, it returns the offer.
func (c *Client6) acquire(
	ctx context.Context, want netip.Addr, silent [][]byte, patience time.Duration,
) (Lease, error) {
	m, err := c.message(dhcpv6.MessageTypeSolicit, want, nil)
	if err != nil {
		return Lease{}, err
	}
	began := c.now()
	offer, err := c.ask(ctx, m, dhcpv6.MessageTypeAdvertise, func(l Lease) bool {
		fellSilent := slices.ContainsFunc(silent, func(id []byte) bool { return bytes.Equal(id, l.ServerID) })
		return !fellSilent || c.now().Sub(began) >= silentWait
	})
	if err != nil {
		return Lease{}, err
	}
	if m, err = c.message(dhcpv6.MessageTypeRequest, offer.Addr.Addr(), offer.ServerID); err != nil {
		return Lease{}, err
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := c.ask(asking, m, dhcpv6.MessageTypeReply, anyLease)
	if errors.Is(err, ErrNoServer) {
		return offer, fmt.Errorf("%w: %s from %s", errSilent, offer.Addr.Addr(), offer.Server)
	}
	return l, err
}

// anyLease accepts each lease.
func anyLease(Lease) bool { return true }

// Extend extends a lease. Until T2 it asks the server of the lease (RENEW), after that every server (REBIND).
func (c *Client6) Extend(ctx context.Context, l Lease) (Lease, error) {
	kind, server := dhcpv6.MessageTypeRebind, []byte(nil)
	if s := l.State(c.now()); s == Bound || s == Renewing {
		kind, server = dhcpv6.MessageTypeRenew, l.ServerID
	}
	m, err := c.message(kind, l.Addr.Addr(), server)
	if err != nil {
		return Lease{}, err
	}
	more, err := c.ask(ctx, m, dhcpv6.MessageTypeReply, anyLease)
	if err == nil && more.Addr != l.Addr {
		err = fmt.Errorf("%w: it offers %s instead of %s", ErrRefused, more.Addr.Addr(), l.Addr.Addr())
	}
	return more, err
}

// Release releases an address and waits for the server's reply.
func (c *Client6) Release(ctx context.Context, l Lease) error {
	return c.end(ctx, dhcpv6.MessageTypeRelease, l)
}

// Decline declines an address that another station on the link has.
func (c *Client6) Decline(ctx context.Context, l Lease) error {
	return c.end(ctx, dhcpv6.MessageTypeDecline, l)
}

// end releases or declines an address.
func (c *Client6) end(ctx context.Context, kind dhcpv6.MessageType, l Lease) error {
	m, err := c.message(kind, l.Addr.Addr(), l.ServerID)
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, m, dhcpv6.MessageTypeReply, anyLease)
	if errors.Is(err, ErrRefused) { // the server does not have the lease any more
		return nil
	}
	return err
}

// message returns a new message about an address, to the server with this DUID, or to all servers if it is nil.
func (c *Client6) message(kind dhcpv6.MessageType, addr netip.Addr, server []byte) (*dhcpv6.Message, error) {
	m, err := dhcpv6.NewMessage()
	if err != nil {
		return nil, fmt.Errorf("make DHCPv6 message: %w", err)
	}
	m.MessageType = kind
	duid, err := dhcpv6.DUIDFromBytes(c.DUID)
	if err != nil {
		return nil, fmt.Errorf("make DHCPv6 message: %w", err)
	}
	m.AddOption(dhcpv6.OptClientID(duid))
	if server != nil {
		if duid, err = dhcpv6.DUIDFromBytes(server); err != nil {
			return nil, fmt.Errorf("make DHCPv6 message: %w", err)
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

// ask sends a message, repeatedly as exchange does, until an answer of that type has a lease that fits. A reply that
// refuses the address is an error.
func (c *Client6) ask(
	ctx context.Context, m *dhcpv6.Message, kind dhcpv6.MessageType, fits func(Lease) bool,
) (Lease, error) {
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
			return l, false, nil //nolint:nilerr // not an answer to the message, or not readable
		}
		if m.MessageType == dhcpv6.MessageTypeRelease || m.MessageType == dhcpv6.MessageTypeDecline {
			return l, true, nil
		}
		l, err = c.read(a, from, asked)
		if err != nil && kind != dhcpv6.MessageTypeReply {
			return l, false, nil //nolint:nilerr // another server may have an address (RFC 8415, 18.2.9)
		}
		return l, err == nil && fits(l), err
	})
}

// isMine reports whether an answer is for this client.
func (c *Client6) isMine(a *dhcpv6.Message) bool {
	id := a.Options.ClientID()
	return id != nil && bytes.Equal(id.ToBytes(), c.DUID) && a.Options.ServerID() != nil
}

// read returns the lease of an answer.
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
			l = Lease{
				Addr: netip.PrefixFrom(addr, addr.BitLen()), Server: from, Start: start,
				ServerID: a.Options.ServerID().ToBytes(), DNS: addrs6(a.Options.DNS()),
			}
			l.setTimes6(ia, o)
			return l, nil
		}
	}
	return l, fmt.Errorf("%w: %s has no address for the client", ErrRefused, from)
}

// status returns the error of a status code (RFC 8415, 21.13).
func status(s *dhcpv6.OptStatusCode) error {
	if s == nil || s.StatusCode == iana.StatusSuccess {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrRefused, s.StatusCode)
}

// setTimes6 sets the lease's times. If the server leaves T1 and T2 to the client, they are at 0.5 and 0.8 of the
// preferred lifetime (RFC 8415, 21.4).
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

// usable6 reports whether an IPv6 address can be a container's lease.
func usable6(a netip.Addr) bool {
	special := a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
	return a.Is6() && !a.Is4In6() && !special
}

// addrs6 returns the IPv6 addresses that can be servers'.
func addrs6(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.To16()); ok && a.Is6() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	return out
}
