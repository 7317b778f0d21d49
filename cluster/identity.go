package cluster

import (
	"errors"

	"netyard/cluster/record"
	"netyard/store"
)

// identity holds the host's Identity.
var identity = store.Bucket[Identity]{Name: "cluster"}

// CopiedBuckets returns the buckets whose records must survive the loss of the database: a host that was removed from
// the cluster must not be admitted again under a new ID.
func CopiedBuckets() []string { return []string{identity.Name} }

// An Identity is a host's ID and cluster. It is made once, and stays when the host's name or address changes.
type Identity struct {
	Host string
	// Meta is the cluster that the host belongs to; Meta.Cluster is empty until it has entered one.
	Meta record.Meta
}

const identityKey = "identity"

// LoadIdentity returns the host's Identity; a host without one gets a new ID.
func LoadIdentity(st *store.Store) (i Identity, err error) {
	err = st.Update(func(tx store.Tx) error {
		i, err = identity.Get(tx, identityKey)
		if errors.Is(err, store.ErrNotFound) {
			i = Identity{Host: record.NewID()}
			return identity.Put(tx, identityKey, i)
		}
		return err
	})
	return i, err
}

// SaveIdentity records the host's Identity.
func SaveIdentity(st *store.Store, i Identity) error {
	return st.Update(func(tx store.Tx) error { return identity.Put(tx, identityKey, i) })
}
