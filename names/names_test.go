package names

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"netyard/kernel/kerneltest"
	"netyard/kernel/ports"
	"netyard/kernel/sandbox"
)

// A book is a Directory with fixed contents.
type book struct {
	mu       sync.Mutex
	networks []Network
	names    map[string]map[string][]netip.Addr // by network and name
}

func (b *book) Networks() []Network {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.networks)
}

func (b *book) Lookup(network string, _ netip.Addr, name string) []netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.names[network][name]
}

func (b *book) NameOf(network string, _, addr netip.Addr) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ours := slices.ContainsFunc(b.networks, func(n Network) bool {
		return n.ID == network && slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(addr) })
	})
	for name, addrs := range b.names[network] {
		if ours && slices.Contains(addrs, addr) {
			return name + ".blue", true
		}
	}
	return "", ours
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// A rig is a host with two networks, a container on each, and resolvers for both.
type rig struct {
	*kerneltest.Host
	t          *testing.T
	book       *book
	blue, dark *kerneltest.Host // containers; dark's network is internal
	file       string
	port       uint16
	log        *kerneltest.Log
	changed    chan struct{}
}

const (
	blueBridge = "ip link add nyb-blue type bridge && ip addr add 10.20.0.1/16 dev nyb-blue && " +
		"ip addr add fd20::1/64 dev nyb-blue nodad && ip link set nyb-blue up && ip link set c1 master nyb-blue"
	darkBridge = "ip link add nyb-dark type bridge && ip addr add 10.30.0.1/16 dev nyb-dark && " +
		"ip link set nyb-dark up && ip link set c2 master nyb-dark"
)

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{
		Host: kerneltest.New(t), t: t, file: filepath.Join(t.TempDir(), "resolv.conf"),
		log: new(kerneltest.Log), changed: make(chan struct{}, 1),
		book: &book{names: map[string]map[string][]netip.Addr{
			"b": {
				"web":  addrs("10.20.0.7", "fd20::7"),
				"four": addrs("10.20.0.8"),
				"many": addrs("10.20.0.10", "10.20.0.11", "10.20.0.12"),
			},
			"d": {"web": addrs("10.30.0.7")},
		}},
	}
	r.blue, r.dark = r.Peer(t, "c1"), r.Peer(t, "c2")
	r.Sh(t, blueBridge)
	r.Sh(t, darkBridge)
	r.blue.Sh(t, "ip addr add 10.20.0.5/16 dev eth0 && ip addr add fd20::5/64 dev eth0 nodad && "+
		"ip addr add 192.0.2.5/32 dev eth0 && ip route add default via 10.20.0.1")
	r.dark.Sh(t, "ip addr add 10.30.0.5/16 dev eth0 && ip route add default via 10.30.0.1")
	r.Sh(t, "ip route add 192.0.2.5 dev nyb-blue")
	r.book.networks = []Network{
		{
			ID: "b", Name: "blue", Link: "nyb-blue", At: addrs("10.20.0.1", "fd20::1"),
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd20::/64")},
		},
		{
			ID: "d", Name: "dark", Link: "nyb-dark", At: addrs("10.30.0.1"), Internal: true,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.30.0.0/16")},
		},
	}
	return r
}

// run runs the resolvers until the test ends.
func (r *rig) run() *Server {
	s := &Server{
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Sockets: ports.Sockets{Handle: r.Handle}, Directory: r.book,
		Changed: r.changed, Resolvers: r.file, Port: r.port, Upstream: r.port,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
		listeners := func() ([]sandbox.Listener, error) { return sandbox.Listeners(r.Handle, "tcp", "udp") }
		kerneltest.Released(r.t, listeners, r.port)
	})
	r.eventually("resolvers listen", func() bool { return len(r.listening()) == 6 })
	return s
}

// listening returns the sockets at the resolvers' port.
func (r *rig) listening() (all []string) {
	ls, err := sandbox.Listeners(r.Handle, "tcp", "udp")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range ls {
		if l.Port == r.port {
			all = append(all, l.Proto+" "+l.Addr.String())
		}
	}
	return all
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never: %s", what)
		}
	}
}

