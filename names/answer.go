package names

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// ttl is how long an answer may be kept, seconds: containers come and go.
	ttl = 5

	// serverTime is how long one of the host's resolvers is waited for, and forwardTime all of them: askers wait for 5
	// s (resolv.conf(5)).
	serverTime, forwardTime = 2 * time.Second, 4 * time.Second
	maxServers              = 3 // MAXNS (resolv.conf(5))
)

// failure is an answer that says only how it went.
func failure(q *dns.Msg, code int) *dns.Msg {
	a := new(dns.Msg)
	a.SetRcode(q, code)
	a.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(maxUDP, opt.Do())
	}
	return a
}

// local answers what the directory knows, and what is refused; nil: the host's resolvers have to be asked.
func (r *resolver) local(q *dns.Msg, asker netip.Addr) *dns.Msg {
	switch opt := q.IsEdns0(); {
	case q.Opcode != dns.OpcodeQuery:
		return failure(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return failure(q, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return failure(q, dns.RcodeBadVers)
	}
	ask := q.Question[0]
	if ask.Qclass != dns.ClassINET || ask.Qtype == dns.TypeAXFR || ask.Qtype == dns.TypeIXFR {
		return failure(q, dns.RcodeRefused)
	}
	name := strings.ToLower(strings.TrimSuffix(ask.Name, "."))
	a := failure(q, dns.RcodeSuccess)
	if addr, ok := reversed(name); ok {
		called, ours := r.s.Directory.NameOf(r.n.ID, asker, addr)
		switch {
		case ours && called == "":
			a.Rcode = dns.RcodeNameError
			return a
		case ours:
			if _, fits := dns.IsDomainName(called); fits && (ask.Qtype == dns.TypePTR || ask.Qtype == dns.TypeANY) {
				a.Answer = []dns.RR{&dns.PTR{Hdr: header(ask, dns.TypePTR), Ptr: dns.Fqdn(called)}}
			}
			return a
		}
	} else if addrs := r.s.Directory.Lookup(r.n.ID, asker, name); len(addrs) > 0 {
		// Who is known and has no address of that family has none: an error would have the asker ask others.
		a.Answer = r.records(ask, addrs)
		return a
	}
	if r.n.Internal {
		return failure(q, dns.RcodeRefused)
	}
	return nil
}

func header(ask dns.Question, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: ask.Name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// records are the addresses that are asked for, each time with another one in front.
func (r *resolver) records(ask dns.Question, addrs []netip.Addr) (all []dns.RR) {
	for _, addr := range addrs {
		switch {
		case addr.Is4() && (ask.Qtype == dns.TypeA || ask.Qtype == dns.TypeANY):
			all = append(all, &dns.A{Hdr: header(ask, dns.TypeA), A: addr.AsSlice()})
		case addr.Is6() && (ask.Qtype == dns.TypeAAAA || ask.Qtype == dns.TypeANY):
			all = append(all, &dns.AAAA{Hdr: header(ask, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	if len(all) > 1 {
		first := int(r.turn.Add(1)) % len(all)
		all = slices.Concat(all[first:], all[:first])
	}
	return all
}

// reversed is the address that a name of in-addr.arpa (RFC 1035, section 3.5) or ip6.arpa (RFC 3596, section 2.5)
// stands for.
func reversed(name string) (netip.Addr, bool) {
	if text, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(text, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	text, ok := strings.CutSuffix(name, ".ip6.arpa")
	labels := strings.Split(text, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(labels)
	raw, err := hex.DecodeString(strings.Join(labels, ""))
	if err != nil || len(raw) != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(raw)), true
}

// forward asks the host's resolvers, one after the other. The last word of one that knows nothing counts if no other
// knows more.
func (r *resolver) forward(ctx context.Context, q *dns.Msg, tcp bool) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	conf, err := dns.ClientConfigFromFile(r.s.Resolvers)
	if err != nil {
		r.s.Log.Debug("read the host's resolvers", "err", err)
		return failure(q, dns.RcodeServerFailure)
	}
	last := failure(q, dns.RcodeServerFailure)
	for _, server := range conf.Servers[:min(len(conf.Servers), maxServers)] {
		a, err := exchange(ctx, q, net.JoinHostPort(server, strconv.Itoa(int(r.s.Upstream))), tcp)
		if err != nil {
			r.s.Log.Debug("ask a resolver of the host's", "resolver", server, "err", err)
			continue
		}
		if last = a; a.Rcode != dns.RcodeServerFailure && a.Rcode != dns.RcodeRefused {
			break
		}
	}
	return last
}

var errOther = errors.New("the answer is to another question")

// exchange asks one resolver, as the question was asked. It has an id, and a port, that who does not see the question
// cannot know (RFC 5452).
func exchange(ctx context.Context, q *dns.Msg, server string, tcp bool) (*dns.Msg, error) {
	ask := q.Copy()
	ask.Id = dns.Id()
	if opt := ask.IsEdns0(); opt != nil {
		opt.SetUDPSize(min(opt.UDPSize(), maxUDP))
	}
	client := &dns.Client{Net: "udp", Timeout: serverTime}
	if tcp {
		client.Net = "tcp"
	}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // all is said
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	a, _, err := client.ExchangeWithConnContext(ctx, ask, conn)
	if err != nil {
		return nil, err
	}
	if !a.Response || len(a.Question) != 1 || !strings.EqualFold(a.Question[0].Name, q.Question[0].Name) || a.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errOther
	}
	a.Id, a.Question = q.Id, q.Question
	return a, nil
}
