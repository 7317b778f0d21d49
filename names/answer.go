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
	// ttl is the time for which an answer may be cached, in seconds. It is short since containers come and go.
	ttl = 5

	// serverTimeout bounds the wait for one of the host's resolvers, and forwardTimeout for all of them: resolver
	// libraries wait for 5 s (resolv.conf(5)).
	serverTimeout, forwardTimeout = 2 * time.Second, 4 * time.Second
	maxServers                    = 3 // MAXNS (resolv.conf(5))
)

// reply returns an answer with a code and no records.
func reply(q *dns.Msg, code int) *dns.Msg {
	a := new(dns.Msg)
	a.SetRcode(q, code)
	a.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		a.SetEdns0(maxUDP, opt.Do())
	}
	return a
}

// local returns the answer to a question that the directory can answer or that is refused, or nil if the host's
// resolvers have to be asked.
func (r *resolver) local(q *dns.Msg, asker netip.Addr) *dns.Msg {
	switch opt := q.IsEdns0(); {
	case q.Opcode != dns.OpcodeQuery:
		return reply(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return reply(q, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return reply(q, dns.RcodeBadVers)
	}
	ask := q.Question[0]
	if ask.Qclass != dns.ClassINET || ask.Qtype == dns.TypeAXFR || ask.Qtype == dns.TypeIXFR {
		return reply(q, dns.RcodeRefused)
	}
	name := strings.ToLower(strings.TrimSuffix(ask.Name, "."))
	a := reply(q, dns.RcodeSuccess)
	if addr, ok := reversed(name); ok {
		host, ours := r.s.Directory.NameOf(r.n.ID, asker, addr)
		switch {
		case ours && host == "":
			a.Rcode = dns.RcodeNameError
			return a
		case ours:
			if _, valid := dns.IsDomainName(host); valid && (ask.Qtype == dns.TypePTR || ask.Qtype == dns.TypeANY) {
				a.Answer = []dns.RR{&dns.PTR{Hdr: header(ask, dns.TypePTR), Ptr: dns.Fqdn(host)}}
			}
			return a
		}
	} else if addrs := r.s.Directory.Lookup(r.n.ID, asker, name); len(addrs) > 0 {
		// A known name without addresses of the family gets an empty answer: after an error the asker would ask others.
		a.Answer = r.records(ask, addrs)
		return a
	}
	if r.n.Internal {
		return reply(q, dns.RcodeRefused)
	}
	return nil
}

func header(ask dns.Question, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: ask.Name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// records returns records of the addresses that match the question's type, starting with another address each time.
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

// reversed returns the address of a name in in-addr.arpa (RFC 1035, section 3.5) or ip6.arpa (RFC 3596, section 2.5).
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

// forward asks the host's resolvers in turn, until one does not answer SERVFAIL or REFUSED. If none does, it returns
// the last answer.
func (r *resolver) forward(ctx context.Context, q *dns.Msg, tcp bool) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	conf, err := dns.ClientConfigFromFile(r.s.Resolvers)
	if err != nil {
		r.s.Log.Debug("host's resolvers not read", "err", err)
		return reply(q, dns.RcodeServerFailure)
	}
	last := reply(q, dns.RcodeServerFailure)
	for _, server := range conf.Servers[:min(len(conf.Servers), maxServers)] {
		a, err := exchange(ctx, q, net.JoinHostPort(server, strconv.Itoa(int(r.s.Upstream))), tcp)
		if err != nil {
			r.s.Log.Debug("host's resolver failed", "resolver", server, "err", err)
			continue
		}
		if last = a; a.Rcode != dns.RcodeServerFailure && a.Rcode != dns.RcodeRefused {
			break
		}
	}
	return last
}

var errOther = errors.New("the answer is to another question")

// exchange forwards a question to one resolver, by the protocol that it came by. The ID and the source port are random,
// so that an attacker who does not see the question cannot forge an answer (RFC 5452).
func exchange(ctx context.Context, q *dns.Msg, server string, tcp bool) (*dns.Msg, error) {
	ask := q.Copy()
	ask.Id = dns.Id()
	if opt := ask.IsEdns0(); opt != nil {
		opt.SetUDPSize(min(opt.UDPSize(), maxUDP))
	}
	client := &dns.Client{Net: "udp", Timeout: serverTimeout}
	if tcp {
		client.Net = "tcp"
	}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // the answer was read
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	a, _, err := client.ExchangeWithConnContext(ctx, ask, conn)
	if err != nil {
		return nil, err
	}
	same := a.Response && len(a.Question) == 1 && a.Question[0].Qtype == q.Question[0].Qtype &&
		strings.EqualFold(a.Question[0].Name, q.Question[0].Name)
	if !same {
		return nil, errOther
	}
	a.Id, a.Question = q.Id, q.Question
	return a, nil
}
