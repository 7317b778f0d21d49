package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netyard/kernel/policy"
)

// A Decision is what policies say about one endpoint.
type Decision struct {
	Endpoint Endpoint
	// In4 and so on are all that may pass; nil: no policy says anything.
	In4, In6, Out4, Out6 *policy.Access
}

// Of is what an address of the endpoint may.
func (d Decision) Of(a netip.Addr) (in, out *policy.Access) {
	if a.Is6() {
		return d.In6, d.Out6
	}
	return d.In4, d.Out4
}

// Decide says what follows from policies for each endpoint that one of them is about.
//
// As long as it is not known whose an endpoint is, it is what is worst for it: closed by a policy that may be about it,
// and denied what may be denied to it, but allowed only what is surely allowed.
func Decide(policies []Policy, endpoints []Endpoint) []Decision {
	d := decider{policies: policies, endpoints: endpoints, known: map[string]*policy.Access{}, peers: map[string][]span{}}
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

// A decider remembers what it worked out already: most endpoints are treated as some other one is.
type decider struct {
	policies  []Policy
	endpoints []Endpoint
	known     map[string]*policy.Access
	peers     map[string][]span
}

// A span is a range of addresses; both ends belong to it.
type span struct{ first, last netip.Addr }

// A clause is a rule with its addresses looked up.
type clause struct {
	spans []span
	ports ranges
	deny  bool
}

// allowed is what one endpoint may, in one direction and family; nil: everything, since nobody says anything.
func (d *decider) allowed(e Endpoint, in, v6 bool) *policy.Access {
	var clauses []clause
	var class strings.Builder // who is in the same one is treated alike
	open, spoken := true, false
	for i, p := range d.policies {
		section := p.section(in)
		m := p.Select.matches(e)
		if section == nil || m == no {
			continue
		}
		fmt.Fprintf(&class, "%d:%d ", i, m)
		spoken = true
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
	if !spoken {
		return nil
	}
	if open {
		clauses = append(clauses, clause{[]span{everything(v6)}, ranges{everyPort()}, false})
	}
	key := fmt.Sprint(class.String(), in, v6)
	if d.known[key] == nil {
		d.known[key] = &policy.Access{Allow: settle(clauses)}
	}
	return d.known[key]
}

// spans are the addresses that a rule means. Whose owner is not known yet is meant by a denial, and not by a
// permission.
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
	if known, ok := d.peers[key]; ok {
		return known
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

// settle cuts the addresses where any clause begins or ends, works out what may pass in each piece, and joins
// neighbours that are treated alike. So the passages do not overlap, and what goes before what is settled here and not
// in the kernel.
func settle(clauses []clause) (passages []policy.Passage) {
	type edge struct {
		at     netip.Addr // where a clause begins, or the first address behind it
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
	inside := make([]int, len(clauses)) // how many spans of each clause have the piece
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
		now := passing(clauses, inside)
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

// passing is what may pass in a piece that these clauses have.
func passing(clauses []clause, inside []int) ranges {
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

func everything(v6 bool) span {
	if v6 {
		return span{netip.IPv6Unspecified(), lastOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
	}
	return span{netip.IPv4Unspecified(), lastOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0))}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
