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
	// Addr is the one the user named; not valid: any.
	Addr netip.Addr
	// Gateway asks for the pool's gateway.
	Gateway bool
	// Name and MAC are the container's, where they are known.
	Name, MAC string
}

func (r AddressRequest) kind(p Pool) Kind {
	switch {
	case r.Gateway:
		return KindGateway
	case !r.Addr.IsValid():
		return KindDynamic
	case p.Network == "":
		return KindAux // containers come after their network
	}
	return KindStatic
}

// repeats says whether l is what r asks for, granted when r was first made. Two containers can be given one MAC;
// where their names are known they are told apart.
func (r AddressRequest) repeats(l Lease) bool {
	return r.MAC != "" && r.MAC == l.MAC && (r.Name == "" || l.Name == "" || r.Name == l.Name)
}

// RequestAddress grants the address that r asks for and returns it with the length of its subnet's prefix.
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
	if from.State != StateActive { // or else it is r's already
		to := Lease{
			Pool: p.ID, Addr: from.Addr, Kind: r.kind(p), State: StateActive, Name: r.Name, MAC: r.MAC, Since: b.now,
			Reserved: from.Reserved, ReservedFor: from.ReservedFor,
		}
		err = b.replace(from, to)
	}
	return netip.PrefixFrom(from.Addr, p.Subnet.Bits()), err
}

// explicit returns the lease of the address that r names, if r may have it.
func (b book) explicit(r AddressRequest) (Lease, error) {
	if err := b.fits(r.Addr); err != nil {
		return Lease{}, err
	}
	l, err := b.lease(r.Addr)
	if err != nil {
		return Lease{}, err
	}
	taken := l.State == StateActive && !r.repeats(l) && (!r.Gateway || !b.ownGateway(l))
	others := l.State == StateReserved && l.Name != "" && r.Name != "" && l.Name != r.Name
	if taken || others {
		return Lease{}, fmt.Errorf("%w %s", ErrTaken, l.holder())
	}
	return l, nil
}

// ownGateway says whether l is the gateway of a network that is being made: its request is being repeated.
func (b book) ownGateway(l Lease) bool { return l.Kind == KindGateway && b.pool.Network == "" }

// ReleaseAddress takes an address back from its holder. Who had it can get it again: a dynamic one cools, and is
// what its name gets next; a static one is held. An address nobody has, of whatever pool, is no error.
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
