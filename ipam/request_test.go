package ipam

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"netyard/store"
)

func TestTwoDomains(t *testing.T) {
	r := newRig(t, Config{})
	subnet := prefix("192.168.10.0/24")
	a := r.pool(PoolRequest{Subnet: subnet, Domain: "eth0.10"}, "a").ID
	b := r.pool(PoolRequest{Subnet: subnet, Domain: "eth0.20"}, "b").ID
	for _, pool := range []string{a, b} {
		equal(t, "gateway", r.get(AddressRequest{Pool: pool, Gateway: true}), "192.168.10.1")
		equal(t, "address", r.get(AddressRequest{Pool: pool, MAC: "02:00:00:00:00:01"}), "192.168.10.2")
		equal(t, "static", r.get(AddressRequest{Pool: pool, Addr: ip("192.168.10.9")}), "192.168.10.9")
	}
	r.release(a, "192.168.10.9")
	r.do(func(tx store.Tx) error {
		held, err := r.ipam.Held(tx)
		if err != nil {
			return err
		}
		equal(t, "held", held, []Lease{{
			Pool: a, Addr: ip("192.168.10.9"), Kind: KindStatic, State: StateHeld, Since: start, Freed: start,
		}})
		l, err := r.ipam.LeaseAt(tx, b, ip("192.168.10.9"))
		equal(t, "state in the other domain", l.State, StateActive)
		return err
	})
}

func TestPrefixLength(t *testing.T) {
	r := newRig(t, Config{})
	got, err := r.try(AddressRequest{Pool: r.subnet("10.1.0.0/20", "n"), Addr: ip("10.1.3.4")})
	wantError(t, err, nil, "")
	equal(t, "address", got, prefix("10.1.3.4/20"))
}

func TestLeaseAt(t *testing.T) {
	r := newRig(t, Config{})
	pool := r.subnet("10.1.0.0/24", "n")
	r.get(AddressRequest{Pool: pool, Name: "web", MAC: "02:00:00:00:00:01"})
	r.do(func(tx store.Tx) error {
		l, err := r.ipam.LeaseAt(tx, pool, ip("10.1.0.1"))
		equal(t, "lease", l, Lease{
			Pool: pool, Addr: ip("10.1.0.1"), Kind: KindDynamic, State: StateActive,
			Name: "web", MAC: "02:00:00:00:00:01", Since: start,
		})
		if _, err := r.ipam.LeaseAt(tx, pool, ip("10.1.0.2")); err == nil {
			t.Error("a free address has a lease")
		} else {
			wantError(t, err, ErrNotFound, "find lease of 10.1.0.2 in pool 10.1.0.0/24: "+
				"ipam-leases 10.1.0.0/24|00000000000000000000ffff0a010002: not found")
		}
		return err
	})
}

func TestCooldown(t *testing.T) {
	pool := func(r *rig) string { return r.subnet("10.1.0.0/29", "n") }
	states := func(r *rig) string { return fmt.Sprint(r.leases()) }
	t.Run("configured", func(t *testing.T) {
		r := newRig(t, Config{Cooldown: time.Hour})
		id := pool(r)
		r.release(id, r.get(AddressRequest{Pool: id}))
		r.now = start.Add(time.Hour - 1)
		r.get(AddressRequest{Pool: id})
		equal(t, "leases before", states(r), "[10.1.0.1 dynamic cooling 10.1.0.2 dynamic active]")
		r.now = start.Add(time.Hour)
		r.get(AddressRequest{Pool: id})
		equal(t, "leases after", states(r), "[10.1.0.2 dynamic active 10.1.0.3 dynamic active]")
	})
	t.Run("none", func(t *testing.T) {
		r := newRig(t, Config{Cooldown: -1})
		id := pool(r)
		r.release(id, r.get(AddressRequest{Pool: id}))
		equal(t, "leases", states(r), "[]")
		equal(t, "next", r.get(AddressRequest{Pool: id}), "10.1.0.2")
	})
	t.Run("the longest cooling goes first", func(t *testing.T) {
		r := newRig(t, Config{})
		id := pool(r)
		for range 6 {
			r.get(AddressRequest{Pool: id})
		}
		for i, addr := range []string{"10.1.0.4", "10.1.0.2", "10.1.0.6"} {
			r.now = start.Add(time.Duration(i) * time.Second)
			r.release(id, addr)
		}
		var got []string
		for range 3 {
			got = append(got, r.get(AddressRequest{Pool: id}))
		}
		equal(t, "order", got, []string{"10.1.0.4", "10.1.0.2", "10.1.0.6"})
	})
	t.Run("many cool at once", func(t *testing.T) {
		r := newRig(t, Config{})
		id := r.subnet("10.2.0.0/24", "n")
		for i := range 20 {
			r.get(AddressRequest{Pool: id, Addr: netip.Addr{}, Name: fmt.Sprint("c", i)})
		}
		for i := range 20 {
			r.release(id, fmt.Sprintf("10.2.0.%d", i+1))
		}
		r.now = start.Add(time.Hour)
		for want := 20 - cooledPerRequest; want >= 0; want -= cooledPerRequest {
			r.get(AddressRequest{Pool: id})
			r.do(func(tx store.Tx) error {
				equal(t, "cooling", len(coolingBucket.Keys(tx, id)), want)
				return nil
			})
		}
	})
}

