package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// A fake is a link with one server.
type fake struct {
	answer func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 // returns nil for no answer
	sent   []dhcpv4.MessageType                  // by the client
	modes  []string                              // broadcast or unicast, of each message
	queue  chan []byte
	inUse  map[netip.Addr]bool
}

func newFake(answer func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4) *fake {
	return &fake{answer: answer, queue: make(chan []byte, 16), inUse: map[netip.Addr]bool{}}
}

func (f *fake) Broadcast(msg []byte) error { return f.take(msg, "broadcast") }

func (f *fake) Unicast(msg []byte, _, _ netip.Addr) error { return f.take(msg, "unicast") }

func (f *fake) take(msg []byte, how string) error {
	m, err := dhcpv4.FromBytes(msg)
	if err != nil {
		return err
	}
	f.sent, f.modes = append(f.sent, m.MessageType()), append(f.modes, how)
	if a := f.answer(m); a != nil {
		f.queue <- a.ToBytes()
	}
	return nil
}

func (f *fake) Receive(ctx context.Context) ([]byte, net.HardwareAddr, error) {
	select {
	case m := <-f.queue:
		return m, net.HardwareAddr{2, 0, 0, 0, 0, 0xff}, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (f *fake) OwnerOf(_ context.Context, a netip.Addr) (net.HardwareAddr, error) {
	if f.inUse[a] {
		return net.HardwareAddr{2, 0, 0, 0, 0, 0xee}, nil
	}
	return nil, nil
}

var self = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func server() net.IP { return net.IPv4(192, 0, 2, 1) }

// reply returns an answer with an address for a minute.
func reply(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, addr string, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	a, err := dhcpv4.NewReplyFromRequest(m, append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.ParseIP(addr)), dhcpv4.WithServerIP(server()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server())),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(60),
	}, more...)...)
	if err != nil {
		panic(err)
	}
	return a
}

// good returns a server that gives the addresses in turn, one for each DISCOVER.
func good(addrs ...string) func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	at := -1
	return func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		switch m.MessageType() {
		case dhcpv4.MessageTypeDiscover:
			at = min(at+1, len(addrs)-1)
			return reply(m, dhcpv4.MessageTypeOffer, addrs[at])
		case dhcpv4.MessageTypeRequest:
			if at < 0 {
				return reply(m, dhcpv4.MessageTypeAck, addrs[0])
			}
			return reply(m, dhcpv4.MessageTypeAck, addrs[at])
		}
		return nil
	}
}

func TestAcquire(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4
		inUse  string
		wish   Wish
		want   string // the address, or empty
		err    error
		sent   []dhcpv4.MessageType
	}{
		"plain": {
			answer: good("192.0.2.10"), want: "192.0.2.10/24",
			sent: []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest},
		},
		"conflict": {
			answer: good("192.0.2.10", "192.0.2.11"), inUse: "192.0.2.10", want: "192.0.2.11/24",
			sent: []dhcpv4.MessageType{
				dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline,
				dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest,
			},
		},
		"conflict, and no other address is accepted": {
			answer: good("192.0.2.10"), inUse: "192.0.2.10", err: ErrConflict,
			wish: Wish{Addr: netip.MustParseAddr("192.0.2.10"), Must: true},
		},
		"another address than requested": {
			answer: good("192.0.2.10"), err: ErrOtherAddress,
			wish: Wish{Addr: netip.MustParseAddr("192.0.2.99"), Must: true},
		},
		"no answer": {answer: func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { return nil }, err: ErrNoServer},
		"an offer withdrawn": {
			answer: func() func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				serve, naks := good("192.0.2.10"), 1
				return func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
					if m.MessageType() == dhcpv4.MessageTypeRequest && naks > 0 {
						naks--
						return reply(m, dhcpv4.MessageTypeNak, "0.0.0.0")
					}
					return serve(m)
				}
			}(), want: "192.0.2.10/24",
		},
		"the first message is lost": {
			answer: func() func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
				serve, lost := good("192.0.2.10"), 1
				return func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
					if lost--; lost >= 0 {
						return nil
					}
					return serve(m)
				}
			}(), want: "192.0.2.10/24",
		},
		"answers to another client": {answer: func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			a := reply(m, dhcpv4.MessageTypeOffer, "192.0.2.10")
			a.TransactionID[0]++
			return a
		}, err: ErrNoServer},
		"no address in the offer": {answer: func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			return reply(m, dhcpv4.MessageTypeOffer, "0.0.0.0")
		}, err: ErrNoServer},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(c.answer)
				if c.inUse != "" {
					f.inUse[netip.MustParseAddr(c.inUse)] = true
				}
				ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
				defer cancel()
				began := time.Now()
				l, err := (&Client{Transport: f, Identity: Identity{MAC: self}, Probe: true}).Acquire(ctx, c.wish)
				if !errors.Is(err, c.err) || c.want != "" && l.Addr.String() != c.want {
					t.Errorf("%v, %v; want %s, %v", l.Addr, err, c.want, c.err)
				}
				if took := time.Since(began); took > 7*time.Second {
					t.Errorf("it took %v", took)
				}
				if c.sent != nil && !slices.Equal(f.sent, c.sent) {
					t.Errorf("sent %v", f.sent)
				}
			})
		})
	}
}

