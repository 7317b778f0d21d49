package book

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"

	"netyard/modes"
)

// ByFamily returns the subnets of a network in groups of one family, IPv4 first. A container gets an address from each
// group. Subnets of DHCP are left out.
func ByFamily(n modes.Network) (groups [][]netip.Prefix) {
	for _, v4 := range []bool{true, false} {
		var group []netip.Prefix
		for _, s := range n.Subnets {
			if s.Pool.Addr().Is4() == v4 && s.Space != DHCPSpace {
				group = append(group, s.Pool)
			}
		}
		if group != nil {
			groups = append(groups, group)
		}
	}
	return groups
}

const (
	// Docker is the name of the engine behind the doors of package driver.
	Docker = "docker"
	// Containerd is the engine of an attachment whose container is known to containerd.
	Containerd = "containerd"
	// CNI is the engine of an attachment whose container only its runtime knows.
	CNI = "cni"
	// Own is the engine of networks that the admin or a CNI configuration made: only the admin removes them.
	Own = "netyard"

	// OptParent is an --ipam-opt of netyard's own: the same subnet may be in use on several parents.
	OptParent = "parent"
)

// RandomID returns a new random ID.
func RandomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Label returns the name of a network, or its short ID if it has none.
func Label(n modes.Network) string {
	if n.Name != "" {
		return n.Name
	}
	return modes.Short(n.ID)
}

// Owned names an endpoint by its container, if that is known.
func Owned(e modes.Endpoint) string {
	if e.Container.Name != "" {
		return "container " + e.Container.Name
	}
	return "endpoint " + modes.Short(e.ID)
}

// Unknown returns an ErrNotFound for a name that suggests the nearest known one.
func Unknown(kind, name string, known []string) error {
	if near := modes.Nearest(name, known); near != "" {
		return fmt.Errorf("%s %q: %w; did you mean %s?", kind, name, ErrNotFound, near)
	}
	return fmt.Errorf("%s %q: %w", kind, name, ErrNotFound)
}
