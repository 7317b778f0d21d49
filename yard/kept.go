package yard

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netyard/ipam"
	"netyard/modes"
	"netyard/policy"
	"netyard/store"
)

// What an admin closed is known to nobody but these records, so they have a copy beside the file (store.Config.Kept),
// and are there again when the file is lost: the policies, the reservations, what was changed in place of networks and
// endpoints, and which endpoints are fenced.
var (
	// changes has Network.Changed, by network.
	changes = store.Bucket[map[string]string]{Name: "network-changes"}
	// keeps has of endpoints what was not said when they were made.
	keeps = store.Bucket[kept]{Name: "endpoint-changes"}
)

// A kept is what outlives the record of an endpoint.
type kept struct {
	// Options are all of the endpoint's, after some were changed in place; nil: none was.
	Options map[string]string `json:",omitzero"`
	Fenced  string            `json:",omitempty"`
}

// Kept are the buckets whose records have to outlive the file.
func Kept() []string {
	return append([]string{policies.Name, changes.Name, keeps.Name}, ipam.Kept()...)
}

// flagPoliciesLost: there may have been policies that are in no record and in no copy.
const flagPoliciesLost = "policies-lost"

// policiesLost says whether the policies on record may not be all that the admin applied.
func (y *Yard) policiesLost() (lost bool, err error) {
	err = y.c.Store.View(func(tx store.Tx) error {
		lost, err = flags.Get(tx, flagPoliciesLost)
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return err
	})
	return lost, err
}

// lostText says what is to be done about lost policies.
const lostText = "policies and reservations were lost: the database was, and its copy is missing or damaged; what the kernel had of policies " +
	"stays in force: apply all policies again, then say netyard gc"

// noteLoss finds out whether policies were lost with the records, and says so. On a host where netyard never ran
// nothing was.
func (y *Yard) noteLoss() error {
	s := y.c.Store
	if !s.Kept.MayBeLost {
		return nil
	}
	lost := s.Kept.Lost
	if !lost {
		own, err := y.copies()
		if err != nil {
			return err
		}
		policed, err := y.c.Kernel.Policed()
		if err != nil {
			return fmt.Errorf("look for policies in the kernel: %w", err)
		}
		lost = policed || len(own) > 0
	}
	err := y.update("loss recorded", func(tx store.Tx) error {
		if lost {
			if err := flags.Put(tx, flagPoliciesLost, true); err != nil {
				return err
			}
		}
		return store.LossNoted(tx)
	})
	if err != nil || !lost {
		return err
	}
	y.c.Log.Error("policies and reservations were lost; what the kernel had of policies stays in force until they are applied again " +
		"and netyard gc says that these are all")
	y.tell(Event{Type: PoliciesLost, Text: lostText})
	return nil
}

// policiesComplete ends the time in which the kernel knows more of policies than the records: the admin says that
// these are all.
func (y *Yard) policiesComplete() error {
	return y.c.Store.Update(func(tx store.Tx) error { return flags.Delete(tx, flagPoliciesLost) })
}

// recall makes records and kept records agree. The kept ones are right while records that were lost are made again, and
// after a newer copy was put into the file. Otherwise they differ only if an older netyard, which knows of no kept
// ones, changed the records.
func (y *Yard) recall() error {
	right := y.Rebuilding() || y.c.Store.Kept.Newer
	return y.update("kept records recalled", func(tx store.Tx) error {
		if err := y.c.IPAM.Recall(tx, right); err != nil {
			return err
		}
		ns, err := networks.List(tx, "")
		if err != nil {
			return err
		}
		for _, n := range ns {
			if err := recallNetwork(tx, n, right); err != nil {
				return err
			}
		}
		es, err := endpoints.List(tx, "")
		if err != nil {
			return err
		}
		for _, e := range es {
			if err := recallEndpoint(tx, e, right); err != nil {
				return err
			}
		}
		return store.Recalled(tx)
	})
}

