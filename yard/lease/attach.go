package lease

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/live"
)

// Source is where an attachment gets its addresses on a network with DHCP pools: the LAN's DHCP server.
type Source struct {
	Check   *live.Check
	Request book.AttachRequest

	got []netip.Prefix
}

// Acquire gets a lease for each DHCP pool of the network.
func (s *Source) Acquire(ctx context.Context) error {
	r := s.Request
	name := cmp.Or(r.Container.FullName(), r.Container.Name)
	for _, pool := range r.Network.DHCP {
		q := Request{
			AddressRequest: ipam.AddressRequest{Pool: pool, Name: name, MAC: r.MAC},
			Attachment:     r.Attachment, IfName: r.IfName,
		}
		if at := slices.IndexFunc(r.Addrs, netip.Addr.Is4); at >= 0 {
			q.Addr = r.Addrs[at]
		}
		a, err := RequestLease(ctx, s.Check, q)
		if err != nil {
			return err
		}
		s.got = append(s.got, a)
	}
	return nil
}

// Keep gives the leases to the endpoint, and the MAC that the server knows.
func (s *Source) Keep(tx store.Tx, _ []netip.Addr, e *modes.Endpoint) (err error) {
	e.Addrs = append(e.Addrs, s.got...)
	*e, err = AssignLease(tx, s.Request.Network, *e)
	return err
}

// Release releases the leases if no endpoint got them.
func (s *Source) Release(recorded bool) error {
	if recorded || len(s.got) == 0 {
		return nil
	}
	y := s.Check.Book
	return y.Update("lease not taken", func(tx store.Tx) error {
		return eachLease(tx, s.Request.Network.ID, func(l DHCPLease) error {
			if l.Endpoint != "" || !slices.Contains(s.got, l.Lease.Addr) {
				return nil
			}
			return markReleasing(y, tx, l)
		})
	})
}

// TakeDHCP makes the DHCP pool of a network that belongs to no engine, and returns the pool's ID.
func TakeDHCP(ctx context.Context, y *book.Book, r book.NetworkRequest) ([]string, error) {
	if r.DHCP == nil {
		return nil, nil
	}
	p, err := RequestDHCPPool(ctx, y, *r.DHCP)
	return []string{p.ID}, err
}

// ReleaseDHCPPools releases the pools of a network that could not be made.
func ReleaseDHCPPools(y *book.Book, pools []string) (err error) {
	for _, id := range pools {
		err = errors.Join(err, ReleaseDHCPPool(y, id))
	}
	return err
}
