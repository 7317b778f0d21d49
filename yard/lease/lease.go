// Package lease is addresses that DHCP servers of a LAN give.
package lease

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"netyard/ipam"
	"netyard/ipam/dhcp"
	kdhcp "netyard/kernel/dhcp"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
)

// A DHCPLease is an address that a DHCP server gave to an endpoint, or is about to.
type DHCPLease struct {
	// ID is its network, and who the client is.
	ID      string
	Network string
	Pool    string
	// Endpoint is whose it is; empty until there is one.
	Endpoint string `json:",omitempty"`
	// Given is the address that the engine was told, and that it will speak of. Lease has the one that counts.
	Given netip.Addr
	Lease dhcp.Lease
	MAC   string
	// ClientID and VendorClass are what the server was told from the beginning, Hostname what it was told last.
	ClientID    []byte            `json:",omitempty"`
	VendorClass string            `json:",omitempty"`
	Hostname    string            `json:",omitempty"`
	Name        string            `json:",omitempty"` // the container's, where the engine tells it
	LAN         kdhcp.LANPort     // where the server is
	Phase       DHCPPhase         // what is to become of it
	Since       time.Time         // when it became Phase
	Tried       time.Time         `json:",omitzero"` // when more time was last asked for in vain
	Tries       int               `json:",omitempty"`
	Options     map[string]string `json:",omitempty"` // its pool's
	Six         Six               `json:",omitzero"`
}

// A DHCPPhase says what is to become of a lease.
type DHCPPhase string

// The phases of a lease.
const (
	DHCPOffered   DHCPPhase = "offered"   // a server was, or is about to be, asked for it: after a crash it is given back
	DHCPHeld      DHCPPhase = "held"      // the endpoint has it, for as long as more time is granted
	DHCPDown      DHCPPhase = "down"      // it was lost, and the endpoint's link taken down
	DHCPReleasing DHCPPhase = "releasing" // the server is to be told that it is free
)

// State is how a lease is doing, in a word.
func (l DHCPLease) State(now time.Time) string {
	if l.Phase == DHCPHeld {
		return string(l.Lease.State(now))
	}
	return string(l.Phase)
}

// dhcpLeases are by network and client.
var dhcpLeases = store.Bucket[DHCPLease]{Name: "dhcp-leases"}

const (
	// dhcpTime is how long a lease may take to come. An engine's call has 9 s, and what is left over is for undoing it.
	dhcpTime = 7 * time.Second
	// lockPrefix begins the names of the locks of leases.
	lockPrefix = "dhcp "
)

// DHCPLeases are all leases.
func DHCPLeases(y *book.Book) (ls []DHCPLease, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		ls, err = dhcpLeases.List(tx, "")
		return err
	})
	return ls, err
}

// lease is one of them.
func lease(y *book.Book, id string) (l DHCPLease, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		l, err = dhcpLeases.Get(tx, id)
		return err
	})
	return l, err
}

// A Request is one for an address from the LAN's DHCP server.
type Request struct {
	ipam.AddressRequest
	// Attachment and IfName are an interface's of a container that comes by CNI.
	Attachment, IfName string
}

// RequestLease gets an address from the LAN's DHCP server.
func RequestLease(ctx context.Context, y *book.Book, j *book.Judge, r Request) (netip.Prefix, error) {
	var p DHCPPool
	err := y.Config.Store.View(func(tx store.Tx) (err error) {
		p, err = DHCPPools.Get(tx, r.Pool)
		return err
	})
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("request address from pool %s: %w", r.Pool, err)
	case r.Gateway:
		return netip.Prefix{}, fmt.Errorf("gateway %s: which one there is the DHCP server says; leave --gateway out", r.Addr)
	case p.Network == "" && r.Addr.IsValid(): // kept from containers, before the network is made: that is the server's business
		return netip.PrefixFrom(r.Addr, p.Range().Bits()), nil
	}
	n, err := y.Network(p.Network)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("request address from pool %s, which is for networks of netyard's drivers: %w", r.Pool, err)
	}
	l, err := newLease(y, n, p, r)
	if err != nil {
		return netip.Prefix{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, dhcpTime)
	defer cancel()
	release, err := y.Locks.Hold(ctx, lockPrefix+l.ID, false)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer release()
	a, err := acquire(ctx, y, j, p, l, r)
	if errors.Is(err, dhcp.ErrNoServer) {
		err = fmt.Errorf("%w within %v", err, dhcpTime)
	}
	if err != nil {
		return a, fmt.Errorf("get an address by DHCP on %s: %w", l.LAN, err)
	}
	return a, nil
}