// TestSilentServer shows that a client looks for servers again if the one whose offer it takes falls silent, and then
// prefers another one.
func TestSilentServer(t *testing.T) {
	other := dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 2))
	for name, c := range map[string]struct {
		offers int // of the silent server; -1: no end
		acks   int // requests to the silent server until it answers; -1: never
		others bool
		want   string
		most   time.Duration
	}{
		"it dies, and another server is there": {1, -1, true, "192.0.2.20/24", 2500 * time.Millisecond},
		"it goes on to offer":                  {-1, -1, true, "192.0.2.20/24", 2500 * time.Millisecond},
		"it answers late, and is alone":        {-1, 4, false, "192.0.2.10/24", 4 * time.Second},
		"it never answers":                     {-1, -1, false, "", 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f *fake
				offers, asked := 0, 0
				f = newFake(func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
					if m.MessageType() == dhcpv4.MessageTypeDiscover {
						if offers++; offers <= c.offers || c.offers < 0 {
							f.queue <- reply(m, dhcpv4.MessageTypeOffer, "192.0.2.10").ToBytes()
						}
						if c.others {
							return reply(m, dhcpv4.MessageTypeOffer, "192.0.2.20", dhcpv4.WithOption(other))
						}
						return nil
					}
					if !m.ServerIdentifier().Equal(server()) {
						return reply(m, dhcpv4.MessageTypeAck, "192.0.2.20", dhcpv4.WithOption(other))
					}
					if asked++; asked == c.acks {
						return reply(m, dhcpv4.MessageTypeAck, "192.0.2.10")
					}
					return nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
				defer cancel()
				began := time.Now()
				l, err := (&Client{Transport: f, Identity: Identity{MAC: self}}).Acquire(ctx, Wish{})
				if c.want == "" {
					if !errors.Is(err, errSilent) || !strings.Contains(err.Error(), "192.0.2.10 from 192.0.2.1") {
						t.Error(err)
					}
				} else if err != nil || l.Addr.String() != c.want {
					t.Errorf("%v, %v; want %s", l.Addr, err, c.want)
				}
				if took := time.Since(began); took > c.most {
					t.Errorf("it took %v; sent %v", took, f.sent)
				}
			})
		})
	}
}

// TestJitter shows that clients that start at the same time do not repeat their messages at the same time.
func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		d := jittered(firstWait)
		if d < firstWait*3/4 || d > firstWait*5/4 {
			t.Errorf("%v", d)
		}
		seen[d] = true
	}
	if len(seen) < 2 {
		t.Error("the interval is always the same")
	}
}

