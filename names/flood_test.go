package names

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A wire is a socket whose datagrams a test sends and receives.
type wire struct {
	net.PacketConn // nil: what a resolver does not call

	in, out chan datagram
	closed  context.Context
	close   context.CancelFunc
}

type datagram struct {
	data []byte
	addr net.Addr
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-w.in:
		return copy(b, d.data), d.addr, nil
	case <-w.closed.Done():
		return 0, nil, net.ErrClosed
	}
}

func (w *wire) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case w.out <- datagram{b, to}:
		return len(b), nil
	case <-w.closed.Done():
		return 0, net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.close()
	return nil
}

// A stuck directory does not answer one asker until it is let go.
type stuck struct {
	book

	asker netip.Addr
	free  chan struct{}
	now   atomic.Int64
}

func (s *stuck) Lookup(_ string, asker netip.Addr, _ string) []netip.Addr {
	if asker == s.asker {
		s.now.Add(1)
		<-s.free
	}
	return addrs("10.20.0.7")
}

// TestFlood shows that one container that floods the resolver with questions takes no more than its share, and that the
// questions of others are answered meanwhile.
func TestFlood(t *testing.T) {
	t.Parallel()
	closed, stop := context.WithCancel(t.Context())
	w := &wire{in: make(chan datagram), out: make(chan datagram), closed: closed, close: stop}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	directory := &stuck{asker: netip.MustParseAddr("10.20.0.5"), free: make(chan struct{})}
	s := &Server{Directory: directory, Log: slog.New(slog.DiscardHandler)}
	n := Network{ID: "b", Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, Internal: true}
	r := newResolver(t.Context(), s, n, w, tcp)
	q, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	send := func(from string) {
		t.Helper()
		select {
		case w.in <- datagram{q, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}:
		case <-time.After(time.Minute):
			t.Fatal("the resolver reads no questions")
		}
	}
	for range 3 * askerQuestions {
		send("10.20.0.5:4000")
	}
	send("10.20.0.6:4000")
	select {
	case a := <-w.out:
		if got := a.addr.String(); got != "10.20.0.6:4000" {
			t.Errorf("the first answer is for %s", got)
		}
	case <-time.After(time.Minute):
		t.Error("one container's flood keeps the question of another one waiting")
	}
	if got := directory.now.Load(); got > askerQuestions {
		t.Errorf("%d questions of one container at a time, more than %d", got, askerQuestions)
	}
	close(directory.free)
	r.close()
}
