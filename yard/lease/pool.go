package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// A DHCPPool is a pool for the engine only: the addresses come from a DHCP server.
type DHCPPool struct {
	ID string
	// Subnet is the LAN's subnet if the admin gave it, otherwise invalid. An engine accepts --ip only with a subnet.
	Subnet  netip.Prefix      `json:",omitzero"`
	Options map[string]string `json:",omitempty"` // see modes.ResolveIPAM
	// MACs: the engine chooses the MACs and tells them.
	MACs bool `json:",omitempty"`
	// Network is the owner of the pool; empty until the network is made.
	Network string `json:",omitempty"`
	Created time.Time
}

// DHCPPools has the pools by ID.
var DHCPPools = store.Bucket[DHCPPool]{Name: "dhcp-pools"}

const dhcpPrefix = "dhcp-"

// IsDHCP reports whether a pool's addresses come from a DHCP server.
func IsDHCP(pool string) bool { return strings.HasPrefix(pool, dhcpPrefix) }

// Range returns the range that the engine is told: every address if no subnet was given.
func (p DHCPPool) Range() netip.Prefix {
	if p.Subnet.IsValid() {
		return p.Subnet
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Token returns the gateway that the engine is told. An engine wants one before there is a lease that would name it,
// and returns it with the network; nothing else tells a network's pool from others. It is in 0.0.0.0/8, which no host
// uses (RFC 1122, 3.2.1.3), and gets into no routing table: an endpoint that joins gets the gateway of its lease.
func (p DHCPPool) Token() netip.Prefix {
	a, _ := netip.ParseAddr(strings.TrimPrefix(p.ID, dhcpPrefix))
	return netip.PrefixFrom(a, p.Range().Bits())
}

// DHCPPoolOf returns the ID of the pool with this token; empty if it is no token.
func DHCPPoolOf(token netip.Addr) string {
	if !token.Is4() || token.IsUnspecified() || token.As4()[0] != 0 {
		return ""
	}
	return dhcpPrefix + token.String()
}

// ParseDHCP reads --subnet, --ip-range and --ipam-opt; ok is false if they do not ask for DHCP. With always, DHCP is
// used in any case, and the engine tells the MACs.
func ParseDHCP(
	always bool, subnet, ipRange string, v6 bool, opts map[string]string,
) (r book.DHCPRequest, ok bool, err error) {
	if _, said := opts["dhcp"]; !always && !said {
		return r, false, nil
	}
	r.MACs = always
	if r.Options, err = modes.ResolveIPAM(opts); err != nil {
		return r, false, err
	}
	if on, said := r.Options["dhcp"]; on == "false" && (said || !always) {
		if always || len(r.Options) > 1 {
			return r, false, modes.Refuse("--ipam-opt dhcp=false contradicts the use of DHCP")
		}
		return r, false, nil
	}
	if v6 {
		return r, false, errors.New("--ipv6: on a network with DHCP, IPv6 is set by --ipam-opt ipv6=dhcp " +
			"or ipv6=slaac; leave --ipv6 out")
	}
	if ipRange != "" {
		return r, false, fmt.Errorf("ip-range %s: the DHCP server chooses the addresses; leave --ip-range out", ipRange)
	}
	if subnet == "" {
		return r, true, nil
	}
	if r.Subnet, err = netip.ParsePrefix(subnet); err != nil {
		return r, false, fmt.Errorf("subnet %q: %w", subnet, err)
	}
	if !r.Subnet.Addr().Is4() || r.Subnet.Bits() == 0 {
		return r, false, fmt.Errorf("subnet %s: give the LAN's IPv4 subnet, or none", subnet)
	}
	r.Subnet = r.Subnet.Masked()
	return r, true, nil
}

// RequestDHCPPool records a new pool.
func RequestDHCPPool(_ context.Context, y *book.Book, r book.DHCPRequest) (p DHCPPool, err error) {
	err = y.Update("pool recorded", func(tx store.Tx) error {
		for {
			var b [4]byte
			_, _ = rand.Read(b[1:]) // it never fails (crypto/rand)
			p = DHCPPool{
				ID: DHCPPoolOf(netip.AddrFrom4(b)), Subnet: r.Subnet, Options: r.Options, MACs: r.MACs,
				Created: y.Config.Now(),
			}
			if _, err := DHCPPools.Get(tx, p.ID); p.ID != "" && errors.Is(err, store.ErrNotFound) {
				return DHCPPools.Put(tx, p.ID, p)
			}
		}
	})
	return p, err
}

// ReleaseDHCPPool deletes a pool. Its leases belong to the network, and stay.
func ReleaseDHCPPool(y *book.Book, id string) error {
	return y.Update("pool released", func(tx store.Tx) error { return DHCPPools.Delete(tx, id) })
}

// CheckLAN refuses a network with DHCP pools that is on no LAN, or whose pools do not suit it.
func CheckLAN(y *book.Book, m modes.Mode, n modes.Network) error {
	if len(n.DHCP) == 0 {
		return nil
	}
	lan := m.Traits(n).LAN
	err := lan.Refusal
	if err == nil && lan.Port.Parent == "" {
		err = fmt.Errorf("a network of mode %s is on no LAN", n.Mode)
	}
	if err == nil {
		err = checkPools(y, m, n, lan.Port)
	}
	if err != nil {
		return fmt.Errorf("addresses by DHCP: %w", err)
	}
	return nil
}

// checkPools refuses options of a pool that do not suit the network. A pool that is no longer on record has no options.
func checkPools(y *book.Book, m modes.Mode, n modes.Network, lan dhcp.LANPort) error {
	return y.Config.Store.View(func(tx store.Tx) error {
		for _, id := range n.DHCP {
			p, err := DHCPPools.Get(tx, id)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if err := checkSix(m, n, p); err != nil {
				return err
			}
			switch {
			case !lan.Shared():
			case p.MACs:
				return fmt.Errorf("containers of mode %s share one MAC, and with --ipam-driver %s "+
					"the engine gives each its own; use --ipam-driver netyard --ipam-opt dhcp=true",
					n.Mode, book.DHCPSpace)
			case modes.IPAMOpt(p.Options, "client_id") == "mac":
				return modes.Refuse("client_id=mac: containers of mode %s share one MAC, "+
					"so the DHCP server could not tell them apart", n.Mode)
			}
		}
		return nil
	})
}

// BindDHCP records a network as the owner of its pools. A pool that is no longer on record is recorded again, without
// options.
func BindDHCP(y *book.Book, tx store.Tx, n modes.Network) error {
	for _, id := range n.DHCP {
		p, err := DHCPPools.Get(tx, id)
		if errors.Is(err, store.ErrNotFound) {
			p, err = DHCPPool{ID: id, Created: y.Config.Now()}, nil
		}
		if err != nil {
			return err
		}
		p.Network = n.ID
		if err := DHCPPools.Put(tx, id, p); err != nil {
			return err
		}
	}
	return nil
}

// EraseDHCP deletes the pools of a network that is removed. Its leases are released in the background.
func EraseDHCP(y *book.Book, tx store.Tx, n modes.Network) error {
	for _, id := range n.DHCP {
		if err := DHCPPools.Delete(tx, id); err != nil {
			return err
		}
	}
	leases, err := dhcpLeases.List(tx, n.ID+"/")
	if err != nil {
		return err
	}
	for _, l := range leases {
		if err := markReleasing(y, tx, l); err != nil {
			return err
		}
	}
	return nil
}
