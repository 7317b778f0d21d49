package modes

import (
	"net/netip"

	"netyard/kernel/rule"
)

// A Block is a range of addresses that no container can have, and what it is for.
type Block struct {
	Prefix netip.Prefix
	Use    string
}

// Blocks returns the ranges of addresses that no container can have.
func Blocks() []Block {
	const substitute = "netyard's own, in place of loopback addresses"
	v4, v6 := rule.IPv4(), rule.IPv6()
	return []Block{
		{netip.PrefixFrom(netip.IPv4Unspecified(), 8), "not for hosts, RFC 1122"},
		{v4.Loopback, "loopback"},
		{v4.Away, substitute},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
		{netip.PrefixFrom(netip.IPv6Unspecified(), 96), "unspecified, loopback and IPv4-compatible, RFC 4291"},
		{v6.Away, substitute},
		{netip.MustParsePrefix("ff00::/8"), "multicast"},
	}
}

// CheckSubnet refuses a subnet with addresses that no container can have.
func CheckSubnet(subnet netip.Prefix) error {
	mapped := Block{netip.PrefixFrom(netip.AddrFrom16(netip.IPv4Unspecified().As16()), 96), "IPv4-mapped, RFC 4291"}
	for _, b := range append(Blocks(), mapped) {
		if b.Prefix.Overlaps(subnet) {
			return Refuse("subnet %s: no container can have addresses of %s (%s); choose another --subnet",
				subnet, b.Prefix, b.Use)
		}
	}
	return nil
}
