package ipam

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"netyard/store"
)

var (
	ip     = netip.MustParseAddr
	prefix = netip.MustParsePrefix
	start  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

	cmpNet = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

// openStore opens an empty database, whose invariants are checked when the test ends.
func openStore(t testing.TB) *store.Store {
	t.Helper()
	_, measures := t.(*testing.B)
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "state.db"), NoSync: !measures})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkInvariants(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A rig is an IPAM with a clock that stands still unless it is moved.
type rig struct {
	t     testing.TB
	store *store.Store
	ipam  *IPAM
	now   time.Time
}

func newRig(t testing.TB, c Config) *rig {
	t.Helper()
	r := &rig{t: t, store: openStore(t), now: start}
	c.Now = func() time.Time { return r.now }
	r.ipam = New(c)
	return r
}

// do runs fn in a transaction of its own and fails the test if fn fails.
func (r *rig) do(fn func(tx store.Tx) error) {
	r.t.Helper()
	if err := r.store.Update(fn); err != nil {
		r.t.Fatal(err)
	}
}

// pool requests a pool, and binds it to a network if one is given.
func (r *rig) pool(req PoolRequest, network string) (p Pool) {
	r.t.Helper()
	r.do(func(tx store.Tx) (err error) {
		if p, err = r.ipam.RequestPool(tx, req); err != nil || network == "" {
			return err
		}
		return r.ipam.BindPool(tx, p.Subnet, "", network)
	})
	return p
}

func (r *rig) subnet(s, network string) string {
	r.t.Helper()
	return r.pool(PoolRequest{Subnet: prefix(s)}, network).ID
}

func (r *rig) try(req AddressRequest) (got netip.Prefix, err error) {
	err = r.store.Update(func(tx store.Tx) error {
		got, err = r.ipam.RequestAddress(tx, req)
		return err
	})
	return got, err
}

// get requests an address and fails the test if it is not granted.
func (r *rig) get(req AddressRequest) string {
	r.t.Helper()
	got, err := r.try(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return got.Addr().String()
}

func (r *rig) release(pool, addr string) {
	r.t.Helper()
	r.do(func(tx store.Tx) error { return r.ipam.ReleaseAddress(tx, pool, ip(addr)) })
}

func (r *rig) reserve(pool, addr, name string) {
	r.t.Helper()
	r.do(func(tx store.Tx) error { return r.ipam.Reserve(tx, pool, ip(addr), name) })
}

func (r *rig) forget(pool, addr string) error {
	return r.store.Update(func(tx store.Tx) error { return r.ipam.Free(tx, pool, ip(addr)) })
}

// leases describes every lease as "address kind state name".
func (r *rig) leases() (all []string) {
	r.t.Helper()
	r.do(func(tx store.Tx) error {
		ls, err := r.ipam.Leases(tx)
		for _, l := range ls {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", l.Addr, l.Kind, l.State, l.Name)))
		}
		return err
	})
	return all
}

func wantError(t testing.TB, err, is error, text string) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("error is %v, want a %q", err, is)
	}
	if err != nil && err.Error() != text {
		t.Errorf("error reads\n %q, want\n %q", err, text)
	}
}

