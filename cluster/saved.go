package cluster

import (
	"errors"
	"fmt"

	"netyard/store"
)

// These buckets hold what a host saves of its cluster, so that a host that starts without etcd still has its peers.
var (
	// identity holds the host's Identity.
	identity = store.Bucket[Identity]{Name: "cluster"}
	// copies holds the records of mirrors, as etcd had them, by key.
	copies = store.Bucket[string]{Name: "cluster_records"}
)

// Kept returns the buckets whose records must survive the loss of the database: a host that was removed from the
// cluster must not be admitted again under a new ID.
func Kept() []string { return []string{identity.Name} }

// An Identity is a host's ID and cluster. It is made once, and stays when the host's name or address changes.
type Identity struct {
	Host string
	// Meta is the cluster that the host belongs to; Meta.Cluster is empty until it has entered one.
	Meta Meta
}

const identityKey = "identity"

// LoadIdentity returns the host's Identity; a host without one gets a new ID.
func LoadIdentity(st *store.Store) (i Identity, err error) {
	err = st.Update(func(tx store.Tx) error {
		i, err = identity.Get(tx, identityKey)
		if errors.Is(err, store.ErrNotFound) {
			i = Identity{Host: NewID()}
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

// Load fills a Mirror with the saved records and passes them to apply. Records that are rejected now are left out.
func (m *Mirror) Load(st *store.Store) error {
	var changes []Change
	err := st.View(func(tx store.Tx) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return copies.Each(tx, m.prefix, func(key, value string) error {
			r, err := Decode(key, []byte(value))
			if err != nil {
				m.dirty[key] = true
				return nil //nolint:nilerr // the next Save deletes it
			}
			m.cached[key] = cached{Record: r, value: value}
			changes = append(changes, Change{Key: key, New: r})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("load records of the cluster: %w", err)
	}
	m.notify(changes)
	return nil
}

// Save writes the records that changed since the last Save.
func (m *Mirror) Save(st *store.Store) error {
	m.mu.Lock()
	dirty := m.dirty
	m.dirty = map[string]bool{}
	values := make(map[string]string, len(dirty))
	for key := range dirty {
		values[key] = m.cached[key].value
	}
	m.mu.Unlock()
	if len(values) == 0 {
		return nil
	}
	err := st.Update(func(tx store.Tx) error {
		for key, value := range values {
			write := func() error { return copies.Put(tx, key, value) }
			if value == "" {
				write = func() error { return copies.Delete(tx, key) }
			}
			if err := write(); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range dirty {
		m.dirty[key] = true
	}
	return fmt.Errorf("save records of the cluster: %w", err)
}

// Discard deletes the saved records below a prefix that this host no longer follows.
func Discard(st *store.Store, prefix string) error {
	return st.Update(func(tx store.Tx) error {
		for _, key := range copies.Keys(tx, prefix) {
			if err := copies.Delete(tx, key); err != nil {
				return err
			}
		}
		return nil
	})
}
