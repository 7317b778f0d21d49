package ipam

import (
	"net/netip"

	"netyard/store"
)

// thawAtOnce is how many rested addresses a request frees. Each release rests one, so that more than one keeps up.
const thawAtOnce = 4

// gateway returns the lease of the first address of the subnet, or else of the first free one.
func (b book) gateway() (Lease, error) {
	first := b.pool.Subnet.Addr()
	if !b.usable(first) {
		first = first.Next()
	}
	l, err := b.lease(first)
	if err != nil || l.State == "" || l.State == StateCooling || b.ownGateway(l) {
		return l, err
	}
	within := b.pool.Subnet
	if b.origin != within.Addr() {
		within = b.pool.Range // the subnet's beginning is not in the window
	}
	s := b.span(within)
	i, err := b.used.nextFree(s.lo)
	if err == nil && i >= s.end {
		err = ErrExhausted
	}
	return Lease{Addr: add(b.origin, i, 0)}, err
}

// dynamic returns the lease of the address that is best for r: the one that it has, that is kept for its name or that
// its name had last; one that is free; and only then the one that has rested longest, however short that is:
// with nothing else left a rest that is cut short is better than a container that does not start.
func (b book) dynamic(r AddressRequest) (Lease, error) {
	for _, own := range []func(AddressRequest) (Lease, bool, error){b.byMAC, b.byReservation, b.byName} {
		if l, ok, err := own(r); err != nil || ok {
			return l, err
		}
	}
	if err := b.thaw(); err != nil {
		return Lease{}, err
	}
	if l, ok, err := b.next(); err != nil || ok {
		return l, err
	}
	l, ok, err := b.longestCooling()
	if err == nil && !ok {
		err = ErrExhausted
	}
	return l, err
}

// byMAC finds the active lease that r was granted when it was first made.
func (b book) byMAC(r AddressRequest) (Lease, bool, error) {
	l, found, err := b.indexed(macBucket, r.MAC)
	return l, found && r.repeats(l), err
}

// byReservation finds the address that is reserved for r's name.
func (b book) byReservation(r AddressRequest) (Lease, bool, error) {
	l, found, err := b.indexed(reservationBucket, r.Name)
	return l, found && l.State == StateReserved, err
}

func (b book) indexed(in store.Bucket[netip.Addr], name string) (Lease, bool, error) {
	a, found, err := find(b.tx, in, b.pool.ID+keySep+name)
	if err != nil || !found {
		return Lease{}, false, err
	}
	l, err := b.lease(a)
	return l, err == nil, err
}

// byName finds the address that r's name had last, if nobody else has come by it.
func (b book) byName(r AddressRequest) (Lease, bool, error) {
	last, found, err := find(b.tx, nameBucket, b.pool.ID+keySep+r.Name)
	if err != nil || !found {
		return Lease{}, false, err
	}
	l, err := b.lease(last.Addr)
	return l, l.State == "" || l.State == StateCooling, err
}

// thaw frees addresses that have rested long enough. It does a few at a time, so that no request pays for a
// thousand containers that were stopped at once.
func (b book) thaw() error {
	var rested []Lease
	err := coolingBucket.Each(b.tx, b.pool.ID+keySep, func(_ string, a netip.Addr) error {
		l, err := b.lease(a)
		if err != nil {
			return err
		}
		if len(rested) == thawAtOnce || b.now.Sub(l.Freed) < b.cool {
			return store.ErrStop
		}
		rested = append(rested, l)
		return nil
	})
	for _, l := range rested {
		if err == nil {
			err = b.free(l)
		}
	}
	return err
}

// next takes the first free address at or after the cursor, wrapping around, so that an address that was just free
// is the last one to be handed out.
func (b book) next() (Lease, bool, error) {
	c, _, err := find(b.tx, cursorBucket, b.pool.ID)
	if err != nil {
		return Lease{}, false, err
	}
	within := b.pool.Subnet
	if b.pool.Range.IsValid() {
		within = b.pool.Range
	}
	s := b.bound(b.span(within))
	i, err := b.used.nextFree(max(c.Next, s.lo))
	if err == nil && i >= s.end {
		i, err = b.used.nextFree(s.lo)
	}
	if err != nil || i >= s.end {
		return Lease{}, false, err
	}
	c.Next = i + 1
	return Lease{Addr: add(b.origin, i, 0)}, true, cursorBucket.Put(b.tx, b.pool.ID, c)
}

// span returns the offsets of part's usable addresses, as far as they are within the window.
func (b book) span(part netip.Prefix) span {
	lo := distance(b.origin, part.Addr(), 0)
	end := min(lo+1<<min(hostBits(part), windowBits), b.used.size)
	if !b.usable(part.Addr()) {
		lo++
	}
	if !b.usable(add(b.origin, end-1, 0)) {
		end--
	}
	return span{lo, end}
}

// bound cuts a span at the pool's first and last dynamic address.
func (b book) bound(s span) span {
	if a := b.pool.First; a.IsValid() && b.origin.Less(a) {
		s.lo = max(s.lo, distance(b.origin, a, 0))
	}
	if a := b.pool.Last; a.IsValid() && !a.Less(b.origin) {
		if i := distance(b.origin, a, 0); i < s.end { // or else the window ends before it
			s.end = i + 1
		}
	}
	return s
}

// longestCooling finds the address that was given up first.
func (b book) longestCooling() (l Lease, found bool, err error) {
	err = coolingBucket.Each(b.tx, b.pool.ID+keySep, func(_ string, a netip.Addr) error {
		first, err := b.lease(a)
		if err != nil {
			return err
		}
		l, found = first, true
		return store.ErrStop
	})
	return l, found, err
}
