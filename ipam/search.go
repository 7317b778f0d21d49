package ipam

import (
	"net/netip"
	"slices"

	"netyard/store"
)

// cooledPerRequest is how many cooled addresses a request frees at most. Each release cools one, so that more than one
// is enough to keep up.
const cooledPerRequest = 4

// gateway returns the lease of the first address of the subnet, or else of the first free one.
func (b book) gateway() (Lease, error) {
	first := b.pool.Subnet.Addr()
	if !b.usable(first) {
		first = first.Next()
	}
	l, err := b.lease(first)
	if err != nil || !b.excludes(first) && (l.State == "" || l.State == StateCooling || b.ownGateway(l)) {
		return l, err
	}
	within := b.pool.Subnet
	if b.origin != within.Addr() {
		within = b.pool.Range // the start of the subnet is not in the window
	}
	s := b.span(within)
	i, err := b.nextFree(s.lo)
	if err == nil && i >= s.end {
		err = ErrExhausted
	}
	return Lease{Addr: add(b.origin, i, 0)}, err
}

// excludes reports whether the request excludes an address from what is chosen.
func (b book) excludes(a netip.Addr) bool { return slices.Contains(b.not, a) }

// nextFree returns the first offset from the given one on that has no lease and is not excluded.
func (b book) nextFree(from uint64) (uint64, error) {
	for {
		i, err := b.used.nextFree(from)
		if err != nil || i >= b.used.size || !b.excludes(add(b.origin, i, 0)) {
			return i, err
		}
		from = i + 1
	}
}

// dynamic returns the lease of the best address for r, in this order: the one that r has, that is reserved for its
// name, or that its name had last; a free one; and the one that has cooled longest, even if its time is not over, since
// without it the container would not start.
func (b book) dynamic(r AddressRequest) (Lease, error) {
	for _, own := range []func(AddressRequest) (Lease, bool, error){b.byMAC, b.byReservation, b.byName} {
		if l, ok, err := own(r); err != nil || ok && !b.excludes(l.Addr) {
			return l, err
		}
	}
	if err := b.freeCooled(); err != nil {
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

// byMAC finds the active lease that r was granted before, if r is a repeated request.
func (b book) byMAC(r AddressRequest) (Lease, bool, error) {
	l, found, err := b.indexed(macBucket, r.MAC)
	return l, found && r.repeats(l), err
}

// byReservation finds the address that is reserved for r's name.
func (b book) byReservation(r AddressRequest) (Lease, bool, error) {
	l, found, err := b.indexed(reservationBucket, r.Name)
	return l, found && l.State == StateReserved, err
}

// indexed returns the lease whose address is recorded under a name in an index.
func (b book) indexed(in store.Bucket[netip.Addr], name string) (Lease, bool, error) {
	a, found, err := find(b.tx, in, b.pool.ID+keySep+name)
	if err != nil || !found {
		return Lease{}, false, err
	}
	l, err := b.lease(a)
	return l, err == nil, err
}

// byName finds the address that r's name had last, if it has no other owner since.
func (b book) byName(r AddressRequest) (Lease, bool, error) {
	last, found, err := find(b.tx, nameBucket, b.pool.ID+keySep+r.Name)
	if err != nil || !found {
		return Lease{}, false, err
	}
	l, err := b.lease(last.Addr)
	return l, l.State == "" || l.State == StateCooling, err
}

// freeCooled frees addresses whose cooldown is over. It frees a few at a time, so that no request takes long after a
// thousand containers were stopped at once.
func (b book) freeCooled() error {
	var cooled []Lease
	err := coolingBucket.Each(b.tx, b.pool.ID+keySep, func(_ string, a netip.Addr) error {
		l, err := b.lease(a)
		if err != nil {
			return err
		}
		if len(cooled) == cooledPerRequest || b.now.Sub(l.Freed) < b.cool {
			return store.ErrStop
		}
		cooled = append(cooled, l)
		return nil
	})
	for _, l := range cooled {
		if err == nil {
			err = b.free(l)
		}
	}
	return err
}

// next returns the first free address from the cursor on, and then from the start of the range, so that an address that
// was just freed is the last one to be given.
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
	i, err := b.nextFree(max(c.Next, s.lo))
	if err == nil && i >= s.end {
		i, err = b.nextFree(s.lo)
	}
	if err != nil || i >= s.end {
		return Lease{}, false, err
	}
	c.Next = i + 1
	return Lease{Addr: add(b.origin, i, 0)}, true, cursorBucket.Put(b.tx, b.pool.ID, c)
}

// span returns the offsets of the usable addresses of part that are within the window.
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

// bound limits a span to the pool's first and last dynamic address.
func (b book) bound(s span) span {
	if a := b.pool.First; a.IsValid() && b.origin.Less(a) {
		s.lo = max(s.lo, distance(b.origin, a, 0))
	}
	if a := b.pool.Last; a.IsValid() && !a.Less(b.origin) {
		if i := distance(b.origin, a, 0); i < s.end { // otherwise the window ends before it
			s.end = i + 1
		}
	}
	return s
}

// longestCooling returns the cooling lease that was released first.
func (b book) longestCooling() (l Lease, found bool, err error) {
	err = coolingBucket.Each(b.tx, b.pool.ID+keySep, func(_ string, a netip.Addr) error {
		if b.excludes(a) {
			return nil
		}
		first, err := b.lease(a)
		if err != nil {
			return err
		}
		l, found = first, true
		return store.ErrStop
	})
	return l, found, err
}
