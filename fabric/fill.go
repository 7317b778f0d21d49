package fabric

import (
	"context"
	"errors"

	"netyard/cluster"
	"netyard/cluster/record"
	"netyard/store"
)

// fillWarm claims the host's own address in a subnet, and the warm addresses that are missing.
func (a *Agent) fillWarm(ctx context.Context, m record.Member, n *network, s record.Subnet, own []Own) error {
	warm, host := 0, false
	for _, o := range own {
		if s.Pool.Contains(o.Addr) && !o.Gone && !o.Lost {
			host = host || o.Use == record.OfHost
			if o.Use == record.Warm && o.Endpoint == "" {
				warm++
			}
		}
	}
	var claims []record.Address
	want := n.wantWarm(s) - warm
	free := n.freeAddrs(s.Pool.Addr().Is6(), max(want, 0)+1)
	if !host && len(free) == 0 {
		free = n.coolingAddrs(s.Pool.Addr().Is6(), 1)
	}
	for _, addr := range free {
		switch {
		case !host:
			host = true
			claims = append(claims, record.Address{Addr: addr, Use: record.OfHost, MAC: n.MAC})
		case want > 0:
			want--
			claims = append(claims, record.Address{Addr: addr, Use: record.Warm})
		}
	}
	if len(claims) == 0 {
		return nil
	}
	err := a.c.Client.ClaimAddresses(ctx, m, claims...)
	if errors.Is(err, cluster.ErrTaken) { // another host was faster; the next sync tries others
		return nil
	}
	if err != nil {
		return err
	}
	err = a.recordWarm(n.ID, claims)
	a.markUnsure(n.ID)
	return err
}

// recordWarm records what was claimed. A request may have been granted one of them meanwhile, since etcd does not tell
// claims of one host apart; that one is left alone.
func (a *Agent) recordWarm(network string, claims []record.Address) error {
	var own []Own
	for _, c := range claims {
		own = append(own, Own{Network: network, Addr: c.Addr, Use: c.Use, MAC: c.MAC, Synced: true})
	}
	return a.c.Store.Update(func(tx store.Tx) error {
		_, err := putNew(tx, own)
		return err
	})
}

// wantWarm returns how many addresses of a subnet are kept warm: 2 %, but at least 1 and at most maxWarm, and none when
// the subnet is nearly full.
func (n *network) wantWarm(s record.Subnet) int {
	const few, full = 50, 5 // 1/50 of them; more than 4/5
	bits := s.Pool.Addr().BitLen() - s.Pool.Bits()
	if bits >= 16 {
		return maxWarm
	}
	all := 1 << bits
	used := 0
	n.addrs.Each(func(r record.Record) {
		if a, ok := r.(*record.Address); ok && s.Pool.Contains(a.Addr) {
			used++
		}
	})
	if used*full > all*(full-1) {
		return 0
	}
	return min(maxWarm, max(1, all/few))
}
