package book

import (
	"errors"
	"maps"

	"netyard/ipam"
	"netyard/modes"
	"netyard/policy"
	"netyard/store"
)

// Some records cannot be rebuilt from kernel and engines, so they have a copy beside the database
// (store.Config.KeptBuckets), from which they are restored if it is lost: the policies, the reservations, the options
// of networks and endpoints that were changed in place, and which endpoints are fenced.
var (
	// Changes has Network.Changed by network.
	Changes = store.Bucket[map[string]string]{Name: "network-changes"}
	// Keeps has what was changed of endpoints after they were made.
	Keeps = store.Bucket[Kept]{Name: "endpoint-changes"}
)

// A Kept is the part of an endpoint's record that is kept if the record is lost.
type Kept struct {
	// Options are all options of the endpoint, if some were changed in place; otherwise nil.
	Options map[string]string `json:",omitzero"`
	Fenced  string            `json:",omitempty"`
}

// KeptBuckets returns the names of the buckets that are copied, so that their records outlive the database.
func KeptBuckets() []string {
	return append([]string{Policies.Name, Changes.Name, Keeps.Name}, ipam.CopiedBuckets()...)
}

// FlagPoliciesLost is set if policies may have been lost, with their copy.
const FlagPoliciesLost = "policies-lost"

// PoliciesLost reports whether policies that the admin applied may be missing from the records.
func (y *Book) PoliciesLost() (lost bool, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		lost, err = Flags.Get(tx, FlagPoliciesLost)
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return err
	})
	return lost, err
}

// LostText says what happened to lost policies, and the remedy.
const LostText = "policies and reservations were lost with the database, and its copy is missing or damaged; " +
	"the policies in the kernel stay in force: apply all policies again, then run netyard gc"

// PoliciesComplete clears the flag that policies are missing from the records: the admin has applied all again.
func (y *Book) PoliciesComplete() error {
	return y.Config.Store.Update(func(tx store.Tx) error { return Flags.Delete(tx, FlagPoliciesLost) })
}

// RecallNetwork makes the record of a network and what was kept of it agree. If they differ, the kept options win if
// right is true, otherwise the record.
func RecallNetwork(tx store.Tx, n modes.Network, right bool) error {
	changed, err := Changes.Get(tx, n.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return KeepChange(tx, n)
	case err != nil || maps.Equal(changed, n.Changed):
		return err
	case !right:
		return KeepChange(tx, n)
	}
	n.Changed = changed
	return Networks.Put(tx, n.ID, n)
}

// RecallEndpoint makes the record of an endpoint and what was kept of it agree, as RecallNetwork does.
func RecallEndpoint(tx store.Tx, e modes.Endpoint, right bool) error {
	k, found, err := KeptOf(tx, e.NetworkID, e.ID)
	switch {
	case err != nil:
		return err
	case !found && e.Fenced == "":
		return nil
	case !found:
		return KeepEndpoint(tx, e, func(k *Kept) { k.Fenced = e.Fenced })
	}
	was := e
	if e = k.Of(e); was.Fenced == e.Fenced && maps.Equal(was.Options, e.Options) {
		return nil
	}
	if !right {
		return KeepEndpoint(tx, was, func(k *Kept) {
			k.Fenced = was.Fenced
			if k.Options != nil {
				k.Options = was.Options
			}
		})
	}
	return PutEndpoint(tx, e)
}

// Of returns an endpoint with what was kept of it.
func (k Kept) Of(e modes.Endpoint) modes.Endpoint {
	if k.Options != nil {
		e.Options = maps.Clone(k.Options)
	}
	e.Fenced = k.Fenced
	return e
}

// KeepChange keeps the changed options of a network.
func KeepChange(tx store.Tx, n modes.Network) error {
	if len(n.Changed) == 0 {
		return Changes.Delete(tx, n.ID)
	}
	return Changes.Put(tx, n.ID, n.Changed)
}

// KeptOf returns what was kept of an endpoint.
func KeptOf(tx store.Tx, network, id string) (k Kept, found bool, err error) {
	k, err = Keeps.Get(tx, EndpointKey(network, id))
	if errors.Is(err, store.ErrNotFound) {
		return k, false, nil
	}
	return k, err == nil, err
}

// KeepEndpoint changes what is kept of an endpoint.
func KeepEndpoint(tx store.Tx, e modes.Endpoint, set func(*Kept)) error {
	k, _, err := KeptOf(tx, e.NetworkID, e.ID)
	if err != nil {
		return err
	}
	set(&k)
	if k.Options == nil && k.Fenced == "" {
		return Keeps.Delete(tx, EndpointKey(e.NetworkID, e.ID))
	}
	return Keeps.Put(tx, EndpointKey(e.NetworkID, e.ID), k)
}

// Policies has the policies by name.
var Policies = store.Bucket[policy.Policy]{Name: "policies"}

// Flags has facts that belong to no network.
var Flags = store.Bucket[bool]{Name: "flags"}
