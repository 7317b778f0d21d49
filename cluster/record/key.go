package record

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// These are the keys below the prefix of the cluster:
//
//	meta                          Meta, written once
//	host/<host>                   Host
//	alive/<host>                  Alive, on a lease
//	tomb/<host>                   Tomb
//	net/<network>                 Network
//	member/<network>/<host>       Member
//	addr/<network>/<address>      Address; the address as 32 hexadecimal digits, so that keys sort as addresses do
//	hostname/<name>               Claim of a host
//	vtep/<address>                Claim of a host
//	netname/<name>                Claim of a network
//	vni/<6 hexadecimal digits>    Claim of a network
const (
	metaKey   = "meta"
	hostKind  = "host"
	aliveKind = "alive"
	tombKind  = "tomb"
	netKind   = "net"

	// MemberKind is the first part of the keys of a Member, and AddrKind of those of an Address.
	MemberKind = "member"
	AddrKind   = "addr"

	// These are the kinds of a Claim.

	ClaimHostname = "hostname"
	ClaimVTEP     = "vtep"
	ClaimNetname  = "netname"
	ClaimVNI      = "vni"
)

func claimKinds() []string { return []string{ClaimHostname, ClaimVTEP, ClaimNetname, ClaimVNI} }

// Key returns the record's key, which is the only one of its kind.
func (Meta) Key() string { return metaKey }

// Key returns the host's key, by its ID.
func (h Host) Key() string { return hostKind + "/" + h.ID }

// Key returns the record's key, by the host's ID.
func (a Alive) Key() string { return aliveKind + "/" + a.Host }

// Key returns the record's key, by the host's ID.
func (t Tomb) Key() string { return tombKind + "/" + t.Host }

// Key returns the network's key, by its ID.
func (n Network) Key() string { return netKind + "/" + n.ID }

// Key returns the record's key, by the IDs of the network and the host.
func (m Member) Key() string { return MemberKind + "/" + m.Network + "/" + m.Host }

// Key returns the record's key, by the network's ID and the address.
func (a Address) Key() string { return AddrKind + "/" + a.Network + "/" + formatAddr(a.Addr) }

// Key returns the record's key, by what is claimed.
func (c Claim) Key() string { return c.Kind + "/" + c.What }

// formatAddr returns an address of either family as 32 hexadecimal digits.
func formatAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	b := a.As16()
	return hex.EncodeToString(b[:])
}

// parseAddr reverses formatAddr; the address is invalid if the text is.
func parseAddr(text string) netip.Addr {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(raw)
	return a.Unmap()
}

func checkID(what, id string) error {
	if len(id) != idLen || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("%s %.40q is not %d hexadecimal digits", what, id, idLen)
	}
	return nil
}

// CheckName returns an error if a name is not valid for a container, network or host. It accepts the names that engines
// accept. what says in the error which name it is.
func CheckName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%s has %d bytes; it can have 1 to %d", what, len(name), maxName)
	}
	for i, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return fmt.Errorf("%s %q: use letters and digits, and after the first also dots, dashes and underscores",
				what, name)
		}
	}
	return nil
}

// checkUnicast refuses addresses that no single host on a shared network can have.
func checkUnicast(what string, a netip.Addr) error {
	switch {
	case !a.IsValid() || a.Zone() != "" || a.Is4In6():
		return fmt.Errorf("%s is not an IP address", what)
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(),
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s %s is not a routable unicast address", what, a)
	}
	return nil
}

func (m Meta) check() error {
	if m.Schema < 1 || m.Port == 0 {
		return fmt.Errorf("schema %d and port %d must not be 0", m.Schema, m.Port)
	}
	return checkID("cluster", m.Cluster)
}

func (h Host) check() error {
	if h.MTU < minIPv6MTU || h.MTU > maxMTU {
		return fmt.Errorf("mtu %d is not from %d to %d", h.MTU, minIPv6MTU, maxMTU)
	}
	if len(h.Version) > maxName || strings.ContainsFunc(h.Version, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("version %.40q has invalid characters or is too long", h.Version)
	}
	if h.Card != "" {
		if err := h.Card.check(); err != nil {
			return err
		}
	}
	return cmp.Or(checkID("host", h.ID), CheckName("name", h.Name), checkUnicast("vtep", h.VTEP), h.checkTunnel())
}

func (a Alive) check() error {
	return cmp.Or(checkID("host", a.Host), CheckName("boot", a.Boot))
}

func (t Tomb) check() error { return cmp.Or(checkID("host", t.Host), CheckName("by", t.By)) }

func (m Member) check() error {
	return cmp.Or(checkID("network", m.Network), checkID("host", m.Host))
}

