package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A TakenError says which addresses somebody else has.
type TakenError struct{ Addrs []netip.Addr }

// Error names them.
func (e *TakenError) Error() string {
	var names []string
	for _, a := range e.Addrs {
		names = append(names, a.String())
	}
	return fmt.Sprintf("address %s %v", strings.Join(names, ", "), ErrTaken)
}

// Unwrap makes it an ErrTaken.
func (*TakenError) Unwrap() error { return ErrTaken }

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// Hold makes a host's claims to addresses of a network what they are to be, all or none: those that are free, and those
// that it has already, whatever for. It is the only way to an address, so no two hosts have one. A host that is not on
// the network, or was taken out, gets none. At most MaxHold at once.
func (c *Client) Hold(ctx context.Context, m Member, want ...Address) error {
	if len(want) > MaxHold {
		return fmt.Errorf("claim %d addresses: at most %d at once", len(want), MaxHold)
	}
	host := Host{ID: m.Host}.Key() // the first that goes of a host that is taken out: it may not know yet, and put back what is being released
	keys := []string{m.Key(), host}
	for i := range want {
		want[i].Network, want[i].Host = m.Network, m.Host
		keys = append(keys, want[i].Key())
	}
	return c.change(ctx, "claim addresses", keys, func(found map[string]held) (d decision, err error) {
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

// MaxHold is how many addresses are claimed at once.
const MaxHold = maxOps - 2

// Equal says whether two claims say the same.
func (a Address) Equal(b Address) bool {
	return a.Key() == b.Key() && a.Host == b.Host && a.Use == b.Use && a.Endpoint == b.Endpoint && a.MAC == b.MAC && a.Name == b.Name &&
		slices.Equal(a.Aliases, b.Aliases)
}

// Release gives up those of the addresses that the host has; what is somebody else's by now is left alone.
func (c *Client) Release(ctx context.Context, m Member, addrs ...netip.Addr) error {
	for some := range slices.Chunk(addrs, maxOps) {
		var keys []string
		for _, a := range some {
			keys = append(keys, Address{Network: m.Network, Addr: a}.Key())
		}
		err := c.change(ctx, "release addresses", keys, func(found map[string]held) (d decision, err error) {
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