// TestLife shows the life of a lease with a server that first answers, then does not, and then refuses.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serve := good("192.0.2.10")
		f := newFake(serve)
		c := &Client{Transport: f, Identity: Identity{MAC: self}}
		l, err := c.Acquire(t.Context(), Wish{})
		if err != nil {
			t.Fatal(err)
		}
		t1, t2, life := l.Renew.Sub(l.Start), l.Rebind.Sub(l.Start), l.Expires.Sub(l.Start)
		if t1 != 30*time.Second || t2 != 52500*time.Millisecond || life != time.Minute {
			t.Errorf("times %v %v %v", t1, t2, life)
		}
		for range 60 { // renewed at T1, by its own server
			time.Sleep(time.Until(l.NextAttempt(time.Now(), time.Time{})))
			if l, err = c.Extend(t.Context(), l); err != nil || l.State(time.Now()) != Bound {
				t.Fatal(l.State(time.Now()), err)
			}
			if how := f.modes[len(f.modes)-1]; how != "unicast" {
				t.Fatalf("renewed by %s", how)
			}
		}
		f.answer = func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { return nil }
		f.sent, f.modes = nil, nil
		var tried time.Time
		attempts := 0
		for l.State(time.Now()) != Expired {
			time.Sleep(time.Until(l.NextAttempt(time.Now(), tried)))
			if l.State(time.Now()) == Expired {
				break
			}
			ctx, cancel := context.WithTimeout(t.Context(), l.AttemptTimeout())
			if _, err := c.Extend(ctx, l); !errors.Is(err, ErrNoServer) {
				t.Fatal(err)
			}
			cancel()
			tried = time.Now()
			attempts++
		}
		if at := time.Now(); at.Before(l.Expires) || at.Sub(l.Expires) > time.Second {
			t.Errorf("expired at %v, but the last attempt was due at %v", l.Expires, at)
		}
		if attempts < 3 || attempts > 12 || f.modes[0] != "unicast" || f.modes[len(f.modes)-1] != "broadcast" {
			t.Errorf("%d attempts, by %v", attempts, f.modes)
		}
		if next := time.Until(l.NextAttempt(time.Now(), time.Now())); next != acquireInterval {
			t.Errorf("without an address, the next attempt is after %v", next)
		}
		f.answer = func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { return reply(m, dhcpv4.MessageTypeNak, "0.0.0.0") }
		if _, err := c.Extend(t.Context(), l); !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	})
}

// TestOtherServer shows that a DHCPNAK of another server is ignored while renewing, and not while rebinding.
func TestOtherServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(good("192.0.2.10"))
		c := &Client{Transport: f, Identity: Identity{MAC: self}}
		l, err := c.Acquire(t.Context(), Wish{})
		if err != nil {
			t.Fatal(err)
		}
		f.answer = func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			other := dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 2))
			return reply(m, dhcpv4.MessageTypeNak, "0.0.0.0", dhcpv4.WithOption(other))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Extend(ctx, l); !errors.Is(err, ErrNoServer) {
			t.Errorf("renewing: %v", err)
		}
		time.Sleep(time.Until(l.Rebind))
		if _, err := c.Extend(t.Context(), l); !errors.Is(err, ErrRefused) {
			t.Errorf("rebinding: %v", err)
		}
	})
}

func TestRead(t *testing.T) {
	m, err := dhcpv4.NewDiscovery(self)
	if err != nil {
		t.Fatal(err)
	}
	odd := reply(m, dhcpv4.MessageTypeAck, "192.0.2.10", dhcpv4.WithLeaseTime(100),
		dhcpv4.WithGeneric(dhcpv4.OptionRenewTimeValue, []byte{0, 0, 0, 200}),
		dhcpv4.WithGeneric(dhcpv4.OptionRebindingTimeValue, []byte{0, 0, 0, 150}),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 1}),
		dhcpv4.WithOption(dhcpv4.OptDomainName("bad\x1b[31mname")),
		dhcpv4.WithDNS(net.IPv4zero, net.IPv4(192, 0, 2, 8)), dhcpv4.WithRouter(net.IPv4bcast, net.IPv4(192, 0, 2, 7)))
	l, err := read(odd, nil, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if !l.Renew.Before(l.Rebind) || !l.Rebind.Before(l.Expires) ||
		l.MTU != 0 || l.Domain != "" || len(l.DNS) != 1 || l.Router.String() != "192.0.2.7" {
		t.Errorf("%+v", l)
	}
	forever := reply(m, dhcpv4.MessageTypeAck, "192.0.2.10", dhcpv4.WithLeaseTime(0xffffffff))
	l, err = read(forever, nil, time.Unix(0, 0))
	if err != nil || !l.Expires.IsZero() || l.State(time.Now()) != Bound ||
		!l.NextAttempt(time.Now(), time.Time{}).IsZero() {
		t.Errorf("%+v %v", l, err)
	}
	anonymous := reply(m, dhcpv4.MessageTypeAck, "192.0.2.10")
	anonymous.Options.Del(dhcpv4.OptionServerIdentifier)
	if _, err := read(anonymous, nil, time.Unix(0, 0)); err == nil {
		t.Error("an answer without a server identifier is accepted")
	}
}