func (n Network) check() error {
	if n.VNI < 1 || n.VNI > MaxVNI {
		return fmt.Errorf("vni %d is not from 1 to %d", n.VNI, MaxVNI)
	}
	if n.MTU < minMTU || n.MTU > maxMTU {
		return fmt.Errorf("mtu %d is not from %d to %d", n.MTU, minMTU, maxMTU)
	}
	if len(n.Subnets) == 0 || len(n.Subnets) > maxNets {
		return fmt.Errorf("%d subnets; a network has 1 to %d", len(n.Subnets), maxNets)
	}
	for i, s := range n.Subnets {
		if err := s.check(); err != nil {
			return err
		}
		if s.Pool.Addr().Is6() && n.MTU < minIPv6MTU {
			return fmt.Errorf("mtu %d: IPv6 needs at least %d", n.MTU, minIPv6MTU)
		}
		for _, other := range n.Subnets[:i] {
			if s.Pool.Overlaps(other.Pool) {
				return fmt.Errorf("subnet %s overlaps %s", s.Pool, other.Pool)
			}
		}
	}
	return cmp.Or(checkID("network", n.ID), CheckName("name", n.Name))
}

func (s Subnet) check() error {
	p := s.Pool
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("subnet %s is not a valid prefix", p)
	}
	// A host needs an address of its own beside the gateway's, and a container needs one.
	const hostBits = 3
	if p.Bits() > p.Addr().BitLen()-hostBits || p.Bits() < 8 {
		return fmt.Errorf("subnet %s: the prefix length must be 8 to %d", p, p.Addr().BitLen()-hostBits)
	}
	if err := checkUnicast("subnet", p.Addr().Next()); err != nil {
		return err
	}
	if !s.Usable(s.Gateway) {
		return fmt.Errorf("gateway %s is not a usable address of subnet %s", s.Gateway, p)
	}
	return nil
}

// Usable says whether a host or container can have an address of the subnet: the first is the subnet itself, and in
// IPv4 the last is the broadcast address.
func (s Subnet) Usable(a netip.Addr) bool {
	if !s.Pool.Contains(a) || a == s.Pool.Addr() || a.Zone() != "" {
		return false
	}
	return a.Is6() || s.Pool.Contains(a.Next())
}

// Find returns the subnet of the network in which an address is usable.
func (n Network) Find(a netip.Addr) (Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Usable(a) {
			return s, true
		}
	}
	return Subnet{}, false
}

func (a Address) check() error {
	if err := cmp.Or(checkID("network", a.Network), checkUnicast("address", a.Addr)); err != nil {
		return err
	}
	if a.Use == Gateway {
		if a.Host != "" || a.Endpoint != "" || a.MAC != "" {
			return errors.New("a gateway address has no host, endpoint or MAC")
		}
		return a.checkNames()
	}
	if err := checkID("host", a.Host); err != nil {
		return err
	}
	switch a.Use {
	case Warm:
		if a.Endpoint != "" || a.MAC != "" {
			return errors.New("a spare address has no endpoint or MAC")
		}
	case OfHost:
		if a.Endpoint != "" {
			return errors.New("the host's own address has no endpoint")
		}
		return a.MAC.check()
	case Endpoint:
		return cmp.Or(CheckName("endpoint", a.Endpoint), a.MAC.check(), a.checkNames())
	default:
		return fmt.Errorf("use %.40q is unknown", a.Use)
	}
	return a.checkNames()
}

func (a Address) checkNames() error {
	if a.Use != Endpoint && (a.Name != "" || len(a.Aliases) > 0) {
		return errors.New("only endpoints have names")
	}
	if len(a.Aliases) > MaxNames {
		return fmt.Errorf("%d aliases, and at most %d are allowed", len(a.Aliases), MaxNames)
	}
	names := a.Aliases
	if a.Name != "" {
		names = append([]string{a.Name}, names...)
	}
	for _, n := range names {
		if err := CheckName("name", n); err != nil {
			return err
		}
	}
	return nil
}

// String returns what is claimed, as errors print it.
func (c Claim) String() string {
	switch c.Kind {
	case ClaimHostname:
		return "host name " + c.What
	case ClaimVTEP:
		return "address " + parseAddr(c.What).String()
	case ClaimNetname:
		return "network name " + c.What
	}
	return "VNI " + c.What
}

func (c Claim) check() error {
	switch c.Kind {
	case ClaimHostname, ClaimNetname:
		return cmp.Or(CheckName(c.Kind, c.What), checkID("id", c.ID))
	case ClaimVTEP:
		return cmp.Or(checkUnicast("vtep", parseAddr(c.What)), checkID("id", c.ID))
	}
	var vni uint32
	if _, err := fmt.Sscanf(c.What, "%06x", &vni); err != nil || fmt.Sprintf("%06x", vni) != c.What || vni == 0 {
		return fmt.Errorf("vni %.40q is not a VNI of 6 hexadecimal digits", c.What)
	}
	return checkID("id", c.ID)
}
