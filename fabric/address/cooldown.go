package address

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"netyard/cluster/record"
	"netyard/store"
)

// A cooldown is the addresses of a network that are in cooldown. An address that a container had is in cooldown before
// another container gets it: neighbour tables and connection tracking elsewhere may still refer to the first. Each host
// sees in the mirrored records which addresses become free, and avoids those while others are free. So no host depends
// on another host's clock, nothing of it is in etcd, and a container can move with its address at once: a request that
// names the address gets it.
type cooldown struct {
	lasts time.Duration

	mu sync.Mutex
	// since are the addresses in cooldown, and since when; changed are those whose record differs.
	since   map[netip.Addr]time.Time
	changed map[netip.Addr]bool
}

// cooling holds the addresses in cooldown, and since when, for the next start of the daemon.
var cooling = store.Bucket[time.Time]{Name: "overlay_resting"}

// loadCooldown loads what the daemon before this one recorded.
func loadCooldown(st *store.Store, network string, lasts time.Duration) (*cooldown, error) {
	c := &cooldown{lasts: lasts, since: map[netip.Addr]time.Time{}, changed: map[netip.Addr]bool{}}
	return c, st.View(func(tx store.Tx) error {
		return cooling.Each(tx, network+"/", func(key string, since time.Time) error {
			if addr, err := netip.ParseAddr(strings.TrimPrefix(key, network+"/")); err == nil {
				c.since[addr] = since
			}
			return nil
		})
	})
}

// note starts the cooldown of addresses that endpoints had, and ends that of addresses that endpoints have, by changes
// of records.
func (c *cooldown) note(cs []record.Change, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range cs {
		old, _ := ch.Old.(*record.Address)
		is, _ := ch.New.(*record.Address)
		switch {
		case is != nil && is.Use == record.Endpoint:
			c.set(is.Addr, time.Time{})
		case old != nil && old.Use == record.Endpoint:
			c.set(old.Addr, now)
		}
	}
}

// set records since when an address is in cooldown; the zero time: it is not. The caller holds mu.
func (c *cooldown) set(addr netip.Addr, since time.Time) {
	if _, was := c.since[addr]; !was && since.IsZero() {
		return
	}
	if c.since[addr] = since; since.IsZero() {
		delete(c.since, addr)
	}
	c.changed[addr] = true
}

// has says whether an address is in cooldown.
func (c *cooldown) has(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	since, ok := c.since[addr]
	age := time.Since(since)
	return ok && age >= 0 && age < c.lasts // a clock that was set back does not extend it
}

// oldest returns all addresses in cooldown, the oldest first.
func (c *cooldown) oldest() []netip.Addr {
	c.mu.Lock()
	since := maps.Clone(c.since)
	c.mu.Unlock()
	return slices.SortedFunc(maps.Keys(since), func(a, b netip.Addr) int { return since[a].Compare(since[b]) })
}

// save records which addresses are in cooldown.
func (c *cooldown) save(st *store.Store, network string) error {
	c.mu.Lock()
	for addr, since := range c.since {
		if age := time.Since(since); age < 0 || age >= c.lasts {
			c.set(addr, time.Time{})
		}
	}
	changed := c.changed
	c.changed = map[netip.Addr]bool{}
	now := maps.Clone(c.since)
	c.mu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	return st.Update(func(tx store.Tx) error {
		for addr := range changed {
			key := Own{Network: network, Addr: addr}.key()
			write := func() error { return cooling.Put(tx, key, now[addr]) }
			if now[addr].IsZero() {
				write = func() error { return cooling.Delete(tx, key) }
			}
			if err := write(); err != nil {
				return err
			}
		}
		return nil
	})
}