func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpNet); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// checkInvariants fails the test if records of the database contradict each other.
func checkInvariants(t testing.TB, s *store.Store) {
	t.Helper()
	err := s.View(func(tx store.Tx) error {
		m := New(Config{})
		pools, err := m.Pools(tx)
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for i, p := range pools {
			known[p.ID] = true
			for _, q := range pools[:i] {
				if p.Domain == q.Domain && p.Subnet.Overlaps(q.Subnet) {
					t.Errorf("pools %s and %s overlap", p.ID, q.ID)
				}
			}
			if err := checkPool(t, m.book(tx, p)); err != nil {
				return err
			}
		}
		for _, key := range allKeys(tx) {
			if pool, _, _ := strings.Cut(key, keySep); !known[pool] {
				t.Errorf("record %q belongs to no pool", key)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("check invariants: %v", err)
	}
}

func allKeys(tx store.Tx) []string {
	var keys []string
	for _, ks := range [][]string{
		leaseBucket.Keys(tx, ""), wordBucket.Keys(tx, ""), cursorBucket.Keys(tx, ""), coolingBucket.Keys(tx, ""),
		macBucket.Keys(tx, ""), reservationBucket.Keys(tx, ""), nameBucket.Keys(tx, ""), releaseBucket.Keys(tx, ""),
	} {
		keys = append(keys, ks...)
	}
	return keys
}

func checkPool(t testing.TB, b book) error {
	t.Helper()
	ls, err := leaseBucket.List(b.tx, b.pool.ID+keySep)
	if err != nil {
		return err
	}
	byAddr := map[netip.Addr]Lease{}
	members := map[uint64]bool{}
	cooling := map[string]netip.Addr{}
	for _, l := range ls {
		checkLease(t, b, l)
		byAddr[l.Addr] = l
		if off := distance(b.origin, l.Addr, 0); !l.Addr.Less(b.origin) && off < b.used.size {
			members[off] = true
		}
		if l.State == StateCooling {
			cooling[b.coolingKey(l)] = l.Addr
		}
	}
	got, err := storedWords(b)
	if err != nil {
		return err
	}
	equal(t, b.pool.ID+": bits", got, wantWords(members, b.used.levels))
	recorded := map[string]netip.Addr{}
	err = coolingBucket.Each(b.tx, b.pool.ID+keySep, func(k string, a netip.Addr) error { recorded[k] = a; return nil })
	equal(t, b.pool.ID+": cooling", recorded, cooling)
	return errors.Join(err,
		eachIndexed(b, macBucket, func(mac string, a netip.Addr) {
			if l := byAddr[a]; l.State != StateActive || l.MAC != mac {
				t.Errorf("%s: MAC %s leads to %+v", b.pool.ID, mac, l)
			}
		}),
		eachIndexed(b, reservationBucket, func(name string, a netip.Addr) {
			if l := byAddr[a]; !l.Reserved || l.ReservedFor != name {
				t.Errorf("%s: reservation for %s leads to %+v", b.pool.ID, name, l)
			}
		}),
		checkNames(t, b))
}

func checkLease(t testing.TB, b book, l Lease) {
	t.Helper()
	where := b.pool.Subnet
	if b.pool.Range.IsValid() && l.Kind == KindDynamic && !l.Reserved {
		where = b.pool.Range
	}
	bad := l.Pool != b.pool.ID || !where.Contains(l.Addr) || !b.usable(l.Addr)
	switch l.State {
	case StateActive:
		bad = bad || l.Kind == KindReserved || !l.Freed.IsZero()
	case StateCooling:
		bad = bad || l.Kind != KindDynamic || l.Freed.IsZero() || l.Reserved
	case StateHeld:
		bad = bad || l.Kind != KindStatic || l.Freed.IsZero() || l.Reserved
	case StateReserved:
		bad = bad || l.Kind != KindReserved || !l.Reserved || l.Name != l.ReservedFor || l.MAC != ""
	default:
		bad = true
	}
	if bad {
		t.Errorf("%s: lease contradicts itself: %+v", b.pool.ID, l)
	}
}

func eachIndexed(b book, in store.Bucket[netip.Addr], fn func(name string, a netip.Addr)) error {
	return in.Each(b.tx, b.pool.ID+keySep, func(key string, a netip.Addr) error {
		fn(strings.TrimPrefix(key, b.pool.ID+keySep), a)
		return nil
	})
}

// checkNames checks that each recorded name will be removed after namesKept releases.
func checkNames(t testing.TB, b book) error {
	t.Helper()
	releases := releaseBucket.Keys(b.tx, b.pool.ID+keySep)
	if len(releases) > namesKept {
		t.Errorf("%s: %d releases are recorded, more than %d", b.pool.ID, len(releases), namesKept)
	}
	return nameBucket.Each(b.tx, b.pool.ID+keySep, func(key string, last lastAddr) error {
		name, err := releaseBucket.Get(b.tx, numberKey(b.pool.ID, last.Release))
		if err == nil && key != b.pool.ID+keySep+name {
			t.Errorf("%s: release %d is of %q, not %q", b.pool.ID, last.Release, name, key)
		}
		return err
	})
}

// A wordKey is the position of a word of an addrSet.
type wordKey struct {
	level int
	index uint64
}

// wantWords returns the words of a set of these members, computed level by level.
func wantWords(members map[uint64]bool, levels int) map[wordKey]uint64 {
	want := map[wordKey]uint64{}
	for level := range levels {
		full := map[uint64]bool{}
		for i := range members {
			k := wordKey{level, i / 64}
			want[k] |= 1 << (i % 64)
			if want[k] == math.MaxUint64 {
				full[k.index] = true
			}
		}
		members = full
	}
	return want
}

func storedWords(b book) (map[wordKey]uint64, error) {
	words := map[wordKey]uint64{}
	err := wordBucket.Each(b.tx, b.pool.ID+keySep, func(key string, word uint64) error {
		part := strings.Split(key, keySep)
		level, err := strconv.Atoi(part[1])
		if err != nil {
			return err
		}
		index, err := strconv.ParseUint(part[2], 16, 64)
		words[wordKey{level, index}] = word
		return err
	})
	return words, err
}
