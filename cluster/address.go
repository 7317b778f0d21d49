package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netyard/cluster/etcd"
	"netyard/cluster/record"
)

// A TakenError names the addresses that another host has.
type TakenError struct{ Addrs []netip.Addr }

// Error lists the addresses.
func (e *TakenError) Error() string {
	var names []string
	for _, a := range e.Addrs {
		names = append(names, a.String())
	}
	return fmt.Sprintf("address %s %v", strings.Join(names, ", "), ErrTaken)
}

// Unwrap returns ErrTaken.
func (*TakenError) Unwrap() error { return ErrTaken }

// ClaimAddresses writes a host's claims to addresses of a network, all or none. An address must be free or belong to
// the host already, for any use. There is no other way to get an address, so no two hosts have the same. A host that is
// not on the network, or was removed from the cluster, gets none. At most MaxClaims at once.
func (c *Client) ClaimAddresses(ctx context.Context, m record.Member, want ...record.Address) error {
	if len(want) > MaxClaims {
		return fmt.Errorf("claim %d addresses: at most %d at once", len(want), MaxClaims)
	}
	// Forget deletes this record first: a removed host may not know yet, and must not claim what is being released.
	host := record.Host{ID: m.Host}.Key()
	keys := []string{m.Key(), host}
	for i := range want {
		want[i].Network, want[i].Host = m.Network, m.Host
		keys = append(keys, want[i].Key())
	}
	return c.Change(ctx, "claim addresses", keys, func(found etcd.Found) (d etcd.Decision, err error) {
		for _, k := range keys[:2] {
			if !found[k].There {
				return d, fmt.Errorf("%s %w", k, ErrNotFound)
			}
		}
		var taken []netip.Addr
		for i := range want {
			at := found[want[i].Key()]
			has, _ := at.Record.(*record.Address)
			switch {
			case at.There && (has == nil || has.Host != m.Host):
				taken = append(taken, want[i].Addr)
			case has == nil || !has.Equal(want[i]):
				d.Put = append(d.Put, &want[i])
			}
		}
		if len(taken) > 0 {
			return d, &TakenError{taken}
		}
		return d, nil
	})
}

// MaxClaims is how many addresses ClaimAddresses takes at once.
const MaxClaims = etcd.MaxOps - 2

// Release deletes the host's claims to these addresses; those that belong to another host by now are left alone.
func (c *Client) Release(ctx context.Context, m record.Member, addrs ...netip.Addr) error {
	for some := range slices.Chunk(addrs, etcd.MaxOps) {
		var keys []string
		for _, a := range some {
			keys = append(keys, record.Address{Network: m.Network, Addr: a}.Key())
		}
		err := c.Change(ctx, "release addresses", keys, func(found etcd.Found) (d etcd.Decision, err error) {
			for _, k := range keys {
				if has, ok := found[k].Record.(*record.Address); ok && has.Host == m.Host {
					d.Delete = append(d.Delete, k)
				}
			}
			return d, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
