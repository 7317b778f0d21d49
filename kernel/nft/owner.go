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

// Where the kernel has it (since 6.9), netyard's tables belong to its netlink socket: nobody else can flush, change or
// delete them, and `nft flush ruleset` passes them by (NFT_TABLE_F_OWNER). When the socket goes, however the daemon
// ended, they stay as they are (NFT_TABLE_F_PERSIST), anybody can change them, and the next daemon claims them. Either
// flag without the other is no use: a table that only has an owner goes with it.
const (
	tableOwner   = 0x2
	tablePersist = 0x4
)

// forks is how long a socket that was closed may live on: a child that is just being made has a copy until it runs its
// own program, and a daemon that was killed ends with the system call that it is in.
const forks = 2 * time.Second

// claim makes a table netyard's own, made now if it is not there. It is not ok where the kernel cannot do that, and for
// a table that was made without: that one is replaced, which needs no claim.
func (f *Firewall) claim(t *nftables.Table) (ok bool, err error) {
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
	claim := netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
			Flags: netlink.Request | netlink.Acknowledge | netlink.Create,
		},
		Data: append([]byte{byte(t.Family), 0, 0, 0}, attrs...),
	}
	// Not by google/nftables: it does not pass a table's flags on.
	err = f.out.exchange("claim table "+t.Name, []netlink.Message{claim})
	for wait := time.Now().Add(forks); errors.Is(err, unix.EPERM) && time.Now().Before(wait); {
		time.Sleep(time.Millisecond)
		err = f.out.exchange("claim table "+t.Name, []netlink.Message{claim})
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil
	case errors.Is(err, unix.EPERM):
		return false, fmt.Errorf("claim table %s: another process has it: %w", t.Name, err)
	case err != nil:
		return false, fmt.Errorf("claim table %s: %w", t.Name, err)
	}
	return true, nil
}

// renew queues that a table is empty, whatever it was: what it had goes in the same transaction in which the new comes.
func (f *Firewall) renew(t *nftables.Table) error {
	own, err := f.claim(t)
	if err != nil {
		return err
	}
	if own {
		return f.empty(t)
	}
	if there, err := f.Has(t); err != nil {
		return err
	} else if there {
		f.Tx.DelTable(t)
	}
	f.Tx.AddTable(t)
	return nil
}

// Has says whether a table is there.
func (f *Firewall) Has(t *nftables.Table) (there bool, err error) {
	err = f.In.Look(func(v View) error {
		all, err := v.ListTablesOfFamily(t.Family)
		there = slices.ContainsFunc(all, func(one *nftables.Table) bool { return one.Name == t.Name })
		return err
	})
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return there, nil
}

// empty queues that everything in a table is deleted: the table itself must stay, since one made anew would have no
// owner.
func (f *Firewall) empty(t *nftables.Table) error {
	var chains []*nftables.Chain
	var sets []*nftables.Set
	err := f.In.Look(func(v View) (err error) {
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
	f.Tx.FlushTable(t) // what refers to others first
	for _, c := range chains {
		if c.Table.Name == t.Name {
			f.Tx.DelChain(c)
		}
	}
	for _, s := range sets {
		if !s.Anonymous { // those go with their rules
			f.Tx.DelSet(s)
		}
	}
	return nil
}
