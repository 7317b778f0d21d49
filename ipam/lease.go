package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"netyard/store"
)

// A Kind says what a lease's address was requested as.
type Kind string

// The kinds of leases.
const (
	KindGateway  Kind = "gateway"  // the address of the bridge or the router
	KindAux      Kind = "aux"      // excluded from use by containers when the network was created
	KindStatic   Kind = "static"   // named by the user
	KindDynamic  Kind = "dynamic"  // chosen by the IPAM
	KindReserved Kind = "reserved" // reserved by the user, and without an owner at present
)

// A State says who can get a lease's address next.
type State string

// The states of leases. An address without a lease is free.
const (
	StateActive   State = "active"   // it has an owner
	StateCooling  State = "cooling"  // was dynamic; not given again for a while
	StateHeld     State = "held"     // was static; for a request by address, as its stopped container will make
	StateReserved State = "reserved" // for a request by its name, or by address without another name
)

// A Lease is an address of a pool that is not free.
type Lease struct {
	Pool  string     `json:"pool"`
	Addr  netip.Addr `json:"addr"`
	Kind  Kind       `json:"kind"`
	State State      `json:"state"`
	// Name and MAC are those of the owner, or of the last one; either is empty if it is not known. The Name of a
	// reserved lease is that for which it is reserved.
	Name  string    `json:"name,omitempty"`
	MAC   string    `json:"mac,omitempty"`
	Since time.Time `json:"since"`
	// Freed is the time when the last owner released it; zero while active.
	Freed time.Time `json:"freed,omitzero"`
	// Reserved says that the address becomes reserved, for ReservedFor if that is set, when its owner releases it.
	Reserved    bool   `json:"reserved,omitempty"`
	ReservedFor string `json:"reserved_for,omitempty"`
}

// owner returns the end of an error about a lease: whom it belongs to.
func (l Lease) owner() string {
	switch {
	case l.State == StateReserved && l.Name != "":
		return "by a reservation for " + l.Name
	case l.Name != "":
		return "by " + l.Name
	case l.MAC != "":
		return "by " + l.MAC
	}
	return "as " + string(l.Kind)
}

var leaseBucket = store.Bucket[Lease]{Name: "ipam-leases"}

// Leases returns all leases in order of their pools, then their addresses.
func (m *IPAM) Leases(tx store.Tx) ([]Lease, error) {
	pools, err := m.Pools(tx)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var all []Lease
	for _, p := range pools {
		ls, err := leaseBucket.List(tx, p.ID+keySep)
		if err != nil {
			return nil, fmt.Errorf("list leases: %w", err)
		}
		all = append(all, ls...)
	}
	return all, nil
}

// Held returns the held leases in order of their pools, then their addresses.
func (m *IPAM) Held(tx store.Tx) ([]Lease, error) {
	all, err := m.Leases(tx)
	var held []Lease
	for _, l := range all {
		if l.State == StateHeld {
			held = append(held, l)
		}
	}
	return held, err
}

// LeaseAt returns the lease of an address, or ErrNotFound if the address is free or the pool does not exist.
func (m *IPAM) LeaseAt(tx store.Tx, pool string, addr netip.Addr) (Lease, error) {
	l, err := leaseBucket.Get(tx, addrKey(pool, unmapped(addr)))
	if err != nil {
		return Lease{}, fmt.Errorf("find lease of %s in pool %s: %w", addr, pool, err)
	}
	return l, nil
}

// Reserve reserves an address for the container of this name, which gets it if it requests no other; or, if name is
// empty, for requests by address. An active lease stays with its owner, and becomes reserved when it is released. To
// reserve again changes the name.
func (m *IPAM) Reserve(tx store.Tx, pool string, addr netip.Addr, name string) error {
	err := func() error {
		p, err := poolBucket.Get(tx, pool)
		if err != nil {
			return err
		}
		b := m.book(tx, p)
		if err := b.check(addr); err != nil {
			return err
		}
		from, err := b.lease(addr)
		if err != nil {
			return err
		}
		return b.reserve(from, name)
	}()
	if err != nil {
		return fmt.Errorf("reserve address %s of pool %s: %w", addr, pool, err)
	}
	return nil
}

// RestoreReservations makes the reservations of all pools agree with the leases. Reservations without a lease get a
// lease again, and leases that are reserved get a reservation. If authoritative is false, reservations without a lease
// are removed before: an older netyard that did not know of reservations has released them.
func (m *IPAM) RestoreReservations(tx store.Tx, authoritative bool) error {
	pools, err := m.Pools(tx)
	if err != nil {
		return fmt.Errorf("restore reservations: %w", err)
	}
	for _, p := range pools {
		b := m.book(tx, p)
		leases, err := leaseBucket.List(tx, p.ID+keySep)
		if err == nil && !authoritative {
			err = b.prune(leases)
		}
		for _, l := range leases {
			if err == nil && l.Reserved {
				err = b.putReservation(l)
			}
		}
		if err == nil {
			err = b.restoreReservations()
		}
		if err != nil {
			return fmt.Errorf("restore reservations of pool %s: %w", p.ID, err)
		}
	}
	return nil
}

// RemoveUnknownReservations removes the reservations of pools that do not exist, except those for whose subnet but
// returns true.
func (m *IPAM) RemoveUnknownReservations(tx store.Tx, but func(subnet netip.Prefix) bool) error {
	for _, key := range reservedBucket.Keys(tx, "") {
		id, _, _ := strings.Cut(key, keySep)
		_, known, err := find(tx, poolBucket, id)
		subnet, _, _ := strings.Cut(id, "@")
		if p, parseErr := netip.ParsePrefix(subnet); parseErr == nil && but(p) {
			continue
		}
		if err == nil && !known {
			err = reservedBucket.Delete(tx, key)
		}
		if err != nil {
			return fmt.Errorf("remove reservations of pool %s: %w", id, err)
		}
	}
	return nil
}

// reserved returns a reserved lease as it is without an owner.
func (l Lease) reserved() Lease {
	l.Kind, l.State, l.Name, l.MAC = KindReserved, StateReserved, l.ReservedFor, ""
	return l
}

// Free frees an address that is held, cooling or reserved. It returns ErrInUse for an active one and ErrNotFound for
// a free one.
func (m *IPAM) Free(tx store.Tx, pool string, addr netip.Addr) error {
	err := func() error {
		p, err := poolBucket.Get(tx, pool)
		if err != nil {
			return err
		}
		b := m.book(tx, p)
		l, err := b.lease(addr)
		switch {
		case err != nil:
			return err
		case l.State == "":
			return ErrNotFound
		case l.State == StateActive:
			return fmt.Errorf("%w %s", ErrInUse, l.owner())
		}
		return b.free(l)
	}()
	if err != nil {
		return fmt.Errorf("free address %s of pool %s: %w", addr, pool, err)
	}
	return nil
}
