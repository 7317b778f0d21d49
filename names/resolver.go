package names

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxQuestion is the size of the largest question by UDP, in bytes: a name of up to 255 (RFC 1035, section 2.3.4),
	// and what EDNS adds.
	maxQuestion = 1232
	// maxUDP is the size of the largest answer by UDP, in bytes, even if the asker accepts larger ones: it fits into an
	// IPv6 packet of the minimum MTU.
	maxUDP = 1232

	// The limits of questions by UDP at a time, for a network and for each of its askers: what an asker sends beyond
	// them is dropped as soon as it is read, so that a flood does not keep those of others waiting in the socket.
	networkQuestions, askerQuestions = 4096, 256
	// The limits of forwarded questions and of connections at a time, for a network and for each of its askers.
	networkForwards, askerForwards = 256, 64
	networkConns, askerConns       = 128, 16

	// idleTimeout is how long a connection may be idle, and connTimeout how long it may last.
	idleTimeout, connTimeout = 5 * time.Second, time.Minute
)

// A resolver answers questions at one address of one network.
type resolver struct {
	s   *Server
	n   Network
	udp net.PacketConn
	tcp net.Listener
	// turn counts answers, to rotate the addresses in them.
	turn                       atomic.Uint32
	questions, forwards, conns limiter
	stop                       context.CancelFunc
	all                        sync.WaitGroup
}

// newResolver starts a resolver on these sockets. It runs until it is closed or ctx ends.
func newResolver(ctx context.Context, s *Server, n Network, udp net.PacketConn, tcp net.Listener) *resolver {
	ctx, stop := context.WithCancel(ctx)
	r := &resolver{
		s: s, n: n, udp: udp, tcp: tcp, stop: stop,
		questions: limiter{all: networkQuestions, each: askerQuestions},
		forwards:  limiter{all: networkForwards, each: askerForwards},
		conns:     limiter{all: networkConns, each: askerConns},
	}
	context.AfterFunc(ctx, func() { _, _ = udp.Close(), tcp.Close() })
	r.all.Go(func() { r.serveUDP(ctx) })
	r.all.Go(func() { r.serveTCP(ctx) })
	return r
}

// close stops the resolver. Questions in progress are not answered.
func (r *resolver) close() {
	r.stop()
	_, _ = r.udp.Close(), r.tcp.Close() // also closed when ctx ends; a second Close does nothing
	r.all.Wait()
}

func (r *resolver) serveUDP(ctx context.Context) {
	buf := make([]byte, maxQuestion)
	for {
		size, from, err := r.udp.ReadFrom(buf)
		if ctx.Err() != nil || isClosed(err) {
			return
		}
		if err != nil { // a passing error, or the link was removed
			sleep(ctx)
			continue
		}
		asker, ok := r.asker(from)
		if !ok { // no answer to others, not even an error: it could be an attack by reflection
			continue
		}
		if !r.questions.enter(asker) {
			continue
		}
		raw := bytes.Clone(buf[:size])
		r.all.Go(func() {
			defer r.questions.leave(asker)
			r.answerUDP(ctx, raw, from, asker)
		})
	}
}

// answerUDP answers a question that came by UDP.
func (r *resolver) answerUDP(ctx context.Context, raw []byte, from net.Addr, asker netip.Addr) {
	q := new(dns.Msg)
	if q.Unpack(raw) != nil || q.Response {
		return
	}
	r.answer(ctx, q, asker, false, func(a *dns.Msg) {
		a.Truncate(udpSize(q))
		if raw, err := a.Pack(); err == nil {
			_, _ = r.udp.WriteTo(raw, from) // an asker who does not get the answer asks again
		}
	})
}

// asker returns the address of a sender; ok is false if it is not a container's address on the network.
func (r *resolver) asker(from net.Addr) (asker netip.Addr, ok bool) {
	var at netip.AddrPort
	switch a := from.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	asker = at.Addr().Unmap()
	return asker, r.n.has(asker)
}

// udpSize returns the size of the largest answer that the asker accepts (RFC 6891, section 6.2.3), up to maxUDP.
func udpSize(q *dns.Msg) int {
	if opt := q.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	return dns.MinMsgSize
}

// answer answers a question by calling send. A question for the host's resolvers is forwarded in the background; with
// tcp, answer forwards it by TCP and waits.
func (r *resolver) answer(ctx context.Context, q *dns.Msg, asker netip.Addr, tcp bool, send func(*dns.Msg)) {
	if a := r.local(q, asker); a != nil {
		send(a)
		return
	}
	if !r.forwards.enter(asker) {
		send(reply(q, dns.RcodeServerFailure))
		return
	}
	ask := func() {
		defer r.forwards.leave(asker)
		send(r.forward(ctx, q, tcp))
	}
	if tcp {
		ask()
		return
	}
	r.all.Go(ask)
}

func (r *resolver) serveTCP(ctx context.Context) {
	for {
		c, err := r.tcp.Accept()
		if ctx.Err() != nil || isClosed(err) {
			return
		}
		if err != nil { // an error of that connection, or no free descriptors
			sleep(ctx)
			continue
		}
		asker, ok := r.asker(c.RemoteAddr())
		if !ok || !r.conns.enter(asker) {
			_ = c.Close()
			continue
		}
		r.all.Go(func() {
			defer r.conns.leave(asker)
			r.serveConn(ctx, c, asker)
		})
	}
}

// sleep waits before the next try after an error.
func sleep(ctx context.Context) {
	const pause = 100 * time.Millisecond
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

// serveConn answers the questions of one connection, one after the other.
func (r *resolver) serveConn(ctx context.Context, c net.Conn, asker netip.Addr) {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close() //nolint:errcheck // all answers were written, or writing failed
	end := time.Now().Add(connTimeout)
	conn := &dns.Conn{Conn: c}
	for {
		idle := time.Now().Add(idleTimeout)
		if idle.After(end) {
			idle = end
		}
		if c.SetDeadline(idle) != nil {
			return
		}
		q, err := conn.ReadMsg()
		if err != nil || q.Response {
			return
		}
		r.answer(ctx, q, asker, true, func(a *dns.Msg) {
			a.Truncate(dns.MaxMsgSize)
			if c.SetDeadline(time.Now().Add(idleTimeout)) != nil {
				return
			}
			err = conn.WriteMsg(a)
		})
		if err != nil {
			return
		}
	}
}

// A limiter limits what is in progress at a time, in total and for each asker, so that one asker who floods the
// resolver does not block the others.
type limiter struct {
	all, each int

	mu sync.Mutex
	in map[netip.Addr]int // by asker
	// sum is the sum of all values of in.
	sum int
}

// enter counts one more for an asker, or returns false if a limit is reached.
func (g *limiter) enter(asker netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sum >= g.all || g.in[asker] >= g.each {
		return false
	}
	if g.in == nil {
		g.in = map[netip.Addr]int{}
	}
	g.in[asker]++
	g.sum++
	return true
}

// leave counts one less for an asker.
func (g *limiter) leave(asker netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sum--
	if g.in[asker]--; g.in[asker] == 0 {
		delete(g.in, asker)
	}
}
