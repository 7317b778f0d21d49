// Package ipam is netyard's own address management: it allocates pools and the addresses in them.
//
// It has nothing in memory but its configuration. Each call reads and writes records within its caller's transaction,
// so the granted and the recorded addresses cannot differ, whenever the process dies.
package ipam

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"time"

	"netyard/store"
)

// DefaultCooldown is how long a released address is not given again: longer than neighbours use a stale ARP entry.
const DefaultCooldown = time.Minute

var (
	// ErrNotFound says that a pool or lease does not exist.
	ErrNotFound = store.ErrNotFound
	// ErrOverlap says that a subnet has addresses in common with another pool of its domain.
	ErrOverlap = errors.New("overlaps pool")
	// ErrExhausted says that no subnet or address is free.
	ErrExhausted = errors.New("nothing free")
	// ErrTaken says that an address has another owner, or is reserved for one.
	ErrTaken = errors.New("taken")
	// ErrInUse says that a lease cannot be removed since it is active.
	ErrInUse = errors.New("in use")
	// ErrInvalid says that a subnet, range or address cannot be used in the requested way.
	ErrInvalid = errors.New("not usable")
)

// A Base is a block from which subnets are cut for pools whose subnet the user does not name. Size is their prefix
// length.
type Base struct {
	Prefix netip.Prefix
	Size   int
}

// DefaultBases returns 10.224.0.0/12 in subnets of /24: 4096 pools, clear of the engine's own 172.16.0.0/12 and
// 192.168.0.0/16. The second base is the upper end of the engine's block, for hosts with a route to all of 10.0.0.0/8.
func DefaultBases() []Base {
	const size = 24
	return []Base{
		{Prefix: netip.MustParsePrefix("10.224.0.0/12"), Size: size},
		{Prefix: netip.MustParsePrefix("172.30.0.0/15"), Size: size},
	}
}

// Config is the configuration of an IPAM. The zero value is usable, but has no block for IPv6 subnets.
type Config struct {
	// Bases are the IPv4 blocks for pools without a named subnet. Default: DefaultBases.
	Bases []Base
	// ULA is the host's own /48, from which /64s are cut; see HostULA.
	ULA netip.Prefix
	// Cooldown is how long a released address is not given again while another is free. 0: DefaultCooldown, negative:
	// none.
	Cooldown time.Duration
	// Now returns the time. Default: time.Now.
	Now func() time.Time
}

// An IPAM gives pools and addresses. Its methods are safe for concurrent use as far as their transactions are.
type IPAM struct{ c Config }

// New returns an IPAM with the configuration.
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

// HostULA returns the unique local /48 (RFC 4193) of the host with this machine ID. It is computed, not recorded: the
// same after each boot, and different from that of other hosts.
func HostULA(machineID string) netip.Prefix {
	sum := sha256.Sum256([]byte("netyard ula " + machineID))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[len(sum)-5:]) // RFC 4193, 3.2.2: the least significant 40 bits
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}