// upstream starts a resolver of the host at an address of the test's own loopback. It sends what answer returns.
func (r *rig) upstream(at string, answer func(q *dns.Msg) *dns.Msg) {
	r.t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if a := answer(q); a != nil {
			_ = w.WriteMsg(a)
		}
	})
	lc := net.ListenConfig{}
	l, err := lc.Listen(r.t.Context(), "tcp", net.JoinHostPort(at, fmt.Sprint(r.port)))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.port == 0 {
		r.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	pc, err := lc.ListenPacket(r.t.Context(), "udp", net.JoinHostPort(at, fmt.Sprint(r.port)))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: pc, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-started
		r.t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

// resolvers writes the file that names the host's resolvers.
func (r *rig) resolvers(servers ...string) {
	r.t.Helper()
	text := ""
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// A question is one that a container asks.
type question struct {
	of       *kerneltest.Host
	at       string // default: 10.20.0.1
	port     uint16 // default: the resolvers' port
	network  string // default: udp
	from     string // source address, default: the kernel's choice
	kind     uint16
	name     string
	edns     uint16
	patience time.Duration
	change   func(*dns.Msg)
}

func (r *rig) ask(q question) (*dns.Msg, error) {
	if q.at == "" {
		q.at = "10.20.0.1"
	}
	if q.network == "" {
		q.network = "udp"
	}
	if q.patience == 0 {
		q.patience = 10 * time.Second
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(q.name), q.kind)
	if q.edns > 0 {
		m.SetEdns0(q.edns, false)
	}
	if q.change != nil {
		q.change(m)
	}
	port := q.port
	if port == 0 {
		port = r.port
	}
	client := &dns.Client{Net: q.network, Timeout: q.patience, Dialer: &net.Dialer{Timeout: q.patience}}
	if q.from != "" {
		client.Dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(q.from)}
	}
	var a *dns.Msg
	err := q.of.Do(func() (err error) {
		a, _, err = client.Exchange(m, net.JoinHostPort(q.at, fmt.Sprint(port)))
		return err
	})
	return a, err
}

// answer returns an answer as text: its code, TC if it is set, and the data of its records.
func (r *rig) answer(q question) string {
	r.t.Helper()
	a, err := r.ask(q)
	if err != nil {
		r.t.Errorf("%s %s: %v", dns.TypeToString[q.kind], q.name, err)
		return ""
	}
	text := dns.RcodeToString[a.Rcode]
	if a.Truncated {
		text += " TC"
	}
	for _, rr := range a.Answer {
		text += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
		if rr.Header().Ttl != ttl && !strings.HasPrefix(q.name, "out") {
			r.t.Errorf("TTL of %s", rr)
		}
	}
	return text
}

// TestAnswers shows the answers to questions of all kinds.
func TestAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.upstream("127.0.0.1", func(q *dns.Msg) *dns.Msg {
		a := new(dns.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case strings.HasPrefix(name, "out."):
			a.Answer = []dns.RR{recordA(name, 9)}
		case strings.HasPrefix(name, "outlong."):
			for i := range 100 {
				a.Answer = append(a.Answer, recordA(name, byte(i)))
			}
			if !strings.HasPrefix(name, "outlong.tcp") {
				a.Truncate(512)
			}
		default:
			a.Rcode = dns.RcodeNameError
		}
		return a
	})
	r.resolvers("127.0.0.1")
	for i := range 200 {
		r.book.names["b"]["crowd"] = append(r.book.names["b"]["crowd"], netip.AddrFrom4([4]byte{10, 20, 1, byte(i)}))
	}
	r.run()
	for _, q := range []struct {
		question
		want string
	}{
		{question{kind: dns.TypeA, name: "web"}, "NOERROR 10.20.0.7"},
		{question{kind: dns.TypeAAAA, name: "web"}, "NOERROR fd20::7"},
		{question{kind: dns.TypeA, name: "WeB"}, "NOERROR 10.20.0.7"},
		{question{kind: dns.TypeA, name: "web", network: "tcp"}, "NOERROR 10.20.0.7"},
		{question{kind: dns.TypeA, name: "web", at: "fd20::1"}, "NOERROR 10.20.0.7"},
		{question{kind: dns.TypeAAAA, name: "web", at: "fd20::1", network: "tcp"}, "NOERROR fd20::7"},
		{question{kind: dns.TypeAAAA, name: "four"}, "NOERROR"},
		{question{kind: dns.TypeMX, name: "four"}, "NOERROR"},
		{question{kind: dns.TypeANY, name: "four"}, "NOERROR 10.20.0.8"},
		{question{kind: dns.TypePTR, name: "7.0.20.10.in-addr.arpa"}, "NOERROR web.blue."},
		{question{kind: dns.TypePTR, name: "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa"}, "NOERROR web.blue."},
		{question{kind: dns.TypeA, name: "7.0.20.10.in-addr.arpa"}, "NOERROR"},
		{question{kind: dns.TypePTR, name: "9.9.20.10.in-addr.arpa"}, "NXDOMAIN"},
		{question{kind: dns.TypePTR, name: "9.113.0.203.in-addr.arpa"}, "NXDOMAIN"}, // the host's resolver's answer
		{question{kind: dns.TypeA, name: "out.example"}, "NOERROR 203.0.113.9"},
		{question{kind: dns.TypeA, name: "out.example", network: "tcp"}, "NOERROR 203.0.113.9"},
		{question{kind: dns.TypeA, name: "nobody"}, "NXDOMAIN"},
		{question{kind: dns.TypeAXFR, name: "blue"}, "REFUSED"},
		{question{kind: dns.TypeA, name: "web", change: func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }}, "REFUSED"},
		{question{kind: dns.TypeA, name: "web", change: func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }}, "NOTIMP"},
		{question{kind: dns.TypeA, name: "web", change: func(m *dns.Msg) { m.Question = nil }}, "FORMERR"},
		{question{kind: dns.TypeA, name: "web", edns: 1232, change: func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }}, "BADSIG"}, // has the same number as BADVERS
	} {
		q.of = r.blue
		if got := r.answer(q.question); got != q.want {
			t.Errorf("%s %s: %q, want %q", dns.TypeToString[q.kind], q.name, got, q.want)
		}
	}
	r.sizes()
	firsts := map[string]int{}
	for range 6 {
		firsts[strings.Fields(r.answer(question{of: r.blue, kind: dns.TypeA, name: "many"}))[1]]++
	}
	if len(firsts) != 3 || firsts["10.20.0.11"] != 2 {
		t.Errorf("first addresses, with their counts: %v", firsts)
	}
	for name, want := range map[string]string{"web": "NOERROR 10.30.0.7", "four": "REFUSED", "out.example": "REFUSED"} {
		if got := r.answer(question{of: r.dark, at: "10.30.0.1", kind: dns.TypeA, name: name}); got != want {
			t.Errorf("on an internal network, %s: %q", name, got)
		}
	}
}

