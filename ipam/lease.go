package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"netyard/store"
)

// A Kind says what a lease's address was asked for.
type Kind string

// The kinds of leases.
const (
	KindGateway  Kind = "gateway"  // the bridge's or the router's own
	KindAux      Kind = "aux"      // kept from containers by the user, when the network was made
	KindStatic   Kind = "static"   // named by the user
	KindDynamic  Kind = "dynamic"  // chosen by us
	KindReserved Kind = "reserved" // set aside by the user; nobody's at present
)

// A State says who may have a lease's address next.
type State string

// The states of leases. An address without a lease is free.
const (
	StateActive   State = "active"   // somebody has it
	StateCooling  State = "cooling"  // was dynamic and is passed over for a while
	StateHeld     State = "held"     // was static: for who asks for it by address, as its stopped container will
	StateReserved State = "reserved" // for who asks for it by address, and is who it is reserved for
)

// A Lease is an address of a pool that is not free.
type Lease struct {
	Pool  string     `json:"pool"`
	Addr  netip.Addr `json:"addr"`
	Kind  Kind       `json:"kind"`
	State State      `json:"state"`
	// Name and MAC are the holder's, or the last one's; of a reserved lease Name is who it is reserved for.
	// Either is empty when it is not known.
	Name  string    `json:"name,omitempty"`
	MAC   string    `json:"mac,omitempty"`
	Since time.Time `json:"since"`
	// Freed is when the last holder gave it up; zero while active.
	Freed time.Time `json:"freed,omitzero"`
	// Reserved says that the address becomes reserved, for ReservedFor if that is set, once its holder gives it up.
	Reserved    bool   `json:"reserved,omitempty"`
	ReservedFor string `json:"reserved_for,omitempty"`
}

// holder says whose l is, for an error.
func (l Lease) holder() string {
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

// Leases returns every lease in order of its pool, then its address.
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

// LeaseAt returns the lease of an address; ErrNotFound when the address is free or the pool is not known.
func (m *IPAM) LeaseAt(tx store.Tx, pool string, addr netip.Addr) (Lease, error) {
	l, err := leaseBucket.Get(tx, addrKey(pool, bare(addr)))
	if err != nil {
		return Lease{}, fmt.Errorf("find lease of %s in pool %s: %w", addr, pool, err)
	}
	return l, nil
}

// Reserve sets an address aside for the container of this name, or, when name is empty, for whoever asks for it
// by address. What name asks for without naming an address is this one. An active lease stays its holder's and
// becomes reserved when it is given up. To reserve again changes the name.
func (m *IPAM) Reserve(tx store.Tx, pool string, addr netip.Addr, name string) error {
	err := func() error {
		p, err := poolBucket.Get(tx, pool)
		if err != nil {
			return err
		}
		b := m.book(tx, p)
		if err := b.fits(addr); err != nil {
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

// Recall makes the reservations of all pools agree with their leases: those that outlived their leases have some again,
// and those that are in leases alone outlive them from now on. Unless right, the leases are right: what outlived them
// was given up by a netyard that did not know of it.
func (m *IPAM) Recall(tx store.Tx, right bool) error {
	pools, err := m.Pools(tx)
	if err != nil {
		return fmt.Errorf("recall reservations: %w", err)
	}
	for _, p := range pools {
		b := m.book(tx, p)
		leases, err := leaseBucket.List(tx, p.ID+keySep)
		if err == nil && !right {
			err = b.prune(leases)
		}
		for _, l := range leases {
			if err == nil && l.Reserved {
				err = b.keep(l)
			}
		}
		if err == nil {
			err = b.recall()
		}
		if err != nil {
			return fmt.Errorf("recall reservations of pool %s: %w", p.ID, err)
		}
	}
	return nil
}

// ForgetUnknown drops the reservations of pools that there are not.
func (m *IPAM) ForgetUnknown(tx store.Tx, but func(subnet netip.Prefix) bool) error {
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
			return fmt.Errorf("forget reservations of pool %s: %w", id, err)
		}
	}
	return nil
}

// reserved is l as it is while nobody has it.
func (l Lease) reserved() Lease {
	l.Kind, l.State, l.Name, l.MAC = KindReserved, StateReserved, l.ReservedFor, ""
	return l
}

// Forget frees an address that is held, cooling or reserved, now. An active one says ErrInUse, a free one ErrNotFound.
func (m *IPAM) Forget(tx store.Tx, pool string, addr netip.Addr) error {
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
			return fmt.Errorf("%w %s", ErrInUse, l.holder())
		}
		return b.free(l)
	}()
	if err != nil {
		return fmt.Errorf("forget address %s of pool %s: %w", addr, pool, err)
	}
	return nil
}
