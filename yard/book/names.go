package book

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"netyard/modes"
)

// ByFamily are the subnets of a network, those of IPv4 and those of IPv6: a container gets an address of each.
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
	// CNI is the engine of one that only its runtime knows.
	CNI = "cni"
	// Own is the engine of networks that the admin made, or a CNI configuration: nobody but the admin removes them.
	Own = "netyard"

	// OptParent is netyard's own --ipam-opt: the same subnet may be in use on several parents.
	OptParent = "parent"
)

// RandomID is an id that nobody has.
func RandomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// Unspecified is the unspecified address of a family.
func Unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Metric is the number at the end of an interface's name: of several networks with a default route eth0's is the one,
// in whatever order they were attached. Runtimes attach the networks of a container at the same time.
func Metric(ifName string) int {
	const most = 10000
	n := 0
	for _, c := range strings.TrimLeft(ifName, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-") {
		if c < '0' || c > '9' || n > most {
			return most
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// Label is what people call a network.
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

// Sleep waits, and says whether ctx still goes on.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Unknown says of a name that it is none of those, and which it is nearest to.
func Unknown(kind, name string, known []string) error {
	if near := modes.Nearest(name, known); near != "" {
		return fmt.Errorf("%s %q: %w; did you mean %s?", kind, name, ErrNotFound, near)
	}
	return fmt.Errorf("%s %q: %w", kind, name, ErrNotFound)
}
