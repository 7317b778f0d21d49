package fabric

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netyard/cluster/record"
	"netyard/store"
)

// An address that a container had is in cooldown before another container gets it: neighbour tables and connection
// tracking elsewhere may still refer to the first. Each host sees in the mirrored records which addresses become free,
// and avoids those while others are free. So no host depends on another host's clock, nothing of it is in etcd, and a
// container can move with its address at once: a request that names the address gets it.

// cooling holds the addresses in cooldown, and since when, for the next start of the daemon.
var cooling = store.Bucket[time.Time]{Name: "overlay_resting"}

// noteCooldown starts the cooldown of addresses that endpoints had, and ends that of addresses that endpoints have, by
// changes of records.
func (n *network) noteCooldown(cs []record.Change, now time.Time) {
	n.coolMu.Lock()
	defer n.coolMu.Unlock()
	for _, c := range cs {
		old, _ := c.Old.(*record.Address)
		is, _ := c.New.(*record.Address)
		switch {
		case is != nil && is.Use == record.Endpoint:
			n.setCooling(is.Addr, time.Time{})
		case old != nil && old.Use == record.Endpoint:
			n.setCooling(old.Addr, now)
		}
	}
}

// setCooling records since when an address is in cooldown; the zero time: it is not. The caller holds coolMu.
func (n *network) setCooling(addr netip.Addr, since time.Time) {
	if _, was := n.cooling[addr]; !was && since.IsZero() {
		return
	}
	if n.cooling[addr] = since; since.IsZero() {
		delete(n.cooling, addr)
	}
	n.changedCooling[addr] = true
}

// isCooling says whether an address is in cooldown.
func (n *network) isCooling(addr netip.Addr) bool {
	n.coolMu.Lock()
	defer n.coolMu.Unlock()
	since, ok := n.cooling[addr]
	age := time.Since(since)
	return ok && age >= 0 && age < n.cooldown // a clock that was set back does not extend it
}

// coolingAddrs returns up to want free addresses in cooldown, the oldest first, for when no other is free.
func (n *network) coolingAddrs(v6 bool, want int) (all []netip.Addr) {
	n.coolMu.Lock()
	since := maps.Clone(n.cooling)
	n.coolMu.Unlock()
	for a := range since {
		if _, ok := n.Find(a); ok && a.Is6() == v6 && n.isFree(a) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b netip.Addr) int { return since[a].Compare(since[b]) })
	return all[:min(want, len(all))]
}

// saveCooling records which addresses are in cooldown.
func (a *Agent) saveCooling(n *network) error {
	n.coolMu.Lock()
	for addr, since := range n.cooling {
		if age := time.Since(since); age < 0 || age >= n.cooldown {
			n.setCooling(addr, time.Time{})
		}
	}
	changed := n.changedCooling
	n.changedCooling = map[netip.Addr]bool{}
	now := maps.Clone(n.cooling)
	n.coolMu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	return a.c.Store.Update(func(tx store.Tx) error {
		for addr := range changed {
			key := Own{Network: n.ID, Addr: addr}.key()
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

// loadCooling loads what the daemon before this one recorded.
func (a *Agent) loadCooling(n *network) error {
	return a.c.Store.View(func(tx store.Tx) error {
		return cooling.Each(tx, n.ID+"/", func(key string, since time.Time) error {
			if addr, err := netip.ParseAddr(strings.TrimPrefix(key, n.ID+"/")); err == nil {
				n.cooling[addr] = since
			}
			return nil
		})
	})
}