// sizes shows that an answer by UDP is no larger than the asker accepts and than maxUDP, and that it is whole by TCP.
func (r *rig) sizes() {
	r.t.Helper()
	for size, most := range map[uint16]int{0: 512, 1000: 1000, 65535: maxUDP} {
		a, err := r.ask(question{of: r.blue, kind: dns.TypeA, name: "crowd", edns: size})
		if err != nil {
			r.t.Fatal(err)
		}
		if a.Compress = true; !a.Truncated || a.Len() > most || len(a.Answer) == 0 {
			r.t.Errorf("for %d bytes: %d bytes, %d records", size, a.Len(), len(a.Answer))
		}
	}
	for name, want := range map[string]int{"crowd": 200, "outlong.tcp": 100} {
		a, err := r.ask(question{of: r.blue, kind: dns.TypeA, name: name, network: "tcp"})
		if err != nil || a.Truncated || len(a.Answer) != want {
			r.t.Errorf("%s by TCP: %v %v", name, err, a)
		}
	}
	got := r.answer(question{of: r.blue, kind: dns.TypeA, name: "outlong.example"})
	if !strings.HasPrefix(got, "NOERROR TC") {
		r.t.Errorf("truncated by the host's resolver: %s", got)
	}
}

// recordA returns a record of an address of 203.0.113.0/24.
func recordA(name string, last byte) *dns.A {
	h := dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
	return &dns.A{Hdr: h, A: net.IPv4(203, 0, 113, last)}
}

// TestWhoIsAnswered shows that only the containers of a network are answered.
func TestWhoIsAnswered(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.upstream("127.0.0.1", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(q) })
	r.resolvers("127.0.0.1")
	r.run()
	r.Sh(t, "sysctl -qw net.ipv4.ip_forward=1")
	const short = 300 * time.Millisecond
	for who, q := range map[string]question{
		"a container of another network": {of: r.dark},
		"the host":                       {of: r.Host},
		"a foreign address":              {of: r.blue, from: "192.0.2.5"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if q.from != "" && network == "tcp" {
				continue
			}
			q.network, q.kind, q.name, q.patience = network, dns.TypeA, "web", short
			if a, err := r.ask(q); err == nil {
				t.Errorf("%s is answered %v", who, a)
			}
		}
	}
	if got := r.answer(question{of: r.blue, kind: dns.TypeA, name: "web"}); got != "NOERROR 10.20.0.7" {
		t.Errorf("a container of the network is answered %q", got)
	}
	if !r.dark.Pings("10.20.0.1", true) {
		t.Error("the resolver's address is not reachable from the other network, so that the test shows nothing")
	}
}

