// Package lease acquires, renews and releases the addresses that a LAN's DHCP servers give to endpoints.
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
	"netyard/yard/live"
)

// A DHCPLease is the record of an address that a DHCP server gave to an endpoint, or is asked for.
type DHCPLease struct {
	// ID is made of the network, and the client's identifier or MAC.
	ID      string
	Network string
	Pool    string
	// Endpoint is the owner; empty until there is one.
	Endpoint string `json:",omitempty"`
	// Given is the address that the engine was told, and names in its requests. Lease has the one in use.
	Given netip.Addr
	Lease dhcp.Lease
	MAC   string
	// ClientID and VendorClass are as the server was told at first, Hostname as it was told last.
	ClientID    []byte            `json:",omitempty"`
	VendorClass string            `json:",omitempty"`
	Hostname    string            `json:",omitempty"`
	Name        string            `json:",omitempty"` // the container's, if the engine tells it
	LAN         kdhcp.LANPort     // where the server is
	Phase       DHCPPhase         // the stage of its life
	Since       time.Time         // when Phase began
	Tried       time.Time         `json:",omitzero"` // the last failed attempt to extend or release it
	Tries       int               `json:",omitempty"`
	Options     map[string]string `json:",omitempty"` // the pool's
	Six         Six               `json:",omitzero"`
}

// A DHCPPhase is a stage in the life of a lease.
type DHCPPhase string

// The phases of a lease.
const (
	DHCPOffered   DHCPPhase = "offered"   // it is being requested; after a crash it is released
	DHCPHeld      DHCPPhase = "held"      // it is granted, and extended while it has an endpoint
	DHCPDown      DHCPPhase = "down"      // it was lost, and the endpoint's link taken down
	DHCPReleasing DHCPPhase = "releasing" // the server is to be told that it is free
)

// State returns the state of a lease in one word.
func (l DHCPLease) State(now time.Time) string {
	if l.Phase == DHCPHeld {
		return string(l.Lease.State(now))
	}
	return string(l.Phase)
}

// dhcpLeases has the leases by network and client.
var dhcpLeases = store.Bucket[DHCPLease]{Name: "dhcp-leases"}

const (
	// dhcpTime is how long it may take to acquire a lease. An engine's call has 9 s; the rest is for undoing it.
	dhcpTime = 7 * time.Second
	// lockPrefix begins the names of the locks of leases.
	lockPrefix = "dhcp "
)

// DHCPLeases returns all leases.
func DHCPLeases(y *book.Book) (ls []DHCPLease, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		ls, err = dhcpLeases.List(tx, "")
		return err
	})
	return ls, err
}

// getLease reads the record of a lease.
func getLease(y *book.Book, id string) (l DHCPLease, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		l, err = dhcpLeases.Get(tx, id)
		return err
	})
	return l, err
}

// A Request is a request for an address from the LAN's DHCP server.
type Request struct {
	ipam.AddressRequest
	// Attachment and IfName name the interface of a container that comes by CNI.
	Attachment, IfName string
}

// RequestLease gets an address from the LAN's DHCP server.
func RequestLease(ctx context.Context, j *live.Check, r Request) (netip.Prefix, error) {
	y := j.Book
	var p DHCPPool
	err := y.Config.Store.View(func(tx store.Tx) (err error) {
		p, err = DHCPPools.Get(tx, r.Pool)
		return err
	})
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("request address from pool %s: %w", r.Pool, err)
	case r.Gateway:
		return netip.Prefix{}, fmt.Errorf("gateway %s: the DHCP server names the gateway; leave --gateway out", r.Addr)
	case p.Network == "" && r.Addr.IsValid(): // an aux-address, before the network is made: the server's concern
		return netip.PrefixFrom(r.Addr, p.Range().Bits()), nil
	}
	n, err := y.Network(p.Network)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("request address from pool %s, which only netyard's networks can use: %w",
			r.Pool, err)
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
	a, err := acquire(ctx, j, p, l, r)
	if errors.Is(err, dhcp.ErrNoServer) {
		err = fmt.Errorf("%w within %v", err, dhcpTime)
	}
	if err != nil {
		return a, fmt.Errorf("get an address by DHCP on %s: %w", l.LAN, err)
	}
	return a, nil
}