// TestNamesAreBounded shows that the records of names are removed after a number of releases: containers that come and
// go can have any number of names, and the database must not grow with them.
func TestNamesAreBounded(t *testing.T) {
	r := newRig(t, Config{Cooldown: -1})
	pool := r.subnet("10.1.0.0/24", "n")
	cycle := func(name string) string {
		addr := r.get(AddressRequest{Pool: pool, Name: name})
		r.release(pool, addr)
		return addr
	}
	cycle("job1")                  // 1
	cycle("web")                   // 2
	cycle("job2")                  // 3
	cycle("web")                   // 4
	r.do(func(tx store.Tx) error { // skip all but the last of the releases until the first is removed
		c, err := cursorBucket.Get(tx, pool)
		equal(t, "releases", c.Released, 4)
		c.Released = namesKept - 1
		if err != nil {
			return err
		}
		return cursorBucket.Put(tx, pool, c)
	})
	recorded := func(want ...string) {
		t.Helper()
		r.do(func(tx store.Tx) error {
			equal(t, "names", nameBucket.Keys(tx, pool), want)
			return nil
		})
	}
	cycle("job3")
	recorded(pool+"|job1", pool+"|job2", pool+"|job3", pool+"|web")
	cycle("job3") // removes 1
	recorded(pool+"|job2", pool+"|job3", pool+"|web")
	cycle("job3") // removes 2, but web was released again since
	recorded(pool+"|job2", pool+"|job3", pool+"|web")
	cycle("job3") // removes 3
	recorded(pool+"|job3", pool+"|web")
	equal(t, "address of a recorded name", cycle("web"), "10.1.0.2")
	equal(t, "address of a removed name", cycle("job1"), "10.1.0.5")
}

func TestUnknownPoolsAndAddresses(t *testing.T) {
	r := newRig(t, Config{})
	pool := r.subnet("10.1.0.0/24", "n")
	r.release("10.2.0.0/24", "10.2.0.1")
	r.release(pool, "10.1.0.1")
	r.release(pool, "10.9.0.1")
	_, err := r.try(AddressRequest{Pool: "10.2.0.0/24"})
	wantError(t, err, ErrNotFound, "request address from pool 10.2.0.0/24: ipam-pools 10.2.0.0/24: not found")
	wantError(t, r.forget("10.2.0.0/24", "10.2.0.1"), ErrNotFound,
		"free address 10.2.0.1 of pool 10.2.0.0/24: ipam-pools 10.2.0.0/24: not found")
}

// TestWholePool fills a /16, or a smaller pool with the race detector, which is slow, to its last address, and then
// finds each gap in it.
func TestWholePool(t *testing.T) {
	r := newRig(t, Config{})
	subnet := netip.PrefixFrom(ip("10.7.0.0"), wholePoolBits)
	pool := r.subnet(subnet.String(), "n")
	usable, last := 1<<(32-wholePoolBits)-2, add(ip("10.7.0.0"), 1<<(32-wholePoolBits)-1, 0)
	seen := make(map[netip.Addr]bool, usable)
	for left := usable; left > 0; {
		r.do(func(tx store.Tx) error {
			for range min(left, 20000) {
				a, err := r.ipam.RequestAddress(tx, AddressRequest{Pool: pool})
				if err != nil {
					return err
				}
				seen[a.Addr()] = true
				left--
			}
			return nil
		})
	}
	equal(t, "different addresses", len(seen), usable)
	equal(t, "network or broadcast address given", seen[ip("10.7.0.0")] || seen[last], false)
	_, err := r.try(AddressRequest{Pool: pool})
	wantError(t, err, ErrExhausted, "request address from pool "+pool+": nothing free")
	for _, addr := range []string{"10.7.20.17", "10.7.3.255", last.Prev().String(), "10.7.0.1"} {
		r.release(pool, addr)
		equal(t, "the only gap", r.get(AddressRequest{Pool: pool}), addr)
	}
}
