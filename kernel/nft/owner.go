package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Where the kernel supports it (since 6.9), netyard's tables belong to its netlink socket: no other program can flush,
// change or delete them, and `nft flush ruleset` leaves them alone (NFT_TABLE_F_OWNER). When the socket is closed,
// however the daemon ended, the tables stay (NFT_TABLE_F_PERSIST), any program can change them, and the next daemon
// takes ownership of them. Both flags are needed: a table that only has an owner is deleted with the socket.
const (
	tableOwner   = 0x2
	tablePersist = 0x4
)

// closingTime is how long a closed socket may live on: a child that is being started has a copy until it runs its own
// program, and a daemon that was killed ends only when the system call that it is in returns.
const closingTime = 2 * time.Second

// takeOwnership makes netyard's socket the owner of a table, and makes the table if it is missing. ok is false if the
// kernel does not support it, and for a table that was made without an owner: such a table is replaced, which needs no
// ownership.
func (f *Firewall) takeOwnership(t *nftables.Table) (ok bool, err error) {
	if f.Shared {
		return false, nil
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(t.Name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner|tablePersist)},
	})
	if err != nil {
		return false, fmt.Errorf("encode table %s: %w", t.Name, err)
	}
	request := []netlink.Message{{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
			Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
		},
		Data: append([]byte{byte(t.Family), 0, 0, 0}, attrs...),
	}}
	// Not by google/nftables: it does not send a table's flags.
	act := "take ownership of table " + t.Name
	err = f.out.exchange(act, request)
	for wait := time.Now().Add(closingTime); errors.Is(err, unix.EPERM) && time.Now().Before(wait); {
		time.Sleep(time.Millisecond)
		err = f.out.exchange(act, request)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil
	case errors.Is(err, unix.EPERM):
		return false, fmt.Errorf("%s: another process owns it: %w", act, err)
	case err != nil:
		return false, fmt.Errorf("%s: %w", act, err)
	}
	return true, nil
}

// recreate queues the changes that leave a table empty, whatever it is now. The old content is deleted in the same
// transaction in which the new one is added.
func (f *Firewall) recreate(t *nftables.Table) error {
	own, err := f.takeOwnership(t)
	if err != nil {
		return err
	}
	if own {
		return f.empty(t)
	}
	if there, err := f.Has(t); err != nil {
		return err
	} else if there {
		f.tx.DelTable(t)
	}
	f.tx.AddTable(t)
	return nil
}

// Has reports whether a table exists.
func (f *Firewall) Has(t *nftables.Table) (there bool, err error) {
	err = f.Reader.Look(func(v View) error {
		all, err := v.ListTablesOfFamily(t.Family)
		there = slices.ContainsFunc(all, func(one *nftables.Table) bool { return one.Name == t.Name })
		return err
	})
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return there, nil
}

// empty queues the deletion of everything in a table. The table itself must stay, since a new one would have no owner.
func (f *Firewall) empty(t *nftables.Table) error {
	var chains []*nftables.Chain
	var sets []*nftables.Set
	err := f.Reader.Look(func(v View) (err error) {
		if chains, err = v.ListChainsOfTableFamily(t.Family); err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		if sets, err = v.GetSets(t); err != nil {
			return fmt.Errorf("list sets of table %s: %w", t.Name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.tx.FlushTable(t) // rules first, since they refer to chains and sets
	for _, c := range chains {
		if c.Table.Name == t.Name {
			f.tx.DelChain(c)
		}
	}
	for _, s := range sets {
		if !s.Anonymous { // the kernel deletes those with their rules
			f.tx.DelSet(s)
		}
	}
	return nil
}
