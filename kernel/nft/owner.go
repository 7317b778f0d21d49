package nft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netyard/kernel/exchange"
	"netyard/kernel/rule"
)

// closingTime is how long a closed socket may live on: a child that is being started has a copy until it runs its own
// program, and a daemon that was killed ends only when the system call that it is in returns.
const closingTime = 2 * time.Second

// canOwn reports whether the kernel supports owners. It makes a table for that, and deletes it.
func (f *Firewall) canOwn() (bool, error) {
	probe := &nftables.Table{Family: nftables.TableFamilyINet, Name: rule.TableName + "-probe"}
	own, err := f.takeOwnership(probe)
	if err != nil || !own {
		return false, err
	}
	tx := exchange.NewTransaction()
	tx.DelTable(probe)
	msgs, err := tx.All()
	return true, errors.Join(err, f.out.Send("delete table "+probe.Name, msgs))
}

// takeOwnership makes netyard's socket the owner of a table, and makes the table if it is missing. ok is false if the
// kernel does not support it, and for a table that was made without an owner: such a table is replaced, which needs no
// ownership.
func (f *Firewall) takeOwnership(t *nftables.Table) (ok bool, err error) {
	if f.Shared {
		return false, nil
	}
	message, err := rule.OwnedTable(t)
	if err != nil {
		return false, err
	}
	request := []netlink.Message{message}
	act := "take ownership of table " + t.Name
	err = f.out.Send(act, request)
	for wait := time.Now().Add(closingTime); errors.Is(err, unix.EPERM) && time.Now().Before(wait); {
		time.Sleep(time.Millisecond)
		err = f.out.Send(act, request)
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
	there, err := f.Has(t)
	if err != nil {
		return err
	}
	if there {
		f.tx.DelTable(t)
		if own, err = f.canOwn(); err != nil {
			return err
		}
	}
	if !own {
		f.tx.AddTable(t)
		return nil
	}
	message, err := rule.OwnedTable(t)
	return errors.Join(err, f.tx.Add(message))
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
