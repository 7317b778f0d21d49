package names

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxQuestion is how large a question can be, by UDP, bytes: a name of 255 (RFC 1035, section 2.3.4), and what EDNS
	// adds.
	maxQuestion = 1232
	// maxUDP is the largest answer by UDP, bytes, whoever says that he takes larger ones: what fits into the smallest
	// IPv6 packet.
	maxUDP = 1232

	// What is under way at once, of one network and of one asker of it.
	networkForwards, askerForwards = 256, 64
	networkConns, askerConns       = 128, 16

	// idleTime is how long a connection may say nothing, and connTime how long it may last.
	idleTime, connTime = 5 * time.Second, time.Minute
)

// A resolver answers at one address of one network.
type resolver struct {
	s   *Server
	n   Network
	udp net.PacketConn
	tcp net.Listener
	// turn is whose address comes first.
	turn            atomic.Uint32
	forwards, conns gate
	stop            context.CancelFunc
	all             sync.WaitGroup
}

// newResolver answers on sockets until it is closed, or ctx ends.
func newResolver(ctx context.Context, s *Server, n Network, udp net.PacketConn, tcp net.Listener) *resolver {
	ctx, stop := context.WithCancel(ctx)
	r := &resolver{
		s: s, n: n, udp: udp, tcp: tcp, stop: stop,
		forwards: gate{all: networkForwards, each: askerForwards}, conns: gate{all: networkConns, each: askerConns},
	}
	context.AfterFunc(ctx, func() { _, _ = udp.Close(), tcp.Close() })
	r.all.Go(func() { r.serveUDP(ctx) })
	r.all.Go(func() { r.serveTCP(ctx) })
	return r
}

// close ends it; what is under way is not answered any more.
func (r *resolver) close() {
	r.stop()
	_, _ = r.udp.Close(), r.tcp.Close() // twice is once
	r.all.Wait()
}

func (r *resolver) serveUDP(ctx context.Context) {
	buf := make([]byte, maxQuestion)
	for {
		size, from, err := r.udp.ReadFrom(buf)
		if ctx.Err() != nil || isClosed(err) {
			return
		}
		if err != nil { // it passes, or the link is gone
			sleep(ctx)
			continue
		}
		asker, ok := r.asker(from)
		if !ok { // nobody who may ask is answered nothing at all, or others could be hit with answers
			continue
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:size]) != nil || q.Response {
			continue
		}
		r.answer(ctx, q, asker, false, func(a *dns.Msg) {
			a.Truncate(udpSize(q))
			if raw, err := a.Pack(); err == nil {
				_, _ = r.udp.WriteTo(raw, from) // who does not get it asks again
			}
		})
	}
}

// asker is who sent something, if he is on the network.
func (r *resolver) asker(from net.Addr) (netip.Addr, bool) {
	var at netip.AddrPort
	switch a := from.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	asker := at.Addr().Unmap()
	return asker, r.n.has(asker)
}

// udpSize is how large an answer the asker takes (RFC 6891, section 6.2.3).
func udpSize(q *dns.Msg) int {
	if opt := q.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	return dns.MinMsgSize
}

// answer answers a question: at once where that waits for nobody, and beside others where the host's resolvers have to
// be asked.
func (r *resolver) answer(ctx context.Context, q *dns.Msg, asker netip.Addr, wait bool, say func(*dns.Msg)) {
	if a := r.local(q, asker); a != nil {
		say(a)
		return
	}
	if !r.forwards.enter(asker) {
		say(failure(q, dns.RcodeServerFailure))
		return
	}
	ask := func() {
		defer r.forwards.leave(asker)
		say(r.forward(ctx, q, wait))
	}
	if wait {
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
		if err != nil { // of that connection, or of the whole host: out of descriptors
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
			r.converse(ctx, c, asker)
		})
	}
}

func sleep(ctx context.Context) {
	const pause = 100 * time.Millisecond
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

// converse answers one question after the other.
func (r *resolver) converse(ctx context.Context, c net.Conn, asker netip.Addr) {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close() //nolint:errcheck // what was to be said is said
	end := time.Now().Add(connTime)
	conn := &dns.Conn{Conn: c}
	for {
		idle := time.Now().Add(idleTime)
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
			if c.SetDeadline(time.Now().Add(idleTime)) != nil {
				return
			}
			err = conn.WriteMsg(a)
		})
		if err != nil {
			return
		}
	}
}

// A gate lets so many through at once, and of one asker so many: one that floods is not to keep the others out.
type gate struct {
	all, each int

	mu sync.Mutex
	in map[netip.Addr]int
	// sum is that of in.
	sum int
}

func (g *gate) enter(asker netip.Addr) bool {
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

func (g *gate) leave(asker netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sum--
	if g.in[asker]--; g.in[asker] == 0 {
		delete(g.in, asker)
	}
}
