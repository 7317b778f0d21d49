package cluster

import (
	"errors"
	"fmt"

	"netyard/store"
)

// What a host remembers of its cluster: a host that starts without etcd still has its peers.
var (
	// identity has who this host is, and where it belongs.
	identity = store.Bucket[Identity]{Name: "cluster"}
	// copies has the records of mirrors, as etcd had them, by their keys.
	copies = store.Bucket[string]{Name: "cluster_records"}
)

// Kept are the buckets whose records have to outlive the file: a host that was taken out of the cluster is not to be
// let in as another one.
func Kept() []string { return []string{identity.Name} }

// An Identity is who a host is. It is made once, and stays when the host's name or address changes.
type Identity struct {
	Host string
	// Meta is the cluster it belongs to; its Cluster is empty until it entered one.
	Meta Meta
}

const identityKey = "identity"

// Recall is who this host is; a host that has no id gets one.
func Recall(st *store.Store) (i Identity, err error) {
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

// Remember keeps who this host is.
func Remember(st *store.Store, i Identity) error {
	return st.Update(func(tx store.Tx) error { return identity.Put(tx, identityKey, i) })
}

// Load fills a Mirror with what was saved, and tells of it. What cannot be let in any more is left out.
func (m *Mirror) Load(st *store.Store) error {
	var changes []Change
	err := st.View(func(tx store.Tx) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return copies.Each(tx, m.prefix, func(key, value string) error {
			r, err := Decode(key, []byte(value))
			if err != nil {
				m.dirty[key] = true
				return nil //nolint:nilerr // it is taken out by the next Save
			}
			m.kept[key] = kept{Record: r, value: value}
			changes = append(changes, Change{Key: key, New: r})
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("load records of the cluster: %w", err)
	}
	m.tell(changes)
	return nil
}

// Save writes what changed since the last time.
func (m *Mirror) Save(st *store.Store) error {
	m.mu.Lock()
	dirty := m.dirty
	m.dirty = map[string]bool{}
	values := make(map[string]string, len(dirty))
	for key := range dirty {
		values[key] = m.kept[key].value
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

// Discard forgets what was saved below a prefix: this host does not follow it any more.
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
