package reconcile

import (
	"errors"
	"fmt"
	"net/netip"

	"netyard/store"
	"netyard/yard"
	"netyard/yard/book"
	"netyard/yard/event"
)

// noteLoss finds out whether policies were lost with the records, and records and reports the loss. On a host where
// netyard never ran, nothing was lost.
func noteLoss(y *yard.Yard) error {
	s := y.Config.Store
	if !s.Copy.MayBeLost {
		return nil
	}
	lost := s.Copy.Lost
	if !lost {
		own, err := copies(y)
		if err != nil {
			return err
		}
		policed, err := y.Config.Kernel.HasPolicy()
		if err != nil {
			return fmt.Errorf("find policies in the kernel: %w", err)
		}
		lost = policed || len(own) > 0
	}
	err := y.Update("loss recorded", func(tx store.Tx) error {
		if lost {
			if err := book.Flags.Put(tx, book.FlagPoliciesLost, true); err != nil {
				return err
			}
		}
		return store.LossNoted(tx)
	})
	if err != nil || !lost {
		return err
	}
	y.Config.Log.Error("policies and reservations lost; apply all policies again, then run netyard gc; " +
		"until then the policies in the kernel stay in force")
	y.Tell(event.Event{Type: event.PoliciesLost, Text: book.LostText})
	return nil
}

// syncKept makes records and kept records agree. The kept ones win while lost records are being rebuilt, and when their
// file has been replaced by a newer copy. Otherwise the records win: they differ only if an older netyard, which has no
// kept records, changed them.
func syncKept(y *yard.Yard) error {
	keptWins := Rebuilding(y) || y.Config.Store.Copy.Newer
	return y.Update("kept records recalled", func(tx store.Tx) error {
		if err := y.Config.IPAM.RestoreReservations(tx, keptWins); err != nil {
			return err
		}
		ns, err := book.Networks.List(tx, "")
		if err != nil {
			return err
		}
		for _, n := range ns {
			if err := book.RecallNetwork(tx, n, keptWins); err != nil {
				return err
			}
		}
		es, err := book.Endpoints.List(tx, "")
		if err != nil {
			return err
		}
		for _, e := range es {
			if err := book.RecallEndpoint(tx, e, keptWins); err != nil {
				return err
			}
		}
		return store.Recalled(tx)
	})
}

// forgetKept removes the kept records of networks, endpoints and pools that no longer exist. The records must be
// complete.
func forgetKept(y *yard.Yard, c Census) error {
	return y.Update("kept records forgotten", func(tx store.Tx) error {
		for _, id := range book.Changes.Keys(tx, "") {
			if _, err := book.Networks.Get(tx, id); errors.Is(err, store.ErrNotFound) {
				if err := book.Changes.Delete(tx, id); err != nil {
					return err
				}
			}
		}
		for _, key := range book.Keeps.Keys(tx, "") {
			if _, err := book.Endpoints.Get(tx, key); errors.Is(err, store.ErrNotFound) {
				if err := book.Keeps.Delete(tx, key); err != nil {
					return err
				}
			}
		}
		return y.Config.IPAM.RemoveUnknownReservations(tx, func(subnet netip.Prefix) bool { return c.Pools[subnet] })
	})
}

// loadFirewall loads the ruleset into the kernel. While the records may be incomplete, elements in the kernel without a
// record stay there.
func loadFirewall(y *yard.Yard, keepStrays bool) error {
	lost, err := y.PoliciesLost()
	switch {
	case err != nil:
		return err
	case keepStrays:
		return y.Config.Kernel.AdoptFirewall()
	case lost:
		return y.Config.Kernel.AdoptPolicy()
	}
	return y.Config.Kernel.LoadFirewall()
}
