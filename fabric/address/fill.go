package address

import (
	"context"
	"errors"

	"netyard/cluster"
	"netyard/cluster/record"
	"netyard/store"
)

// MaxWarm is the largest number of spare addresses of a subnet.
const MaxWarm = 8

// Fill claims the addresses that are missing: the host's own one in each subnet, for a bridge with this MAC, and
// spare addresses.
func (n *Network) Fill(ctx context.Context, mac record.MAC) error {
	own, err := n.r.List(n.ID)
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if err := n.fill(ctx, s, mac, own); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) fill(ctx context.Context, s record.Subnet, mac record.MAC, own []Own) error {
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
			claims = append(claims, record.Address{Addr: addr, Use: record.OfHost, MAC: mac})
		case want > 0:
			want--
			claims = append(claims, record.Address{Addr: addr, Use: record.Warm})
		}
	}
	if len(claims) == 0 {
		return nil
	}
	err := n.r.c.Etcd.ClaimAddresses(ctx, n.member(), claims...)
	if errors.Is(err, cluster.ErrTaken) { // another host was faster; the next Fill tries others
		return nil
	}
	if err != nil {
		return err
	}
	err = n.recordWarm(claims)
	n.c.HostChanged()
	return err
}

// recordWarm records what was claimed. A request may have been granted one of them meanwhile, since etcd does not tell
// claims of one host apart; that one is left alone. Nothing is recorded for a network that was unbound meanwhile: the
// claims end when it is left in etcd.
func (n *Network) recordWarm(claims []record.Address) error {
	var own []Own
	for _, c := range claims {
		own = append(own, Own{Network: n.ID, Addr: c.Addr, Use: c.Use, MAC: c.MAC, Synced: true})
	}
	return n.r.c.Store.Update(func(tx store.Tx) error {
		_, err := n.putNew(tx, own)
		return err
	})
}

// wantWarm returns how many spare addresses of a subnet to keep: 2 %, but at least 1 and at most MaxWarm, and none
// when the subnet is nearly full.
func (n *Network) wantWarm(s record.Subnet) int {
	const few, full = 50, 5 // 1/50 of them; more than 4/5
	bits := s.Pool.Addr().BitLen() - s.Pool.Bits()
	if bits >= 16 {
		return MaxWarm
	}
	all := 1 << bits
	used := 0
	n.c.Claims.Each(func(r record.Record) {
		if a, ok := r.(*record.Address); ok && s.Pool.Contains(a.Addr) {
			used++
		}
	})
	if used*full > all*(full-1) {
		return 0
	}
	return min(MaxWarm, max(1, all/few))
}
