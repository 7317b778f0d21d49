package ipam

import (
	"fmt"
	"testing"
	"time"

	"netyard/store"
)

// BenchmarkAllocate measures one request and one release in a /16: with a commit for each pair, as in the daemon, and
// with many pairs in one transaction, which excludes the disk.
func BenchmarkAllocate(b *testing.B) {
	for _, percent := range []int{1, 50, 99} {
		b.Run(fmt.Sprintf("used=%d%%", percent), func(b *testing.B) {
			r, pool := benchPool(b, percent)
			for b.Loop() {
				r.do(func(tx store.Tx) error { return r.pair(tx, pool) })
			}
		})
		b.Run(fmt.Sprintf("one-transaction/used=%d%%", percent), func(b *testing.B) {
			r, pool := benchPool(b, percent)
			r.do(func(tx store.Tx) error {
				for b.Loop() {
					if err := r.pair(tx, pool); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// pair requests an address and releases it. It advances the clock by a second, so that as many addresses cool as on a
// busy host.
func (r *rig) pair(tx store.Tx, pool string) error {
	r.now = r.now.Add(time.Second)
	a, err := r.ipam.RequestAddress(tx, AddressRequest{Pool: pool})
	if err != nil {
		return err
	}
	return r.ipam.ReleaseAddress(tx, pool, a.Addr())
}

// benchPool makes a /16 with this percentage of its addresses in use.
func benchPool(b *testing.B, percent int) (*rig, string) {
	b.Helper()
	r := newRig(b, Config{})
	pool := r.subnet("10.7.0.0/16", "n")
	for left := (1<<16 - 2) * percent / 100; left > 0; {
		r.do(func(tx store.Tx) error {
			for ; left > 0; left-- {
				if _, err := r.ipam.RequestAddress(tx, AddressRequest{Pool: pool}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return r, pool
}
