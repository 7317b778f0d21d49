package fabric

import (
	"context"
	"errors"

	"netyard/cluster"
	"netyard/store"
)

// fill claims the host's own address in a subnet, and some that are kept in store.
func (a *Agent) fill(ctx context.Context, m cluster.Member, n *network, s cluster.Subnet, own []Own) error {
	warm, host := 0, false
	for _, o := range own {
		if s.Pool.Contains(o.Addr) && !o.Gone && !o.Lost {
			host = host || o.Use == cluster.OfHost
			if o.Use == cluster.Warm && o.Endpoint == "" {
				warm++
			}
		}
	}
	var claims []cluster.Address
	want := n.warmth(s) - warm
	free := n.free(s.Pool.Addr().Is6(), max(want, 0)+1)
	if !host && len(free) == 0 {
		free = n.rested(s.Pool.Addr().Is6(), 1)
	}
	for _, addr := range free {
		switch {
		case !host:
			host = true
			claims = append(claims, cluster.Address{Addr: addr, Use: cluster.OfHost, MAC: n.MAC})
		case want > 0:
			want--
			claims = append(claims, cluster.Address{Addr: addr, Use: cluster.Warm})
		}
	}
	if len(claims) == 0 {
		return nil
	}
	if err := a.c.Client.ClaimAddresses(ctx, m, claims...); errors.Is(err, cluster.ErrTaken) { // somebody was faster; the next look finds others
		return nil
	} else if err != nil {
		return err
	}
	err := a.stock(n.ID, claims)
	a.doubt(n.ID)
	return err
}

// stock records what was claimed. A request may have asked for one of them meanwhile, and got it: etcd does not tell
// them apart.
func (a *Agent) stock(network string, claims []cluster.Address) error {
	var own []Own
	for _, c := range claims {
		own = append(own, Own{Network: network, Addr: c.Addr, Use: c.Use, MAC: c.MAC, Synced: true})
	}
	return a.c.Store.Update(func(tx store.Tx) error {
		_, err := putNew(tx, own)
		return err
	})
}

// warmth is how many addresses of a subnet are kept in store: two of a hundred, and none when it is nearly full.
func (n *network) warmth(s cluster.Subnet) int {
	const few, full = 50, 5 // 1/50 of them; more than 4/5
	bits := s.Pool.Addr().BitLen() - s.Pool.Bits()
	if bits >= 16 {
		return warmest
	}
	all := 1 << bits
	used := 0
	n.addrs.Each(func(r cluster.Record) {
		if a, ok := r.(*cluster.Address); ok && s.Pool.Contains(a.Addr) {
			used++
		}
	})
	if used*full > all*(full-1) {
		return 0
	}
	return min(warmest, max(1, all/few))
}
