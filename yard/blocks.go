package yard

import (
	"fmt"
	"net/netip"

	"netyard/kernel"
	"netyard/modes"
)

// blocks finds rules of others that drop all that a network's containers send, whatever netyard's say. They are their owners' to
// remove.
func (y *Yard) blocks() (out []Finding, err error) {
	ns, err := y.Networks()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, n := range ns {
		bridge, own := y.bridge(n)
		if n.Phase != modes.Ready || n.Internal || !own { // on a bridge of the host's owner the way out is the owner's
			continue
		}
		for _, s := range n.Subnets {
			if !s.Gateway.IsValid() {
				continue
			}
			rule, err := y.blocked(bridge, s)
			if err != nil {
				return nil, err
			}
			if rule == "" || seen[rule] {
				continue
			}
			seen[rule] = true
			out = append(out, Finding{
				Kind: Fault, Network: label(n),
				Text: fmt.Sprintf("%s, which is not netyard's, drops what containers send; netyard trace says more", rule),
			})
		}
	}
	return out, nil
}

// blocked is the rule that certainly drops what a subnet's containers send to somewhere far away; empty when there is none.
func (y *Yard) blocked(bridge string, s modes.Subnet) (rule string, err error) {
	far := netip.AddrFrom4([4]byte{198, 51, 100, 1}) // RFC 5737, RFC 3849: nobody's
	if s.Pool.Addr().Is6() {
		far = netip.MustParseAddr("2001:db8::1")
	}
	out, _, err := y.c.Kernel.RouteTo(far)
	if err != nil || out == bridge {
		return "", nil //nolint:nilerr // the host has no way out either
	}
	const odd = 40000 // a port that no rule is about
	found, sum, err := y.c.Kernel.Judge(kernel.Forward, kernel.Packet{
		In: bridge, Out: out, Src: s.Pool.Masked().Addr().Next().Next(), Dst: far, Proto: "tcp", Port: odd,
	})
	if err != nil || sum != kernel.Dropped || len(found) == 0 {
		return "", err
	}
	if last := found[len(found)-1]; last.Foreign {
		return last.Rule, nil
	}
	return "", nil
}
