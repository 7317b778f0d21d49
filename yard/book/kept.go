package book

import (
	"errors"
	"maps"

	"netyard/ipam"
	"netyard/modes"
	"netyard/policy"
	"netyard/store"
)

// What an admin closed is known to nobody but these records, so they have a copy beside the file
// (store.Config.KeptBuckets), and are there again when the file is lost: the policies, the reservations, what was
// changed in place of networks and endpoints, and which endpoints are fenced.
var (
	// Changes has Network.Changed, by network.
	Changes = store.Bucket[map[string]string]{Name: "network-changes"}
	// Keeps has of endpoints what was not said when they were made.
	Keeps = store.Bucket[Kept]{Name: "endpoint-changes"}
)

// A Kept is what outlives the record of an endpoint.
type Kept struct {
	// Options are all of the endpoint's, after some were changed in place; nil: none was.
	Options map[string]string `json:",omitzero"`
	Fenced  string            `json:",omitempty"`
}

// KeptBuckets are the buckets whose records have to outlive the file.
func KeptBuckets() []string {
	return append([]string{Policies.Name, Changes.Name, Keeps.Name}, ipam.Kept()...)
}

// FlagPoliciesLost is set when there may have been policies that are in no record and in no copy.
const FlagPoliciesLost = "policies-lost"

// PoliciesLost says whether the policies on record may not be all that the admin applied.
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

// LostText says what is to be done about lost policies.
const LostText = "policies and reservations were lost: the database was, and its copy is missing or damaged; " +
	"what the kernel had of policies stays in force: apply all policies again, then say netyard gc"

// PoliciesComplete ends the time in which the kernel knows more of policies than the records: the admin says that
// these are all.
func (y *Book) PoliciesComplete() error {
	return y.Config.Store.Update(func(tx store.Tx) error { return Flags.Delete(tx, FlagPoliciesLost) })
}

// RecallNetwork takes over what was kept of a network.
// RecallNetwork is recall for a network; right: what was kept of it is.
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

// RecallEndpoint takes over what was kept of an endpoint.
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
			if k.Fenced = was.Fenced; k.Options != nil {
				k.Options = was.Options
			}
		})
	}
	return PutEndpoint(tx, e)
}

// Of is an endpoint with what was kept of it.
func (k Kept) Of(e modes.Endpoint) modes.Endpoint {
	if k.Options != nil {
		e.Options = maps.Clone(k.Options)
	}
	e.Fenced = k.Fenced
	return e
}

// KeepChange records what was changed of a network.
func KeepChange(tx store.Tx, n modes.Network) error {
	if len(n.Changed) == 0 {
		return Changes.Delete(tx, n.ID)
	}
	return Changes.Put(tx, n.ID, n.Changed)
}

// KeptOf is what was kept of an endpoint.
func KeptOf(tx store.Tx, network, id string) (k Kept, found bool, err error) {
	k, err = Keeps.Get(tx, EndpointKey(network, id))
	if errors.Is(err, store.ErrNotFound) {
		return k, false, nil
	}
	return k, err == nil, err
}

// KeepEndpoint records something of an endpoint.
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

// Policies are the policies, by name.
var Policies = store.Bucket[policy.Policy]{Name: "policies"}

// Flags are things to remember that are of no network.
var Flags = store.Bucket[bool]{Name: "flags"}
