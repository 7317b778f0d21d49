package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
)

// Addresses are counted as 128-bit numbers. An IPv4 address is the low 32 bits of its IPv4-mapped form.

// halves returns the high and the low 64 bits of an address.
func halves(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// add returns a + n<<shift, in the family of a.
func add(a netip.Addr, n uint64, shift int) netip.Addr {
	hi, lo := halves(a)
	var nhi, nlo uint64
	if shift >= 64 {
		nhi, nlo = n<<(shift-64), 0
	} else {
		nhi, nlo = n>>(64-shift), n<<shift
	}
	lo, carry := bits.Add64(lo, nlo, 0)
	hi, _ = bits.Add64(hi, nhi, carry)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	sum := netip.AddrFrom16(b)
	if a.Is4() {
		return sum.Unmap()
	}
	return sum
}

// distance returns (a - from)>>shift for an a that is not less than from, or math.MaxUint64 if the result needs more
// than 64 bits.
func distance(from, a netip.Addr, shift int) uint64 {
	fhi, flo := halves(from)
	hi, lo := halves(a)
	lo, borrow := bits.Sub64(lo, flo, 0)
	hi, _ = bits.Sub64(hi, fhi, borrow)
	if shift >= 64 {
		return hi >> (shift - 64)
	}
	if hi>>shift != 0 {
		return math.MaxUint64
	}
	return lo>>shift | hi<<(64-shift)
}

// hostBits returns the number of bits of p's addresses that are not part of its prefix.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// masked returns p without host bits, and as an IPv4 prefix if it is an IPv4-mapped one: netlink returns both forms.
func masked(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}