// newLease is a lease without an address: who asks for one, and where.
func newLease(y *book.Book, n modes.Network, p DHCPPool, r Request) (l DHCPLease, err error) {
	m, err := y.Mode(n.Mode)
	if err != nil {
		return l, err
	}
	if err := CheckLAN(y, m, n); err != nil {
		return l, err
	}
	lan := m.Traits(n).LAN.Port
	l = DHCPLease{
		Network: n.ID, Pool: p.ID, Name: r.Name, LAN: lan, Phase: DHCPOffered, Since: y.Config.Now(), Options: p.Options,
		VendorClass: modes.IPAMOpt(p.Options, "vendor_class"),
	}
	mac, err := ClientMAC(y, r, lan)
	if err != nil {
		return l, err
	}
	l.MAC = mac.String()
	switch {
	case lan.Shared():
		l.ClientID = ClientID(y, lan, cmp.Or(r.who(), rand.Text()))
	case r.named() && modes.IPAMOpt(p.Options, "client_id") == "name":
		l.ClientID = ClientID(y, lan, r.who())
	}
	if r.Name != "" && modes.IPAMOpt(p.Options, "hostname") == "true" {
		l.Hostname = HostLabel(r.Name)
	}
	l.ID = n.ID + "/" + l.MAC
	if len(l.ClientID) > 0 {
		l.ID = n.ID + "/" + hex.EncodeToString(l.ClientID)
	}
	return l, nil
}

// acquire asks the LAN. What is on record of the same client already is gone on with. The caller has the client's lock.
func acquire(ctx context.Context, y *book.Book, j *book.Judge, p DHCPPool, l DHCPLease, r Request) (got netip.Prefix, err error) {
	wish := dhcp.Wish{Addr: r.Addr, Must: r.Addr.IsValid()}
	old, err := lease(y, l.ID)
	if err == nil {
		again, err := goOn(ctx, y, j, old, l, r)
		if err != nil || again {
			return old.Lease.Addr, err
		}
		if !r.Addr.IsValid() {
			wish.Addr = old.Lease.Addr.Addr()
		}
	} else if !errors.Is(err, store.ErrNotFound) {
		return got, err
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return got, fmt.Errorf("mac-address %q: %w", l.MAC, err)
	}
	wire, err := kdhcp.PlugWire(y.Config.Kernel.Handle, l.LAN, mac)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, wire.Close()) }()
	client, err := client(y, l, wire)
	if err != nil {
		return got, err
	}
	wish.Offered = func(offer dhcp.Lease) error {
		l.Lease, l.Given = offer, offer.Addr.Addr()
		if p.Subnet.IsValid() && !p.Subnet.Contains(l.Given) {
			return fmt.Errorf("the DHCP server %s offers %s, which is not in subnet %s", offer.Server, l.Given, p.Subnet)
		}
		return y.Update("lease offered", func(tx store.Tx) error { return dhcpLeases.Put(tx, l.ID, l) })
	}
	wish.Declined = declined(y, l, modes.Endpoint{NetworkID: l.Network, Container: modes.Container{Name: l.Name}})
	granted, err := client.Acquire(ctx, wish)
	y.Config.Step("after lease granted")
	if err == nil {
		l.Lease, l.Given, l.Phase, l.Since = granted, granted.Addr.Addr(), DHCPHeld, y.Config.Now()
		err = y.Update("lease held", func(tx store.Tx) error { return dhcpLeases.Put(tx, l.ID, l) })
	}
	if err != nil {
		return got, errors.Join(err, notTaken(y, l))
	}
	y.Config.Log.Info("lease", "network", l.Network, "address", granted.Addr, "mac", l.MAC, "name", l.Name, "server", granted.Server, "expires", granted.Expires)
	y.PokeLeases()
	return granted.Addr, nil
}