// TestHostsResolvers shows that the next resolver of the host is asked if one is silent or refuses, and that the file
// is read for each question.
func TestHostsResolvers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ip := func(last byte) func(*dns.Msg) *dns.Msg {
		return func(q *dns.Msg) *dns.Msg {
			a := new(dns.Msg).SetReply(q)
			a.Answer = []dns.RR{recordA(q.Question[0].Name, last)}
			return a
		}
	}
	r.upstream("127.0.0.1", ip(1))
	r.upstream("127.0.0.2", ip(2))
	r.upstream("127.0.0.3", func(*dns.Msg) *dns.Msg { return nil })
	r.upstream("127.0.0.4", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeRefused) })
	r.upstream("127.0.0.5", func(q *dns.Msg) *dns.Msg {
		a := new(dns.Msg).SetReply(q)
		a.Question[0].Name = "other."
		return a
	})
	r.run() // there is no file yet
	q := question{of: r.blue, kind: dns.TypeA, name: "out.example"}
	if got := r.answer(q); got != "SERVFAIL" {
		t.Errorf("without a resolver of the host: %s", got)
	}
	for _, c := range []struct {
		servers []string
		want    string
	}{
		{[]string{"127.0.0.2", "127.0.0.1"}, "NOERROR 203.0.113.2"},
		{[]string{"127.0.0.1"}, "NOERROR 203.0.113.1"},
		{[]string{"127.0.0.3", "127.0.0.1"}, "NOERROR 203.0.113.1"},
		{[]string{"127.0.0.9", "127.0.0.4", "127.0.0.2"}, "NOERROR 203.0.113.2"},
		{[]string{"127.0.0.4"}, "REFUSED"},
		{[]string{"127.0.0.5"}, "SERVFAIL"},
	} {
		r.resolvers(c.servers...)
		if got := r.answer(q); got != c.want {
			t.Errorf("%v: %s, want %s", c.servers, got, c.want)
		}
	}
	// While questions wait for a silent resolver, names of containers are resolved, and the number of waiting questions
	// is limited.
	r.resolvers("127.0.0.3")
	q.patience = time.Millisecond
	for range 2 * askerForwards {
		if _, err := r.ask(q); err == nil {
			break // refused: the limit is reached
		}
	}
	if got := r.answer(question{of: r.blue, kind: dns.TypeA, name: "web"}); got != "NOERROR 10.20.0.7" {
		t.Errorf("while other questions wait: %s", got)
	}
}

