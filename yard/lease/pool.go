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

// A DHCPPool is what an engine takes for a pool of addresses, and is none: the addresses are a DHCP server's.
type DHCPPool struct {
	ID string
	// Subnet is what the engine's user says the LAN's is: an engine takes --ip only with one. Invalid: not said.
	Subnet  netip.Prefix      `json:",omitzero"`
	Options map[string]string `json:",omitempty"` // see modes.IPAMOptions
	// MACs: the engine chooses the hardware addresses, and tells them.
	MACs bool `json:",omitempty"`
	// Network is whose pool it is; empty until the network is made.
	Network string `json:",omitempty"`
	Created time.Time
}

// DHCPPools are the pools, by their ids.
var DHCPPools = store.Bucket[DHCPPool]{Name: "dhcp-pools"}

const dhcpPrefix = "dhcp-"

// IsDHCP says whether a pool is one whose addresses a DHCP server gives.
func IsDHCP(pool string) bool { return strings.HasPrefix(pool, dhcpPrefix) }

// Range is the pool as the engine is told: every address, if its user named no subnet.
func (p DHCPPool) Range() netip.Prefix {
	if p.Subnet.IsValid() {
		return p.Subnet
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Token is the gateway as the engine is told. An engine wants one before there is a lease that would name it; and it
// hands it back with the network, as the only thing by which a network's pool can be told from another's. It is of
// 0.0.0.0/8, which no host has (RFC 1122, 3.2.1.3), and goes into no routing table: the gateway that counts is the
// lease's, when an endpoint is joined.
func (p DHCPPool) Token() netip.Prefix {
	a, _ := netip.ParseAddr(strings.TrimPrefix(p.ID, dhcpPrefix))
	return netip.PrefixFrom(a, p.Range().Bits())
}

// DHCPPoolOf is the pool that has this token; empty when it is none.
func DHCPPoolOf(token netip.Addr) string {
	if !token.Is4() || token.IsUnspecified() || token.As4()[0] != 0 {
		return ""
	}
	return dhcpPrefix + token.String()
}

// ParseDHCP reads --subnet, --ip-range and --ipam-opt; ok is false when they do not ask for DHCP. always: they need
// not, and hardware addresses are told.
func ParseDHCP(always bool, subnet, ipRange string, v6 bool, opts map[string]string) (r book.DHCPRequest, ok bool, err error) {
	if _, said := opts["dhcp"]; !always && !said {
		return r, false, nil
	}
	r.MACs = always
	if r.Options, err = modes.ResolveIPAM(opts); err != nil {
		return r, false, err
	}
	if on, said := r.Options["dhcp"]; on == "false" && (said || !always) {
		if always || len(r.Options) > 1 {
			return r, false, fmt.Errorf("%w: --ipam-opt dhcp=false, and other options of DHCP", modes.ErrOption)
		}
		return r, false, nil
	}
	if v6 {
		return r, false, errors.New("--ipv6: with addresses by DHCP those of IPv6 are had by --ipam-opt ipv6=dhcp or ipv6=slaac; leave --ipv6 out")
	}
	if ipRange != "" {
		return r, false, fmt.Errorf("ip-range %s: which addresses it gives is the DHCP server's to say", ipRange)
	}
	if subnet == "" {
		return r, true, nil
	}
	if r.Subnet, err = netip.ParsePrefix(subnet); err != nil {
		return r, false, fmt.Errorf("subnet %q: %w", subnet, err)
	}
	if !r.Subnet.Addr().Is4() || r.Subnet.Bits() == 0 {
		return r, false, fmt.Errorf("subnet %s: want the LAN's IPv4 subnet, or none", subnet)
	}
	r.Subnet = r.Subnet.Masked()
	return r, true, nil
}

// RequestDHCPPool records a pool.
func RequestDHCPPool(_ context.Context, y *book.Book, r book.DHCPRequest) (p DHCPPool, err error) {
	err = y.Update("pool recorded", func(tx store.Tx) error {
		for {
			var b [4]byte
			_, _ = rand.Read(b[1:]) // it never fails (crypto/rand)
			p = DHCPPool{ID: DHCPPoolOf(netip.AddrFrom4(b)), Subnet: r.Subnet, Options: r.Options, MACs: r.MACs, Created: y.Config.Now()}
			if _, err := DHCPPools.Get(tx, p.ID); p.ID != "" && errors.Is(err, store.ErrNotFound) {
				return DHCPPools.Put(tx, p.ID, p)
			}
		}
	})
	return p, err
}

// ReleaseDHCPPool forgets a pool; its leases are its network's.
func ReleaseDHCPPool(y *book.Book, id string) error {
	return y.Update("pool released", func(tx store.Tx) error { return DHCPPools.Delete(tx, id) })
}

// CheckLAN refuses a network with pools of DHCP's that is on no LAN.
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

// checkPools refuses what was asked for with a pool and does not go with the network. One that is not on record any
// more has no options.
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
				return fmt.Errorf("containers of mode %s share one hardware address, and --ipam-driver %s has the engine give each its own; use --ipam-driver netyard --ipam-opt dhcp=true", n.Mode, book.DHCPSpace)
			case modes.IPAMOpt(p.Options, "client_id") == "mac":
				return fmt.Errorf("%w: client_id=mac: containers of mode %s share one hardware address, so the DHCP server would take them for one", modes.ErrOption, n.Mode)
			}
		}
		return nil
	})
}

// BindDHCP makes the pools of a network its own. One that is not on record any more has lost its options only.
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

// EraseDHCP forgets the pools of a network that goes. Its leases are given back in the background.
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
		if err := giveBack(y, tx, l); err != nil {
			return err
		}
	}
	return nil
}