// notTaken has a lease that came to nothing given back, if it got as far as an offer: the server may believe that it
// was taken.
func notTaken(y *book.Book, l DHCPLease) error {
	return y.Update("lease not taken", func(tx store.Tx) error {
		now, err := dhcpLeases.Get(tx, l.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return giveBack(y, tx, now)
	})
}

// goOn looks at what is on record of a client that asks. again: the same request, put again. A container's own lease,
// which its name tells, is its again; a hardware address can be two containers' at once, and then it is the first
// one's.
func goOn(ctx context.Context, y *book.Book, j *book.Judge, old, l DHCPLease, r Request) (again bool, err error) {
	if old.Phase != DHCPHeld || r.Addr.IsValid() && r.Addr != old.Given {
		return false, nil
	}
	if old.Endpoint == "" {
		return old.MAC == l.MAC && old.Lease.State(y.Config.Now()) != dhcp.Expired, nil
	}
	e, err := y.Endpoint(old.Network, old.Endpoint)
	if errors.Is(err, book.ErrNotFound) {
		return false, nil
	}
	if err == nil && r.Attachment != "" && e.Attachment == r.Attachment && e.IfName == r.IfName { // its runtime asks again
		return old.Given == old.Lease.Addr.Addr() && old.Lease.State(y.Config.Now()) != dhcp.Expired, nil
	}
	if err != nil || l.Name != "" || e.Phase != modes.Ready || e.Sandbox == "" {
		return false, err
	}
	if dead, err := j.Dead(ctx, e); err != nil || dead {
		return false, err
	}
	what := "mac-address " + l.MAC
	if l.LAN.Shared() {
		what = "address " + old.Given.String()
	}
	return false, fmt.Errorf("%s: %w by %s, which has %s", what, book.ErrInUse, book.Owned(e), old.Lease.Addr)
}

// giveBack records that a lease is to be released; KeepLeases does it.
func giveBack(y *book.Book, tx store.Tx, l DHCPLease) error {
	if l.Phase == DHCPReleasing {
		return nil
	}
	if l.Phase == DHCPDown || !l.Lease.Addr.IsValid() { // the server has it back already
		return dhcpLeases.Delete(tx, l.ID)
	}
	l.Phase, l.Since, l.Tried, l.Tries, l.Endpoint = DHCPReleasing, y.Config.Now(), time.Time{}, 0, ""
	y.Keeper.Dirty.Store(true)
	return dhcpLeases.Put(tx, l.ID, l)
}

// ReleaseGiven gives back the lease of the address that an engine speaks of, unless an endpoint still has it.
func ReleaseGiven(y *book.Book, tx store.Tx, pool string, a netip.Addr) error {
	p, err := DHCPPools.Get(tx, pool)
	if errors.Is(err, store.ErrNotFound) || err == nil && p.Network == "" {
		return nil
	}
	if err != nil {
		return err
	}
	return eachLease(tx, p.Network, func(l DHCPLease) error {
		if l.Given != a || l.Phase == DHCPOffered {
			return nil
		}
		if e, err := book.GetEndpoint(tx, p.Network, l.Endpoint); l.Endpoint != "" && err == nil && e.Phase != modes.Deleting {
			return nil
		}
		return giveBack(y, tx, l)
	})
}

// ReleaseLeasesOf gives back what an endpoint has that is buried.
func ReleaseLeasesOf(y *book.Book, tx store.Tx, e modes.Endpoint) error {
	return eachLease(tx, e.NetworkID, func(l DHCPLease) error {
		if l.Endpoint != e.ID {
			return nil
		}
		return giveBack(y, tx, l)
	})
}

func eachLease(tx store.Tx, network string, do func(DHCPLease) error) error {
	leases, err := dhcpLeases.List(tx, network+"/")
	if err != nil {
		return err
	}
	for _, l := range leases {
		if err := do(l); err != nil {
			return err
		}
	}
	return nil
}

// TakeLease makes the lease of an endpoint's address the endpoint's, and its hardware address the one the server knows,
// if it has one of its own.
func TakeLease(tx store.Tx, n modes.Network, e modes.Endpoint) (modes.Endpoint, error) {
	if len(n.DHCP) == 0 {
		return e, nil
	}
	err := eachLease(tx, n.ID, func(l DHCPLease) error {
		for _, a := range e.Addrs {
			if l.Phase != DHCPHeld || l.Given != a.Addr() || e.MAC != "" && l.MAC != e.MAC && l.Name == "" && l.Endpoint != "" {
				continue
			}
			if e.MAC != "" && e.MAC != l.MAC {
				return fmt.Errorf("mac-address %s: the lease of %s was got with %s, before netyard was told; use --ipam-driver netyard-dhcp", e.MAC, a.Addr(), l.MAC)
			}
			l.Endpoint, l.Six = e.ID, Six{}
			if !l.LAN.Shared() {
				e.MAC = l.MAC
			}
			return dhcpLeases.Put(tx, l.ID, l)
		}
		return nil
	})
	return e, err
}

// Of is the lease that an endpoint has; ok is false when it has none.
func Of(y *book.Book, e modes.Endpoint) (found DHCPLease, ok bool, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		return eachLease(tx, e.NetworkID, func(l DHCPLease) error {
			if l.Endpoint == e.ID {
				found, ok = l, true
			}
			return nil
		})
	})
	return found, ok, err
}

// Dress gives a link what the DHCP server says: gateway, routes, MTU.
func Dress(y *book.Book, n modes.Network, e modes.Endpoint, link *modes.Link) error {
	if len(n.DHCP) == 0 || link.SrcName == "" {
		return nil
	}
	l, ok, err := Of(y, e)
	if err != nil || !ok {
		return err
	}
	defer y.PokeLeases()
	if !n.Internal {
		if l.Lease.Router.IsValid() {
			link.Gateways = append([]netip.Addr{l.Lease.Router}, link.Gateways...)
		}
		for _, r := range l.Lease.Routes {
			via := r.Via
			if via.IsUnspecified() {
				via = netip.Addr{}
			}
			link.Routes = append(link.Routes, modes.Route{Dst: r.Dst, Via: via})
		}
	}
	if l.Lease.MTU > 0 && (link.MTU == 0 || l.Lease.MTU < link.MTU) {
		link.MTU = l.Lease.MTU
		if e.Attachment != "" { // it is set inside
			return nil
		}
		return y.Config.Kernel.SetLinkMTU(link.SrcName, link.MTU)
	}
	return nil
}