// newLease returns a lease without an address: the client and the LAN.
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
		Network: n.ID, Pool: p.ID, Name: r.Name, LAN: lan, Phase: DHCPOffered, Since: y.Config.Now(),
		Options: p.Options, VendorClass: modes.IPAMOpt(p.Options, "vendor_class"),
	}
	mac, err := ClientMAC(y, r, lan)
	if err != nil {
		return l, err
	}
	l.MAC = mac.String()
	switch {
	case lan.Shared():
		l.ClientID = ClientID(y, lan, cmp.Or(r.clientName(), rand.Text()))
	case r.hasName() && modes.IPAMOpt(p.Options, "client_id") == "name":
		l.ClientID = ClientID(y, lan, r.clientName())
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

// acquire acquires a lease on the LAN, or returns the one that the client has on record. The caller has the client's
// lock.
func acquire(
	ctx context.Context, j *live.Check, p DHCPPool, l DHCPLease, r Request,
) (got netip.Prefix, err error) {
	y := j.Book
	wish := dhcp.Wish{Addr: r.Addr, Must: r.Addr.IsValid()}
	old, err := getLease(y, l.ID)
	if err == nil {
		again, err := resume(ctx, j, old, l, r)
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
	wire, err := kdhcp.PlugWire(y.Config.Handle, l.LAN, mac)
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
			return fmt.Errorf("DHCP server %s offers %s, which is not in subnet %s", offer.Server, l.Given, p.Subnet)
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
		return got, errors.Join(err, releaseUntaken(y, l))
	}
	y.LogOf(l.Network).Info("lease acquired", "address", granted.Addr, "mac", l.MAC, "client", l.Name,
		"server", granted.Server, "expires", granted.Expires)
	y.Keeper.Wake.Send()
	return granted.Addr, nil
}

// releaseUntaken releases the lease of a request that failed, if there was an offer: the server may hold that the lease
// was granted.
func releaseUntaken(y *book.Book, l DHCPLease) error {
	return y.Update("lease not taken", func(tx store.Tx) error {
		now, err := dhcpLeases.Get(tx, l.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return markReleasing(y, tx, now)
	})
}

// resume examines the lease that a client has on record; again: the request is a repeated one, and the lease is its
// answer. A container with a name requests its own lease again. A MAC can be that of two containers at once:
// then the lease stays with the first one while it lives.
func resume(ctx context.Context, j *live.Check, old, l DHCPLease, r Request) (again bool, err error) {
	y := j.Book
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
	if err == nil && r.Attachment != "" && e.Attachment == r.Attachment && e.IfName == r.IfName { // a repeated request
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

// markReleasing records that a lease is to be released; KeepLeases does that.
func markReleasing(y *book.Book, tx store.Tx, l DHCPLease) error {
	if l.Phase == DHCPReleasing {
		return nil
	}
	if l.Phase == DHCPDown || !l.Lease.Addr.IsValid() { // there is nothing to release at the server
		return dhcpLeases.Delete(tx, l.ID)
	}
	l.Phase, l.Since, l.Tried, l.Tries, l.Endpoint = DHCPReleasing, y.Config.Now(), time.Time{}, 0, ""
	y.Keeper.Dirty.Store(true)
	return dhcpLeases.Put(tx, l.ID, l)
}

// ReleaseGiven releases the lease of the address that an engine names, unless an endpoint still has it.
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
		e, err := book.GetEndpoint(tx, p.Network, l.Endpoint)
		if l.Endpoint != "" && err == nil && e.Phase != modes.Deleting {
			return nil
		}
		return markReleasing(y, tx, l)
	})
}

// ReleaseLeasesOf releases the leases of an endpoint that is removed.
func ReleaseLeasesOf(y *book.Book, tx store.Tx, e modes.Endpoint) error {
	return eachLease(tx, e.NetworkID, func(l DHCPLease) error {
		if l.Endpoint != e.ID {
			return nil
		}
		return markReleasing(y, tx, l)
	})
}

// eachLease calls do with each lease of a network.
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

// AssignLease assigns the lease of an endpoint's address to the endpoint. It also gives the endpoint the MAC that the
// server knows, unless containers of the LAN share one.
func AssignLease(tx store.Tx, n modes.Network, e modes.Endpoint) (modes.Endpoint, error) {
	if len(n.DHCP) == 0 {
		return e, nil
	}
	err := eachLease(tx, n.ID, func(l DHCPLease) error {
		for _, a := range e.Addrs {
			if l.Phase != DHCPHeld || l.Given != a.Addr() {
				continue
			}
			if e.MAC != "" && l.MAC != e.MAC && l.Name == "" && l.Endpoint != "" {
				continue
			}
			if e.MAC != "" && e.MAC != l.MAC {
				return fmt.Errorf("mac-address %s: the lease of %s was acquired with MAC %s "+
					"before the engine passed this one; use --ipam-driver netyard-dhcp", e.MAC, a.Addr(), l.MAC)
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

// Of returns the lease of an endpoint; ok is false if it has none.
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
