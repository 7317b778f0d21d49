package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
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

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// ClaimAddresses writes a host's claims to addresses of a network, all or none. An address must be free or belong to
// the host already, for any use. There is no other way to get an address, so no two hosts have the same. A host that is
// not on the network, or was removed from the cluster, gets none. At most MaxClaims at once.
func (c *Client) ClaimAddresses(ctx context.Context, m Member, want ...Address) error {
	if len(want) > MaxClaims {
		return fmt.Errorf("claim %d addresses: at most %d at once", len(want), MaxClaims)
	}
	// Forget deletes this record first: a removed host may not know yet, and must not claim what is being released.
	host := Host{ID: m.Host}.Key()
	keys := []string{m.Key(), host}
	for i := range want {
		want[i].Network, want[i].Host = m.Network, m.Host
		keys = append(keys, want[i].Key())
	}
	return c.change(ctx, "claim addresses", keys, func(found map[string]entry) (d decision, err error) {
		for _, k := range keys[:2] {
			if !found[k].there {
				return d, fmt.Errorf("%s %w", k, ErrNotFound)
			}
		}
		var taken []netip.Addr
		for i := range want {
			at := found[want[i].Key()]
			has, _ := at.Record.(*Address)
			switch {
			case at.there && (has == nil || has.Host != m.Host):
				taken = append(taken, want[i].Addr)
			case has == nil || !has.Equal(want[i]):
				d.put = append(d.put, &want[i])
			}
		}
		if len(taken) > 0 {
			return d, &TakenError{taken}
		}
		return d, nil
	})
}

// MaxClaims is how many addresses ClaimAddresses takes at once.
const MaxClaims = maxOps - 2

// Equal says whether two claims are the same.
func (a Address) Equal(b Address) bool {
	return a.Key() == b.Key() && a.Host == b.Host && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC &&
		a.Name == b.Name && slices.Equal(a.Aliases, b.Aliases)
}

// Release deletes the host's claims to these addresses; those that belong to another host by now are left alone.
func (c *Client) Release(ctx context.Context, m Member, addrs ...netip.Addr) error {
	for some := range slices.Chunk(addrs, maxOps) {
		var keys []string
		for _, a := range some {
			keys = append(keys, Address{Network: m.Network, Addr: a}.Key())
		}
		err := c.change(ctx, "release addresses", keys, func(found map[string]entry) (d decision, err error) {
			for _, k := range keys {
				if has, ok := found[k].Record.(*Address); ok && has.Host == m.Host {
					d.delete = append(d.delete, k)
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
