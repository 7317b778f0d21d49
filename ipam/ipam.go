// Package ipam hands out address pools and the addresses in them.
//
// It keeps nothing in memory but its configuration: each call reads and writes within its caller's transaction,
// so that what was granted and what is recorded cannot differ, whenever the process dies.
package ipam

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"time"

	"netyard/store"
)

// DefaultCooldown is how long a freed address rests: longer than neighbours keep a stale ARP entry in use.
const DefaultCooldown = time.Minute

var (
	// ErrNotFound says that there is no such pool or lease.
	ErrNotFound = store.ErrNotFound
	// ErrOverlap says that a subnet has addresses in common with another pool of its domain.
	ErrOverlap = errors.New("overlaps pool")
	// ErrExhausted says that nothing is left to hand out.
	ErrExhausted = errors.New("nothing free")
	// ErrTaken says that somebody else has the address, or that it is reserved for them.
	ErrTaken = errors.New("taken")
	// ErrInUse says that an active lease was to be dropped.
	ErrInUse = errors.New("in use")
	// ErrInvalid says that a subnet, range or address cannot be used as the request wants.
	ErrInvalid = errors.New("not usable")
)

// A Base is a block from which pools are cut, in slices of Size bits of prefix, when the user names no subnet.
type Base struct {
	Prefix netip.Prefix
	Size   int
}

// DefaultBases is 10.224.0.0/12 in slices of /24: 4096 pools, clear of the engine's own 172.16.0.0/12 and
// 192.168.0.0/16. Behind it is the far end of the engine's block, for hosts with a route to all of 10.0.0.0/8.
func DefaultBases() []Base {
	const size = 24
	return []Base{{Prefix: netip.MustParsePrefix("10.224.0.0/12"), Size: size}, {Prefix: netip.MustParsePrefix("172.30.0.0/15"), Size: size}}
}

// Config is what an IPAM works by. The zero value is usable, except that it has no IPv6 to cut from.
type Config struct {
	// Bases are the IPv4 blocks for pools without a subnet; none: DefaultBases.
	Bases []Base
	// ULA is the host's own /48, from which /64s are cut; see HostULA.
	ULA netip.Prefix
	// Cooldown is how long a freed address is passed over while there is another; 0: DefaultCooldown, negative: none.
	Cooldown time.Duration
	// Now tells the time; nil: time.Now.
	Now func() time.Time
}

// An IPAM hands out pools and addresses. Its methods are safe for concurrent use as far as their transactions are.
type IPAM struct{ c Config }

// New returns an IPAM that works by c.
func New(c Config) *IPAM {
	if len(c.Bases) == 0 {
		c.Bases = DefaultBases()
	}
	if c.Cooldown == 0 {
		c.Cooldown = DefaultCooldown
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &IPAM{c: c}
}

// HostULA is the unique local /48 (RFC 4193) of the host with this machine ID: the same after each boot and
// different from other hosts', without anything to remember.
func HostULA(machineID string) netip.Prefix {
	sum := sha256.Sum256([]byte("netyard ula " + machineID))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[len(sum)-5:]) // RFC 4193, 3.2.2: the least significant 40 bits
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}
