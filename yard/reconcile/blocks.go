package reconcile

import (
	"fmt"
	"net/netip"

	"netyard/kernel/explain"
	"netyard/kernel/others"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
)

// blocks finds rules of other programs that drop all traffic from a network's containers, whatever netyard's rules say.
// netyard does not remove them.
func blocks(y *yard.Yard) (out []book.Finding, err error) {
	if y.Config.Handle == nil {
		return nil, nil
	}
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, n := range ns {
		bridge, own := y.Bridge(n)
		if n.Phase != modes.Ready || n.Internal || !own { // routes of a bridge that the admin provides are the admin's
			continue
		}
		for _, s := range n.Subnets {
			if !s.Gateway.IsValid() {
				continue
			}
			rule, err := blocked(y, bridge, s)
			if err != nil {
				return nil, err
			}
			if rule == "" || seen[rule] {
				continue
			}
			seen[rule] = true
			out = append(out, book.Finding{
				Kind: book.Fault, Network: book.Label(n),
				Text: fmt.Sprintf(
					"%s, which is not netyard's, drops traffic from containers; netyard trace shows details", rule),
			})
		}
	}
	return out, nil
}

// blocked returns the rule of another program that certainly drops what a subnet's containers send to a distant host;
// empty: there is none.
func blocked(y *yard.Yard, bridge string, s modes.Subnet) (rule string, err error) {
	far := netip.AddrFrom4([4]byte{198, 51, 100, 1}) // documentation addresses (RFC 5737, RFC 3849)
	if s.Pool.Addr().Is6() {
		far = netip.MustParseAddr("2001:db8::1")
	}
	out, _, err := explain.RouteTo(y.Config.Handle, far)
	if err != nil || out == bridge {
		return "", nil //nolint:nilerr // the host has no such route either
	}
	const odd = 40000 // a port that rules are unlikely to match
	found, sum, err := explain.Judge(y.Config.Handle, explain.Forward, explain.Packet{
		In: bridge, Out: out, Src: s.Pool.Masked().Addr().Next().Next(), Dst: far, Proto: "tcp", Port: odd,
	})
	if err != nil || sum != explain.Dropped || len(found) == 0 {
		return "", err
	}
	if last := found[len(found)-1]; last.Foreign {
		return last.Rule, nil
	}
	return "", nil
}

// refusals notes what the guard of forwarding drops: netyard turned forwarding on, and the host is no router.
func refusals(y *yard.Yard) (out []book.Finding, err error) {
	if y.Config.Handle == nil {
		return nil, nil
	}
	all, err := others.Refusals(y.Config.Handle)
	for _, r := range all {
		out = append(out, book.Finding{Kind: book.Note, Text: r.String()})
	}
	return out, err
}

// smallSegments notes networks with big_tcp=true whose way out no longer takes large segments.
func smallSegments(y *yard.Yard) (out []book.Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	for _, n := range ns {
		want := y.Traits(n).Segments
		if n.Phase != modes.Ready || !want.Big || modes.BigTCP.Of(n) != "true" {
			continue
		}
		limit, err := y.Config.Kernel.SegmentLimit(want)
		if err != nil {
			return nil, err
		}
		if !limit.Big() {
			out = append(out, book.Finding{
				Kind: book.Note, Network: book.Label(n), Text: "big_tcp=true is not in effect: " + limit.Reason,
			})
		}
	}
	return out, nil
}
