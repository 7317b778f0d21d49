package source

import (
	"errors"
	"net/netip"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/lease"
)

// Keep makes sure that the addresses of an endpoint, which its engine has requested, are the endpoint's, and gives it
// the MAC that a DHCP server knows. It belongs to the transaction that records the endpoint.
func Keep(y *book.Book, tx store.Tx, n modes.Network, e modes.Endpoint) (modes.Endpoint, error) {
	e, err := lease.AssignLease(tx, n, e)
	if err != nil {
		return e, err
	}
	return e, Ensure(y, tx, n, e)
}

// Release releases or holds the addresses of an endpoint that no longer needs them. It belongs to the transaction that
// records that. Those of the cluster are released afterwards, by overlay.ReleaseOf.
func Release(y *book.Book, tx store.Tx, n modes.Network, e modes.Endpoint) error {
	if e.Attachment != "" {
		if err := book.DropAttachment(tx, e); err != nil {
			return err
		}
		if e.Container.Engine == book.Containerd && len(e.Addrs) > 0 && len(n.DHCP) == 0 {
			return book.PutHold(tx, book.Hold{
				NetworkID: n.ID, Attachment: e.Attachment, IfName: e.IfName,
				Addrs: e.Addrs, Container: e.Container, Since: y.Config.Now(),
			})
		}
	}
	if err := lease.ReleaseLeasesOf(y, tx, e); err != nil {
		return err
	}
	for _, a := range e.Addrs {
		if err := ReleaseAddress(y, tx, n, a.Addr(), e.Attachment != ""); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseAddress releases an address that no endpoint has. A static address of Docker's stays held for its stopped
// container, which is in Docker's census. forget releases it altogether, for engines without such a list.
func ReleaseAddress(y *book.Book, tx store.Tx, n modes.Network, a netip.Addr, forget bool) error {
	if taken, err := book.Claimed(tx, n.ID, a); err != nil || taken {
		return err
	}
	for _, s := range n.Subnets {
		if s.Space != book.Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.Config.IPAM.PoolOf(tx, s.Pool, n.ID)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := y.Config.IPAM.ReleaseAddress(tx, p.ID, a); err != nil {
			return err
		}
		l, err := y.Config.IPAM.LeaseAt(tx, p.ID, a)
		if err == nil && forget && l.State == ipam.StateHeld {
			err = y.Config.IPAM.Free(tx, p.ID, a)
		}
		if err != nil && !errors.Is(err, ipam.ErrNotFound) {
			return err
		}
	}
	return nil
}

// Ensure makes sure that an endpoint's addresses are leased, as far as they are from pools of netyard's own IPAM:
// reconciling may have released them as orphans.
func Ensure(y *book.Book, tx store.Tx, n modes.Network, e modes.Endpoint) error {
	for _, a := range e.Addrs {
		if err := ensure(y, tx, n, a.Addr(), e.Container.Name); err != nil {
			return err
		}
	}
	return nil
}

func ensure(y *book.Book, tx store.Tx, n modes.Network, a netip.Addr, name string) error {
	for _, s := range n.Subnets {
		if s.Space != book.Space || !s.Pool.Contains(a) {
			continue
		}
		p, err := y.Config.IPAM.PoolOf(tx, s.Pool, n.ID)
		if errors.Is(err, ipam.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if l, err := y.Config.IPAM.LeaseAt(tx, p.ID, a); err == nil && l.State == ipam.StateActive {
			return nil
		}
		_, err = y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a, Name: name})
		if errors.Is(err, ipam.ErrTaken) { // reserved for another name after the endpoint had got it
			_, err = y.Config.IPAM.RequestAddress(tx, ipam.AddressRequest{Pool: p.ID, Addr: a})
		}
		return err
	}
	return nil
}