// TestSockets shows that sockets are opened and closed with networks, opened again on a bridge that was made again, and
// opened when a port in use becomes free.
func TestSockets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.upstream("127.0.0.1", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(q) })
	s := r.run()
	answered := func() bool {
		a, err := r.ask(question{of: r.blue, kind: dns.TypeA, name: "web", patience: time.Second})
		return err == nil && len(a.Answer) == 1
	}
	r.Sh(t, "ip link del nyb-blue")
	r.Sh(t, blueBridge)
	r.eventually("a name is resolved on the new bridge", answered)
	set := func(ns []Network) {
		r.book.mu.Lock()
		r.book.networks = ns
		r.book.mu.Unlock()
		r.changed <- struct{}{}
	}
	all := r.book.Networks()
	set(all[1:])
	r.eventually("the sockets of the removed network are closed", func() bool { return len(r.listening()) == 2 })
	set(nil)
	r.eventually("all sockets are closed", func() bool { return len(r.listening()) == 0 })
	var other net.Listener
	if err := r.Do(func() (err error) {
		other, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp4", fmt.Sprint("0.0.0.0:", r.port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	set(all)
	owner := fmt.Sprintf("(pid %d) has tcp of 0.0.0.0:%d", os.Getpid(), r.port)
	r.eventually("the log names the owner of the port", func() bool {
		return strings.Contains(r.log.String(), "address=10.20.0.1") && strings.Contains(r.log.String(), owner)
	})
	a, err := r.ask(question{of: r.blue, at: "fd20::1", kind: dns.TypeA, name: "web"})
	if err != nil || len(a.Answer) != 1 {
		t.Errorf("at the other address: %v %v", a, err)
	}
	r.eventually("both networks have a trouble", func() bool { return len(s.Troubles()) == 2 })
	if all := s.Troubles(); !strings.Contains(all[0].Text, "has tcp of 0.0.0.0") || all[0].Network == "" {
		t.Errorf("troubles: %v", all)
	}
	_ = other.Close()
	r.eventually("a name is resolved when the port is free", answered)
	r.eventually("no trouble is left", func() bool { return len(s.Troubles()) == 0 })
	if n := r.log.Count("has tcp of 0.0.0.0"); n != 2 { // once for each network
		t.Errorf("the failure was logged %d times: %s", n, r.log)
	}
}

// TestPort53 shows that the resolver answers at port 53, even if another process has that port on all addresses of the
// host, and that it answers only the network's containers.
func TestPort53(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.upstream("127.0.0.1", func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(q) })
	r.run()
	r.LeaveTablesOpen()
	if err := r.LoadFirewall(); err != nil {
		t.Fatal(err)
	}
	r.Sh(t, "sysctl -qw net.ipv4.ip_forward=1")
	for _, at := range addrs("10.20.0.1", "fd20::1") {
		for _, e := range ports.RedirectPort(at, 53, r.port) {
			if err := r.Ensure(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	var others []io.Closer
	if err := r.Do(func() error {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":53")
		if err != nil {
			return err
		}
		pc, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", ":53")
		others = append(others, l, pc)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, at := range []string{"10.20.0.1", "fd20::1"} {
			q := question{of: r.blue, network: network, at: at, port: 53, kind: dns.TypeA, name: "web"}
			if got := r.answer(q); got != "NOERROR 10.20.0.7" {
				t.Errorf("%s at %s: %q", network, at, got)
			}
		}
		for who, of := range map[string]*kerneltest.Host{"another network": r.dark, "the host": r.Host} {
			const short = 300 * time.Millisecond
			q := question{of: of, network: network, port: 53, kind: dns.TypeA, name: "web", patience: short}
			if a, err := r.ask(q); err == nil {
				t.Errorf("%s is answered %v", who, a)
			}
		}
	}
	for _, c := range others {
		_ = c.Close()
	}
}

// TestLimiter shows that the total and the number of one asker are limited.
func TestLimiter(t *testing.T) {
	t.Parallel()
	g := limiter{all: 3, each: 2}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i, want := range []bool{true, true, false} {
		if g.enter(a) != want {
			t.Errorf("enter %d of the first asker: not %t", i, want)
		}
	}
	if !g.enter(b) || g.enter(b) {
		t.Error("the second asker does not have exactly one left")
	}
	g.leave(a)
	if !g.enter(b) || len(g.in) != 2 {
		t.Error("the second asker cannot enter after the first one left")
	}
	for _, who := range []netip.Addr{a, b, b} {
		g.leave(who)
	}
	if len(g.in) != 0 || g.sum != 0 {
		t.Errorf("after all have left: %v", g.in)
	}
}

// FuzzQuery shows that the answer to every question can be packed, is not too large, and has the question's ID.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{
		"web", "7.0.20.10.in-addr.arpa",
		"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.d.f.ip6.arpa", ".",
	} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeANY} {
			q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind).SetEdns0(4096, true)
			raw, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	network := Network{
		ID: "b", Internal: true,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd20::/64")},
	}
	names := map[string]map[string][]netip.Addr{
		"b": {"web": addrs("10.20.0.7", "fd20::7"), strings.Repeat("x", 70): addrs("10.20.0.8")},
	}
	r := &resolver{n: network, s: &Server{Directory: &book{networks: []Network{network}, names: names}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if len(raw) > maxQuestion || q.Unpack(raw) != nil || q.Response {
			return
		}
		a := r.local(q, netip.MustParseAddr("10.20.0.5"))
		if a == nil {
			t.Fatal("a question of an internal network is forwarded")
		}
		a.Truncate(udpSize(q))
		out, err := a.Pack()
		if err != nil {
			t.Fatalf("%v: %v", a, err)
		}
		back := new(dns.Msg)
		if err := back.Unpack(out); err != nil || len(out) > udpSize(q) || !back.Response || back.Id != q.Id {
			t.Fatalf("%d bytes for %d: %v\n%v\n%v", len(out), udpSize(q), err, q, back)
		}
	})
}
