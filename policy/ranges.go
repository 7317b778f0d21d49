package policy

import (
	"cmp"
	"slices"

	"netyard/kernel/policy"
)

// Protocol and port together are one number, with the protocol in the upper bits, so that allowed traffic is a list of
// ranges of numbers.
const (
	portBits = 16
	maxPort  = 1<<portBits - 1
	maxProto = 1<<8 - 1
)

// A portRange is a range of such numbers, ends included.
type portRange struct{ first, last uint32 }

func everyPort() portRange { return portRange{0, maxProto<<portBits | maxPort} }

type ranges []portRange

// portsOf returns the protocols and ports of a rule.
func portsOf(r Rule) (rs ranges) {
	if len(r.Ports) == 0 {
		return ranges{everyPort()}
	}
	for _, p := range r.Ports {
		if p.Proto == protoICMP { // icmp means both families
			rs = append(rs, portRange{protoICMPv6 << portBits, protoICMPv6<<portBits | maxPort})
		}
		proto := uint32(p.Proto) << portBits
		rs = append(rs, portRange{proto | uint32(p.First), proto | uint32(p.Last)})
	}
	return rs.union()
}

// union sorts the ranges and joins those that overlap or touch.
func (rs ranges) union() (joined ranges) {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
	for _, r := range rs {
		if n := len(joined); n > 0 && r.first <= joined[n-1].last+1 {
			joined[n-1].last = max(joined[n-1].last, r.last)
		} else {
			joined = append(joined, r)
		}
	}
	return joined
}

// without returns rs minus others; both must be results of union.
func (rs ranges) without(others ranges) (left ranges) {
	for _, r := range rs {
		for _, o := range others {
			if o.last < r.first || o.first > r.last {
				continue
			}
			if o.first > r.first {
				left = append(left, portRange{r.first, o.first - 1})
			}
			if o.last >= r.last {
				r.first = r.last + 1
				break
			}
			r.first = o.last + 1
		}
		if r.first <= r.last {
			left = append(left, r)
		}
	}
	return left
}

// blocks splits the ranges so that each has all ports of its protocols, or some ports of one protocol.
func (rs ranges) blocks() (blocks []policy.Allowance) {
	add := func(firstProto, lastProto, firstPort, lastPort uint32) {
		//nolint:gosec // the numbers were made of these types
		blocks = append(blocks, policy.Allowance{
			FirstProto: uint8(firstProto), LastProto: uint8(lastProto),
			FirstPort: uint16(firstPort), LastPort: uint16(lastPort),
		})
	}
	for _, r := range rs {
		from, to := r.first>>portBits, r.last>>portBits
		low, high := r.first&maxPort, r.last&maxPort
		if from == to {
			add(from, from, low, high)
			continue
		}
		if low > 0 {
			add(from, from, low, maxPort)
			from++
		}
		rest := high < maxPort
		if rest {
			to--
		}
		if from <= to {
			add(from, to, 0, maxPort)
		}
		if rest {
			add(r.last>>portBits, r.last>>portBits, 0, high)
		}
	}
	return blocks
}