// recallNetwork is recall for a network; right: what was kept of it is.
func recallNetwork(tx store.Tx, n modes.Network, right bool) error {
	changed, err := changes.Get(tx, n.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return keepChange(tx, n)
	case err != nil || maps.Equal(changed, n.Changed):
		return err
	case !right:
		return keepChange(tx, n)
	}
	n.Changed = changed
	return networks.Put(tx, n.ID, n)
}

func recallEndpoint(tx store.Tx, e modes.Endpoint, right bool) error {
	k, found, err := keptOf(tx, e.NetworkID, e.ID)
	switch {
	case err != nil:
		return err
	case !found && e.Fenced == "":
		return nil
	case !found:
		return keepEndpoint(tx, e, func(k *kept) { k.Fenced = e.Fenced })
	}
	was := e
	if e = k.of(e); was.Fenced == e.Fenced && maps.Equal(was.Options, e.Options) {
		return nil
	}
	if !right {
		return keepEndpoint(tx, was, func(k *kept) {
			if k.Fenced = was.Fenced; k.Options != nil {
				k.Options = was.Options
			}
		})
	}
	return putEndpoint(tx, e)
}

// of is an endpoint with what was kept of it.
func (k kept) of(e modes.Endpoint) modes.Endpoint {
	if k.Options != nil {
		e.Options = maps.Clone(k.Options)
	}
	e.Fenced = k.Fenced
	return e
}

// keepChange records what was changed of a network.
func keepChange(tx store.Tx, n modes.Network) error {
	if len(n.Changed) == 0 {
		return changes.Delete(tx, n.ID)
	}
	return changes.Put(tx, n.ID, n.Changed)
}

func keptOf(tx store.Tx, network, id string) (k kept, found bool, err error) {
	k, err = keeps.Get(tx, endpointKey(network, id))
	if errors.Is(err, store.ErrNotFound) {
		return k, false, nil
	}
	return k, err == nil, err
}

// keepEndpoint records something of an endpoint.
func keepEndpoint(tx store.Tx, e modes.Endpoint, set func(*kept)) error {
	k, _, err := keptOf(tx, e.NetworkID, e.ID)
	if err != nil {
		return err
	}
	set(&k)
	if k.Options == nil && k.Fenced == "" {
		return keeps.Delete(tx, endpointKey(e.NetworkID, e.ID))
	}
	return keeps.Put(tx, endpointKey(e.NetworkID, e.ID), k)
}

// forgetKept drops what was kept of networks, endpoints and pools that are no more: the records are complete.
func (y *Yard) forgetKept(c Census) error {
	return y.update("kept records forgotten", func(tx store.Tx) error {
		for _, id := range changes.Keys(tx, "") {
			if _, err := networks.Get(tx, id); errors.Is(err, store.ErrNotFound) {
				if err := changes.Delete(tx, id); err != nil {
					return err
				}
			}
		}
		for _, key := range keeps.Keys(tx, "") {
			if _, err := endpoints.Get(tx, key); errors.Is(err, store.ErrNotFound) {
				if err := keeps.Delete(tx, key); err != nil {
					return err
				}
			}
		}
		return y.c.IPAM.ForgetUnknown(tx, func(subnet netip.Prefix) bool { return c.Pools[subnet] })
	})
}

// settled are the addresses of which the records know all that policies say. While the policies may not be all there
// are, there are none.
func (y *Yard) settled(es []policy.Endpoint) (addrs []netip.Addr, err error) {
	lost, err := y.policiesLost()
	if lost || err != nil {
		return nil, err
	}
	for _, e := range es {
		addrs = slices.Concat(addrs, e.Addrs)
	}
	return addrs, nil
}

// loadFirewall puts the ruleset into the kernel. What it has and no record says stays there while it is not sure that
// the records are all.
func (y *Yard) loadFirewall(keepStrays bool) error {
	lost, err := y.policiesLost()
	switch {
	case err != nil:
		return err
	case keepStrays:
		return y.c.Kernel.AdoptFirewall()
	case lost:
		return y.c.Kernel.AdoptPolicy()
	}
	return y.c.Kernel.LoadFirewall()
}
