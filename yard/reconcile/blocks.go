package reconcile

import (
	"fmt"
	"net/netip"

	"netyard/kernel/explain"
	"netyard/modes"
	"netyard/yard"
	"netyard/yard/book"
)

// blocks finds rules of others that drop all that a network's containers send, whatever netyard's say. They are their
// owners' to remove.
func blocks(y *yard.Yard) (out []book.Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, n := range ns {
		bridge, own := y.Bridge(n)
		if n.Phase != modes.Ready || n.Internal || !own { // on a bridge of the host's owner the way out is the owner's
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
				Text: fmt.Sprintf("%s, which is not netyard's, drops what containers send; netyard trace says more", rule),
			})
		}
	}
	return out, nil
}

// blocked is the rule that certainly drops what a subnet's containers send to somewhere far away; empty when there is
// none.
func blocked(y *yard.Yard, bridge string, s modes.Subnet) (rule string, err error) {
	far := netip.AddrFrom4([4]byte{198, 51, 100, 1}) // RFC 5737, RFC 3849: nobody's
	if s.Pool.Addr().Is6() {
		far = netip.MustParseAddr("2001:db8::1")
	}
	out, _, err := explain.RouteTo(y.Config.Kernel.Handle, far)
	if err != nil || out == bridge {
		return "", nil //nolint:nilerr // the host has no way out either
	}
	const odd = 40000 // a port that no rule is about
	found, sum, err := explain.Judge(y.Config.Kernel.Handle, explain.Forward, explain.Packet{
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
