package ipam

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"netyard/store"
)

const (
	// windowBits bounds the addresses that are searched for a dynamic one: all of an IPv4 pool, a part of a /64.
	windowBits = 32
	// namesKept is the number of releases for which a pool records which name had which address. It bounds the record,
	// since names can be random and any number.
	namesKept = 4096
	keySep    = "|"
)

// A cursor has the counters of a pool.
type cursor struct {
	Next     uint64 `json:"next"`     // the offset from which the next dynamic address is searched
	Released uint64 `json:"released"` // how many addresses with a name were ever released
}

// A lastAddr is the address that a name had when it last released one.
type lastAddr struct {
	Addr    netip.Addr `json:"addr"`
	Release uint64     `json:"release"`
}

// Keys begin with the pool's ID. The numbers in them have a fixed width, so that keys are in the order of the numbers.
var (
	wordBucket        = store.Bucket[uint64]{Name: "ipam-words"}            // pool|level|index: see addrSet
	cursorBucket      = store.Bucket[cursor]{Name: "ipam-cursors"}          // pool
	coolingBucket     = store.Bucket[netip.Addr]{Name: "ipam-cooling"}      // pool|freed|address
	macBucket         = store.Bucket[netip.Addr]{Name: "ipam-macs"}         // pool|MAC of an active lease
	reservationBucket = store.Bucket[netip.Addr]{Name: "ipam-reservations"} // pool|name for which it is reserved
	nameBucket        = store.Bucket[lastAddr]{Name: "ipam-names"}          // pool|name
	releaseBucket     = store.Bucket[string]{Name: "ipam-releases"}         // pool|number of the release: the name
	reservedBucket    = store.Bucket[reserved]{Name: "ipam-reserved"}       // pool|address
)

// A reserved is the record of a reservation. It is separate from leases and pools since it must not be lost with them.
type reserved struct {
	Addr netip.Addr `json:"addr"`
	For  string     `json:"for,omitempty"`
}

// CopiedBuckets returns the names of buckets that must be in the copy of the database, since their records cannot be
// rebuilt.
func CopiedBuckets() []string { return []string{reservedBucket.Name} }

func addrKey(pool string, a netip.Addr) string {
	b := a.As16()
	return pool + keySep + hex.EncodeToString(b[:])
}

func numberKey(pool string, n uint64) string { return fmt.Sprintf("%s%s%016x", pool, keySep, n) }

