package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netyard/kernel/policy"
)

// A Decision is the outcome of all policies for one endpoint.
type Decision struct {
	Endpoint Endpoint
	// In4, In6, Out4 and Out6 are the allowed traffic; nil: no policy restricts it.
	In4, In6, Out4, Out6 *policy.Access
}

// Of returns the allowed traffic for an address of the endpoint.
func (d Decision) Of(a netip.Addr) (in, out *policy.Access) {
	if a.Is6() {
		return d.In6, d.Out6
	}
	return d.In4, d.Out4
}

// Decide returns the decision for each endpoint that a policy applies to.
//
// While the container of an endpoint is not known, the strictest outcome applies: every policy that may select the
// endpoint restricts it, every deny rule that may match applies, and only allow rules that surely match do.
func Decide(policies []Policy, endpoints []Endpoint) []Decision {
	d := decider{
		policies: policies, endpoints: endpoints, cache: map[string]*policy.Access{}, peers: map[string][]span{},
	}
	var all []Decision
	for _, e := range endpoints {
		one := Decision{Endpoint: e}
		one.In4, one.In6 = d.allowed(e, true, false), d.allowed(e, true, true)
		one.Out4, one.Out6 = d.allowed(e, false, false), d.allowed(e, false, true)
		if one.In4 != nil || one.Out4 != nil { // both families or none
			all = append(all, one)
		}
	}
	return all
}

func (p Policy) section(in bool) *Section {
	if in {
		return p.Ingress
	}
	return p.Egress
}

// A decider caches results, since most endpoints are treated like another one.
type decider struct {
	policies  []Policy
	endpoints []Endpoint
	cache     map[string]*policy.Access
	peers     map[string][]span
}

// A span is a range of addresses, ends included.
type span struct{ first, last netip.Addr }

// A clause is a rule with the addresses that it matches.
type clause struct {
	spans []span
	ports ranges
	deny  bool
}

// allowed returns what one endpoint may receive or send, in one family; nil: everything, since no policy applies.
func (d *decider) allowed(e Endpoint, in, v6 bool) *policy.Access {
	var clauses []clause
	var class strings.Builder // endpoints of one class are treated alike
	open, restricted := true, false
	for i, p := range d.policies {
		section := p.section(in)
		m := p.Select.matches(e)
		if section == nil || m == no {
			continue
		}
		fmt.Fprintf(&class, "%d:%d ", i, m)
		restricted = true
		open = open && section.verdict() == Allow
		for _, r := range section.Deny {
			clauses = append(clauses, clause{d.spans(r, true, v6), portsOf(r), true})
		}
		if m == yes {
			for _, r := range section.Allow {
				clauses = append(clauses, clause{d.spans(r, false, v6), portsOf(r), false})
			}
		}
	}
	if !restricted {
		return nil
	}
	if open {
		clauses = append(clauses, clause{[]span{everything(v6)}, ranges{everyPort()}, false})
	}
	key := fmt.Sprint(class.String(), in, v6)
	if d.cache[key] == nil {
		d.cache[key] = &policy.Access{Allow: passagesOf(clauses)}
	}
	return d.cache[key]
}

// spans returns the addresses that a rule matches. An endpoint that may match is matched by a deny rule, and not by an
// allow rule.
func (d *decider) spans(r Rule, deny, v6 bool) []span {
	if r.CIDR.IsValid() {
		if r.CIDR.Addr().Is6() != v6 {
			return nil
		}
		return []span{{r.CIDR.Masked().Addr(), lastOf(r.CIDR.Prefix)}}
	}
	if r.IsZero() {
		return []span{everything(v6)}
	}
	key := fmt.Sprint(r.Selector, deny, v6)
	if cached, ok := d.peers[key]; ok {
		return cached
	}
	least := yes
	if deny {
		least = maybe
	}
	var spans []span
	for _, e := range d.endpoints {
		if e.Gone || r.matches(e) < least {
			continue
		}
		for _, a := range e.Addrs {
			if a.Is6() == v6 {
				spans = append(spans, span{a, a})
			}
		}
	}
	d.peers[key] = spans
	return spans
}

// passagesOf splits the address space where any clause begins or ends, determines the allowed ports of each piece, and
// joins neighbours with the same. So passages do not overlap, and precedence of rules is resolved here, not in the
// kernel.
func passagesOf(clauses []clause) (passages []policy.Allowance) {
	type edge struct {
		at     netip.Addr // where a clause begins, or the first address after it
		clause int
		begins bool
	}
	var edges []edge
	for i, c := range clauses {
		for _, s := range c.spans {
			edges = append(edges, edge{s.first, i, true})
			if behind := s.last.Next(); behind.IsValid() {
				edges = append(edges, edge{behind, i, false})
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	inside := make([]int, len(clauses)) // how many spans of each clause contain the piece
	var last ranges
	var from netip.Addr
	emit := func(until netip.Addr) {
		for _, p := range last.blocks() {
			p.First, p.Last = from, until
			passages = append(passages, p)
		}
	}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			if edges[i].begins {
				inside[edges[i].clause]++
			} else {
				inside[edges[i].clause]--
			}
		}
		now := allowedPorts(clauses, inside)
		if slices.Equal(now, last) {
			continue
		}
		if from.IsValid() {
			emit(at.Prev())
		}
		last, from = now, at
	}
	if from.IsValid() {
		emit(everything(from.Is6()).last)
	}
	return passages
}

// allowedPorts returns the allowed ports of a piece, given how many spans of each clause contain it.
func allowedPorts(clauses []clause, inside []int) ranges {
	var allow, deny ranges
	for i, c := range clauses {
		switch {
		case inside[i] == 0:
		case c.deny:
			deny = append(deny, c.ports...)
		default:
			allow = append(allow, c.ports...)
		}
	}
	return allow.union().without(deny.union())
}

// everything returns all addresses of a family.
func everything(v6 bool) span {
	if v6 {
		return span{netip.IPv6Unspecified(), lastOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
	}
	return span{netip.IPv4Unspecified(), lastOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0))}
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
