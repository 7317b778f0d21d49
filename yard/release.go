package yard

import (
	"errors"
	"net/netip"

	"netyard/ipam"
	"netyard/modes"
	"netyard/store"
	"netyard/yard/book"
	"netyard/yard/lease"
)

// ReleaseLeases releases or holds the addresses of an endpoint that no longer needs them.
func (y *Yard) ReleaseLeases(tx store.Tx, n modes.Network, e modes.Endpoint) error {
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
	if err := lease.ReleaseLeasesOf(y.Book, tx, e); err != nil {
		return err
	}
	for _, a := range e.Addrs {
		if err := y.ReleaseLease(tx, n, a.Addr(), e.Attachment != ""); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseLease releases an address that no endpoint has. A static address of Docker's stays held for its stopped
// container, which is in Docker's census. forget releases it altogether, for engines without such a list.
func (y *Yard) ReleaseLease(tx store.Tx, n modes.Network, a netip.Addr, forget bool) error {
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