// unmapped returns an address without a zone, and an IPv4-mapped address as IPv4.
func unmapped(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// find returns a record that need not exist.
func find[T any](tx store.Tx, b store.Bucket[T], key string) (v T, found bool, err error) {
	v, err = b.Get(tx, key)
	if errors.Is(err, ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, err
}

// A book has a pool's records: its leases, and indexes that find a lease or a free address without a search. It counts
// addresses by their offset from origin. Leases outside the window have no offset, and are not in the set of used ones.
type book struct {
	tx     store.Tx
	pool   Pool
	now    time.Time
	cool   time.Duration
	origin netip.Addr
	used   addrSet // the offsets that have leases
	not    []netip.Addr
}

func (m *IPAM) book(tx store.Tx, p Pool) book {
	// The window starts at the range if the range is too far up its subnet for a window that starts at the subnet.
	window := p.Subnet
	if p.Range.IsValid() && distance(p.Subnet.Addr(), p.Range.Addr(), 0) >= 1<<windowBits {
		window = p.Range
	}
	size := uint64(1) << min(hostBits(window), windowBits)
	return book{
		tx: tx, pool: p, now: m.c.Now(), cool: m.c.Cooldown,
		origin: window.Addr(), used: newAddrSet(poolWords{tx, p.ID}, size),
	}
}

// poolWords stores the words of a pool's addrSet as records.
type poolWords struct {
	tx   store.Tx
	pool string
}

func (w poolWords) key(level int, index uint64) string {
	return fmt.Sprintf("%s%s%d%s%08x", w.pool, keySep, level, keySep, index)
}

func (w poolWords) get(level int, index uint64) (uint64, error) {
	word, _, err := find(w.tx, wordBucket, w.key(level, index))
	return word, err
}

func (w poolWords) put(level int, index, word uint64) error {
	if word == 0 {
		return wordBucket.Delete(w.tx, w.key(level, index))
	}
	return wordBucket.Put(w.tx, w.key(level, index), word)
}

// usable reports whether a host of the pool can have the address.
func (b book) usable(a netip.Addr) bool { return usable(b.pool.Subnet, a) }

// usable reports whether a host of the subnet can have the address.
func usable(subnet netip.Prefix, a netip.Addr) bool {
	if hostBits(subnet) <= 1 {
		return true // RFC 3021 and RFC 6164: both ends of a point-to-point link
	}
	if a == subnet.Addr() {
		return false // IPv4: the network; IPv6: the subnet-router anycast address, RFC 4291, 2.6.1
	}
	return a.Is6() || a != add(subnet.Addr(), 1<<hostBits(subnet)-1, 0)
}

// check returns an error if the pool cannot lease an address.
func (b book) check(a netip.Addr) error {
	if a = unmapped(a); !b.pool.Subnet.Contains(a) {
		return fmt.Errorf("%w: outside subnet %s", ErrInvalid, b.pool.Subnet)
	}
	if !b.usable(a) {
		return fmt.Errorf("%w: the network's own address or its broadcast", ErrInvalid)
	}
	return nil
}

// lease returns the lease of an address. The lease of a free address has no state.
func (b book) lease(a netip.Addr) (Lease, error) {
	a = unmapped(a)
	l, found, err := find(b.tx, leaseBucket, addrKey(b.pool.ID, a))
	if !found {
		l = Lease{Pool: b.pool.ID, Addr: a}
	}
	return l, err
}

// replace replaces the lease from by to, which has the same address, in all records.
func (b book) replace(from, to Lease) error {
	return errors.Join(b.unindex(from), b.index(to), leaseBucket.Put(b.tx, addrKey(b.pool.ID, to.Addr), to),
		b.putReservation(to), b.changeUsed(to.Addr, addrSet.add))
}

// putReservation records the reservation of a lease, or removes it if the lease is not reserved.
func (b book) putReservation(l Lease) error {
	key := addrKey(b.pool.ID, l.Addr)
	if !l.Reserved {
		return reservedBucket.Delete(b.tx, key)
	}
	return reservedBucket.Put(b.tx, key, reserved{l.Addr, l.ReservedFor})
}

// prune removes the reservations that have no reserved lease.
func (b book) prune(leases []Lease) error {
	reserved := map[string]bool{}
	for _, l := range leases {
		if l.Reserved {
			reserved[addrKey(b.pool.ID, l.Addr)] = true
		}
	}
	for _, key := range reservedBucket.Keys(b.tx, b.pool.ID+keySep) {
		if !reserved[key] {
			if err := reservedBucket.Delete(b.tx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// restoreReservations makes a lease for each reservation that has none.
func (b book) restoreReservations() error {
	all, err := reservedBucket.List(b.tx, b.pool.ID+keySep)
	if err != nil {
		return err
	}
	for _, r := range all {
		l, err := b.lease(r.Addr)
		if err != nil {
			return err
		}
		if l.Reserved || b.check(r.Addr) != nil {
			continue
		}
		if err := b.reserve(l, r.For); err != nil {
			return err
		}
	}
	return nil
}

// reserve reserves a lease's address. An active lease becomes reserved when it is released.
func (b book) reserve(from Lease, name string) error {
	to := from
	to.Reserved, to.ReservedFor = true, name
	if from.State != StateActive {
		to.Since = b.now
		to = to.reserved()
	}
	return b.replace(from, to)
}

// free removes a lease and its reservation.
func (b book) free(l Lease) error {
	key := addrKey(b.pool.ID, l.Addr)
	return errors.Join(b.unindex(l), leaseBucket.Delete(b.tx, key), reservedBucket.Delete(b.tx, key),
		b.changeUsed(l.Addr, addrSet.remove))
}

// changeUsed adds an address to the set of used offsets or removes it, if it is within the window.
func (b book) changeUsed(a netip.Addr, change func(addrSet, uint64) error) error {
	if a.Less(b.origin) {
		return nil
	}
	if i := distance(b.origin, a, 0); i < b.used.size {
		return change(b.used, i)
	}
	return nil
}

func (b book) coolingKey(l Lease) string {
	return addrKey(numberKey(b.pool.ID, uint64(l.Freed.UnixNano())), l.Addr)
}

// index adds a lease to the indexes.
func (b book) index(l Lease) error {
	var errs []error
	if l.State == StateCooling {
		errs = append(errs, coolingBucket.Put(b.tx, b.coolingKey(l), l.Addr))
	}
	if l.State == StateActive && l.MAC != "" {
		errs = append(errs, macBucket.Put(b.tx, b.pool.ID+keySep+l.MAC, l.Addr))
	}
	if l.ReservedFor != "" {
		errs = append(errs, reservationBucket.Put(b.tx, b.pool.ID+keySep+l.ReservedFor, l.Addr))
	}
	return errors.Join(errs...)
}

// unindex removes a lease from the indexes.
func (b book) unindex(l Lease) error {
	var errs []error
	if l.State == StateCooling {
		errs = append(errs, coolingBucket.Delete(b.tx, b.coolingKey(l)))
	}
	if l.State == StateActive && l.MAC != "" {
		errs = append(errs, b.unlink(macBucket, l.MAC, l.Addr))
	}
	if l.ReservedFor != "" {
		errs = append(errs, b.unlink(reservationBucket, l.ReservedFor, l.Addr))
	}
	return errors.Join(errs...)
}

// unlink removes the entry of a name from an index, unless it has another address: two leases can have the same MAC,
// and the index has the later one.
func (b book) unlink(from store.Bucket[netip.Addr], name string, a netip.Addr) error {
	key := b.pool.ID + keySep + name
	if got, found, err := find(b.tx, from, key); err != nil || !found || got != a {
		return err
	}
	return from.Delete(b.tx, key)
}

// remember records the address that a lease's name had, and removes the record that is namesKept releases old.
func (b book) remember(l Lease) error {
	c, _, err := find(b.tx, cursorBucket, b.pool.ID)
	if err != nil {
		return err
	}
	c.Released++
	err = errors.Join(
		cursorBucket.Put(b.tx, b.pool.ID, c),
		nameBucket.Put(b.tx, b.pool.ID+keySep+l.Name, lastAddr{Addr: l.Addr, Release: c.Released}),
		releaseBucket.Put(b.tx, numberKey(b.pool.ID, c.Released), l.Name),
	)
	if err != nil || c.Released <= namesKept {
		return err
	}
	old := numberKey(b.pool.ID, c.Released-namesKept)
	name, found, err := find(b.tx, releaseBucket, old)
	if err != nil || !found {
		return err
	}
	last, found, err := find(b.tx, nameBucket, b.pool.ID+keySep+name)
	if err == nil && found && last.Release == c.Released-namesKept {
		err = nameBucket.Delete(b.tx, b.pool.ID+keySep+name)
	}
	return errors.Join(err, releaseBucket.Delete(b.tx, old))
}

// hasEndpoints reports whether a container has an address of the pool.
func (b book) hasEndpoints() (bool, error) {
	found := false
	err := leaseBucket.Each(b.tx, b.pool.ID+keySep, func(_ string, l Lease) error {
		if l.State == StateActive && (l.Kind == KindStatic || l.Kind == KindDynamic) {
			found = true
			return store.ErrStop
		}
		return nil
	})
	return found, err
}

// clear frees all addresses that are not reserved.
func (b book) clear() error {
	ls, err := leaseBucket.List(b.tx, b.pool.ID+keySep)
	for _, l := range ls {
		if err == nil && !l.Reserved {
			err = b.free(l)
		}
	}
	return err
}

// erase removes all records of the pool's addresses.
func (b book) erase() error {
	prefix := b.pool.ID + keySep
	return errors.Join(
		cursorBucket.Delete(b.tx, b.pool.ID),
		eraseAll(b.tx, leaseBucket, prefix), eraseAll(b.tx, wordBucket, prefix), eraseAll(b.tx, coolingBucket, prefix),
		eraseAll(b.tx, macBucket, prefix), eraseAll(b.tx, reservationBucket, prefix),
		eraseAll(b.tx, nameBucket, prefix), eraseAll(b.tx, releaseBucket, prefix),
		eraseAll(b.tx, reservedBucket, prefix),
	)
}

// eraseAll removes all records whose keys have a prefix.
func eraseAll[T any](tx store.Tx, b store.Bucket[T], prefix string) error {
	for _, key := range b.Keys(tx, prefix) {
		if err := b.Delete(tx, key); err != nil {
			return err
		}
	}
	return nil
}
