package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/store"
)

// maxSliceBits bounds the number of subnets of one base, so that counting them cannot overflow.
const maxSliceBits = 32

// baseBucket has, for each base, the number of the next subnet to try, so that a released subnet is not given again at
// once, while others may still have routes to it.
var baseBucket = store.Bucket[uint64]{Name: "ipam-bases"}

// nextSubnet returns a subnet that overlaps no pool of any domain and no busy prefix, from the first base that has one.
func (m *IPAM) nextSubnet(tx store.Tx, r PoolRequest, all []Pool) (netip.Prefix, error) {
	bases := m.c.Bases
	if r.V6 {
		if !m.c.ULA.IsValid() {
			return netip.Prefix{}, fmt.Errorf("ipv6 pool without a subnet: %w: the host has no ULA prefix", ErrInvalid)
		}
		bases = []Base{{Prefix: m.c.ULA, Size: 64}}
	}
	taken := make([]netip.Prefix, 0, len(all)+len(r.Busy))
	for _, p := range all {
		taken = append(taken, p.Subnet)
	}
	for _, p := range r.Busy {
		if p.IsValid() && p.Bits() > 0 {
			taken = append(taken, masked(p))
		}
	}
	for _, base := range bases {
		subnet, ok, err := base.cut(tx, taken)
		if err != nil || ok {
			return subnet, err
		}
	}
	var texts []string
	for _, base := range bases {
		texts = append(texts, base.String())
	}
	return netip.Prefix{}, fmt.Errorf("choose a subnet from %s: %w; give one with --subnet",
		strings.Join(texts, ", "), ErrExhausted)
}

// String returns the base as text for errors. It is also its key in baseBucket.
func (b Base) String() string { return fmt.Sprintf("%s in /%d", b.Prefix, b.Size) }

// cut returns the first subnet of the base, from the recorded next one on and then from the start, that no prefix of
// taken overlaps.
func (b Base) cut(tx store.Tx, taken []netip.Prefix) (subnet netip.Prefix, ok bool, err error) {
	b.Prefix = masked(b.Prefix)
	width := b.Size - b.Prefix.Bits()
	if !b.Prefix.IsValid() || width < 0 || width > maxSliceBits || b.Size > b.Prefix.Addr().BitLen() {
		return subnet, false, fmt.Errorf("base %s: %w", b, ErrInvalid)
	}
	key, count := b.String(), uint64(1)<<width
	next, _, err := find(tx, baseBucket, key)
	if err != nil {
		return subnet, false, err
	}
	spans := b.spans(taken)
	i := firstGap(spans, next)
	if i >= count {
		i = firstGap(spans, 0)
	}
	if i >= count {
		return subnet, false, nil
	}
	first := add(b.Prefix.Addr(), i, b.Prefix.Addr().BitLen()-b.Size)
	return netip.PrefixFrom(first, b.Size), true, baseBucket.Put(tx, key, i+1)
}

// A span is a range of numbers from lo to end, without end.
type span struct{ lo, end uint64 }

// spans returns the numbers of the base's subnets that overlap the prefixes, in order of lo.
func (b Base) spans(taken []netip.Prefix) []span {
	var spans []span
	for _, p := range taken {
		if !p.Overlaps(b.Prefix) {
			continue
		}
		if p.Bits() < b.Prefix.Bits() {
			p = b.Prefix
		}
		lo, n := distance(b.Prefix.Addr(), p.Addr(), p.Addr().BitLen()-b.Size), uint64(1)
		if p.Bits() < b.Size {
			n <<= b.Size - p.Bits()
		}
		spans = append(spans, span{lo, lo + n})
	}
	slices.SortFunc(spans, func(x, y span) int { return cmp.Compare(x.lo, y.lo) })
	return spans
}

// firstGap returns the first number, not below from, that is in no span.
func firstGap(spans []span, from uint64) uint64 {
	for _, s := range spans {
		if s.lo > from {
			break
		}
		from = max(from, s.end)
	}
	return from
}
