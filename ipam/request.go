package ipam

import (
	"fmt"
	"net/netip"
	"strings"

	"netyard/store"
)

// An AddressRequest says what address is wanted.
type AddressRequest struct {
	Pool string
	// Addr is the address that the user named. If it is not valid, the IPAM chooses one.
	Addr netip.Addr
	// Gateway requests the pool's gateway address.
	Gateway bool
	// Name and MAC are those of the container, if known.
	Name, MAC string
	// Not are addresses that the IPAM does not choose.
	Not []netip.Addr
}

// kind returns the kind of the lease that r gets.
func (r AddressRequest) kind(p Pool) Kind {
	switch {
	case r.Gateway:
		return KindGateway
	case !r.Addr.IsValid():
		return KindDynamic
	case p.Network == "":
		return KindAux // the network is not made yet, so it is not a container's
	}
	return KindStatic
}

// repeats reports whether r is a repeated request that l was granted to. Two containers can have the same MAC; they are
// told apart by their names, where those are known.
func (r AddressRequest) repeats(l Lease) bool {
	return r.MAC != "" && r.MAC == l.MAC && (r.Name == "" || l.Name == "" || r.Name == l.Name)
}

// RequestAddress grants the address that r asks for and returns it with the prefix length of its subnet.
func (m *IPAM) RequestAddress(tx store.Tx, r AddressRequest) (netip.Prefix, error) {
	r.MAC = strings.ToLower(r.MAC)
	got, err := m.grant(tx, r)
	switch {
	case err == nil:
		return got, nil
	case r.Addr.IsValid():
		err = fmt.Errorf("request address %s from pool %s: %w", r.Addr, r.Pool, err)
	default:
		err = fmt.Errorf("request address from pool %s: %w", r.Pool, err)
	}
	return netip.Prefix{}, err
}

func (m *IPAM) grant(tx store.Tx, r AddressRequest) (netip.Prefix, error) {
	p, err := poolBucket.Get(tx, r.Pool)
	if err != nil {
		return netip.Prefix{}, err
	}
	b := m.book(tx, p)
	b.not = r.Not
	var from Lease
	switch {
	case r.Addr.IsValid():
		from, err = b.explicit(r)
	case r.Gateway:
		from, err = b.gateway()
	default:
		from, err = b.dynamic(r)
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	if from.State != StateActive { // otherwise r has it already
		to := Lease{
			Pool: p.ID, Addr: from.Addr, Kind: r.kind(p), State: StateActive, Name: r.Name, MAC: r.MAC, Since: b.now,
			Reserved: from.Reserved, ReservedFor: from.ReservedFor,
		}
		err = b.replace(from, to)
	}
	return netip.PrefixFrom(from.Addr, p.Subnet.Bits()), err
}

// explicit returns the lease of the address that r names, if r can have it.
func (b book) explicit(r AddressRequest) (Lease, error) {
	if err := b.check(r.Addr); err != nil {
		return Lease{}, err
	}
	l, err := b.lease(r.Addr)
	if err != nil {
		return Lease{}, err
	}
	taken := l.State == StateActive && !r.repeats(l) && (!r.Gateway || !b.ownGateway(l))
	reserved := l.State == StateReserved && l.Name != "" && r.Name != "" && l.Name != r.Name
	if taken || reserved {
		return Lease{}, fmt.Errorf("%w %s", ErrTaken, l.owner())
	}
	return l, nil
}

// ownGateway reports whether l is the gateway of a network that is being made, so that its request is a repeated one.
func (b book) ownGateway(l Lease) bool { return l.Kind == KindGateway && b.pool.Network == "" }

// ReleaseAddress ends the ownership of an address. Its last owner can get it again: a dynamic address cools, and is
// what its name gets next; a static one is held. An address without an owner, of whatever pool, is not an error.
func (m *IPAM) ReleaseAddress(tx store.Tx, pool string, addr netip.Addr) error {
	p, known, err := find(tx, poolBucket, pool)
	if err == nil && known {
		err = m.book(tx, p).release(addr)
	}
	if err != nil {
		return fmt.Errorf("release address %s of pool %s: %w", addr, pool, err)
	}
	return nil
}

func (b book) release(addr netip.Addr) error {
	l, err := b.lease(addr)
	if err != nil || l.State != StateActive {
		return err
	}
	if l.Kind == KindDynamic && l.Name != "" {
		if err := b.remember(l); err != nil {
			return err
		}
	}
	to := l
	to.Freed = b.now
	switch {
	case l.Reserved:
		to = to.reserved()
	case l.Kind == KindStatic:
		to.State = StateHeld
	case l.Kind == KindDynamic && b.cool > 0:
		to.State = StateCooling
	default:
		return b.free(l)
	}
	return b.replace(l, to)
}
