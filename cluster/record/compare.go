package record

import (
	"fmt"
	"slices"
)

// Equal says whether two claims are the same.
func (a Address) Equal(b Address) bool {
	return a.Key() == b.Key() && a.Host == b.Host && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC &&
		a.Name == b.Name && slices.Equal(a.Aliases, b.Aliases)
}

// Claims returns the claims to a host's name and VTEP.
func (h Host) Claims() []*Claim {
	return []*Claim{{ClaimHostname, h.Name, h.ID}, {ClaimVTEP, formatAddr(h.VTEP), h.ID}}
}

// Claims returns the claims to a network's name and VNI.
func (n Network) Claims() []*Claim {
	return []*Claim{{ClaimNetname, n.Name, n.ID}, {ClaimVNI, fmt.Sprintf("%06x", n.VNI), n.ID}}
}

// Matches returns how a requested network differs from the one that is there.
func (n Network) Matches(there Network) error {
	if len(n.Subnets) > 0 && !slices.Equal(n.Subnets, there.Subnets) {
		return fmt.Errorf("network %s: subnets %s differ from the cluster's %s",
			n.Name, subnetNames(n.Subnets), subnetNames(there.Subnets))
	}
	if n.MTU != 0 && n.MTU != there.MTU {
		return fmt.Errorf("network %s: MTU %d differs from the cluster's %d", n.Name, n.MTU, there.MTU)
	}
	if n.Internal != there.Internal {
		return fmt.Errorf("network %s: internal is %t in the cluster", n.Name, there.Internal)
	}
	return nil
}

func subnetNames(subnets []Subnet) (text string) {
	for i, s := range subnets {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s (gateway %s)", s.Pool, s.Gateway)
	}
	return text
}
