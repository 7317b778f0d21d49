package fabric

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netyard/cluster"
	"netyard/store"
)

// An address that a container had rests before another one gets it: neighbours and connection tracking elsewhere may
// still know the first. Each host sees by itself, in the records that it follows, what became free, and passes it over
// while there is another. So no host has to believe another one's clock, etcd has nothing of it, and a container can
// move with its address at once: who asks for it by name gets it.

// resting are the addresses that rest, and since when, for the next life of this daemon.
var resting = store.Bucket[time.Time]{Name: "overlay_resting"}

// cool notes what changes of records say of addresses that containers had.
func (n *network) cool(cs []cluster.Change, now time.Time) {
	n.restMu.Lock()
	defer n.restMu.Unlock()
	for _, c := range cs {
		old, _ := c.Old.(*cluster.Address)
		is, _ := c.New.(*cluster.Address)
		switch {
		case is != nil && is.Use == cluster.Endpoint:
			n.rest(is.Addr, time.Time{})
		case old != nil && old.Use == cluster.Endpoint:
			n.rest(old.Addr, now)
		}
	}
}

// rest notes since when an address rests; the zero time: it does not. The caller holds restMu.
func (n *network) rest(addr netip.Addr, since time.Time) {
	if _, was := n.resting[addr]; !was && since.IsZero() {
		return
	}
	if n.resting[addr] = since; since.IsZero() {
		delete(n.resting, addr)
	}
	n.turned[addr] = true
}

// rests says whether an address is to be passed over.
func (n *network) rests(addr netip.Addr) bool {
	n.restMu.Lock()
	defer n.restMu.Unlock()
	since, ok := n.resting[addr]
	age := time.Since(since)
	return ok && age >= 0 && age < n.cooldown // a clock that was set back does not make it longer
}

// rested are the free addresses that rest, the one that has rested longest first: where no other is left.
func (n *network) rested(v6 bool, want int) (all []netip.Addr) {
	n.restMu.Lock()
	since := maps.Clone(n.resting)
	n.restMu.Unlock()
	for a := range since {
		if _, ok := n.Find(a); ok && a.Is6() == v6 && n.isFree(a) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b netip.Addr) int { return since[a].Compare(since[b]) })
	return all[:min(want, len(all))]
}

// keepRest writes down what rests and what does not any more.
func (a *Agent) keepRest(n *network) error {
	n.restMu.Lock()
	for addr, since := range n.resting {
		if age := time.Since(since); age < 0 || age >= n.cooldown {
			n.rest(addr, time.Time{})
		}
	}
	turned := n.turned
	n.turned = map[netip.Addr]bool{}
	now := maps.Clone(n.resting)
	n.restMu.Unlock()
	if len(turned) == 0 {
		return nil
	}
	return a.c.Store.Update(func(tx store.Tx) error {
		for addr := range turned {
			key := Own{Network: n.ID, Addr: addr}.key()
			write := func() error { return resting.Put(tx, key, now[addr]) }
			if now[addr].IsZero() {
				write = func() error { return resting.Delete(tx, key) }
			}
			if err := write(); err != nil {
				return err
			}
		}
		return nil
	})
}

// loadRest reads what the daemon before this one wrote down.
func (a *Agent) loadRest(n *network) error {
	return a.c.Store.View(func(tx store.Tx) error {
		return resting.Each(tx, n.ID+"/", func(key string, since time.Time) error {
			if addr, err := netip.ParseAddr(strings.TrimPrefix(key, n.ID+"/")); err == nil {
				n.resting[addr] = since
			}
			return nil
		})
	})
}