// TestRoutes shows that each router of a lease can be reached when the routes are added in their order.
func TestRoutes(t *testing.T) {
	route := func(dst, via string) *dhcpv4.Route {
		_, n, err := net.ParseCIDR(dst)
		if err != nil {
			t.Fatal(err)
		}
		return &dhcpv4.Route{Dest: n, Router: net.ParseIP(via)}
	}
	routes := func(rs ...*dhcpv4.Route) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(rs...))
	}
	host, router := dhcpv4.WithNetmask(net.CIDRMask(32, 32)), dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1))
	for name, c := range map[string]struct {
		options []dhcpv4.Modifier
		router  string
		want    string
	}{
		"in the subnet":            {[]dhcpv4.Modifier{router}, "192.0.2.1", "[]"},
		"a /32, router outside":    {[]dhcpv4.Modifier{host, router}, "192.0.2.1", "[{192.0.2.1/32 0.0.0.0}]"},
		"another subnet's router":  {[]dhcpv4.Modifier{dhcpv4.WithRouter(net.IPv4(203, 0, 113, 1))}, "203.0.113.1", "[{203.0.113.1/32 0.0.0.0}]"},
		"the host is its router":   {[]dhcpv4.Modifier{host, dhcpv4.WithRouter(net.IPv4(192, 0, 2, 10))}, "invalid IP", "[{0.0.0.0/0 0.0.0.0}]"},
		"a default on the link":    {[]dhcpv4.Modifier{host, routes(route("0.0.0.0/0", "0.0.0.0"))}, "invalid IP", "[{0.0.0.0/0 0.0.0.0}]"},
		"an invalid router of 121": {[]dhcpv4.Modifier{routes(route("198.51.100.0/24", "255.255.255.255"))}, "invalid IP", "[]"},
		"121 with a route to its routers, after them": {
			[]dhcpv4.Modifier{host, routes(route("0.0.0.0/0", "192.0.2.1"),
				route("198.51.100.0/24", "192.0.2.2"), route("192.0.2.0/30", "0.0.0.0"))},
			"192.0.2.1", "[{192.0.2.0/30 0.0.0.0} {198.51.100.0/24 192.0.2.2}]",
		},
		"121 without": {
			[]dhcpv4.Modifier{host, routes(route("0.0.0.0/0", "192.0.2.1"),
				route("198.51.100.0/24", "192.0.2.2"), route("203.0.113.0/24", "192.0.2.2"))},
			"192.0.2.1", "[{192.0.2.1/32 0.0.0.0} {192.0.2.2/32 0.0.0.0} " +
				"{198.51.100.0/24 192.0.2.2} {203.0.113.0/24 192.0.2.2}]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := dhcpv4.NewDiscovery(self)
			if err != nil {
				t.Fatal(err)
			}
			l, err := read(reply(m, dhcpv4.MessageTypeAck, "192.0.2.10", c.options...), nil, time.Unix(0, 0))
			if err != nil || l.Router.String() != c.router || fmt.Sprint(l.Routes) != c.want {
				t.Errorf("router %s, routes %v, %v", l.Router, l.Routes, err)
			}
		})
	}
}

// FuzzAnswer shows that every message from the wire is a usable lease or an error.
func FuzzAnswer(f *testing.F) {
	m, err := dhcpv4.NewDiscovery(self)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reply(m, dhcpv4.MessageTypeOffer, "192.0.2.10").ToBytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := dhcpv4.FromBytes(raw)
		if err != nil {
			return
		}
		l, err := read(a, nil, time.Unix(1e9, 0))
		if err != nil {
			return
		}
		ordered := l.Expires.IsZero() || l.Renew.Before(l.Rebind) && l.Rebind.Before(l.Expires)
		if !l.Addr.IsValid() || !l.Addr.Addr().Is4() || !ordered {
			t.Errorf("%+v", l)
		}
		for _, c := range []byte(l.Domain) {
			if bytes.ContainsAny([]byte{c}, "\x1b\n\r ") {
				t.Errorf("domain %q", l.Domain)
			}
		}
	})
}
