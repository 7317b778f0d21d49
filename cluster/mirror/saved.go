package mirror

import (
	"fmt"

	"netyard/cluster/record"
	"netyard/store"
)

// copies holds the records of mirrors, as etcd had them, by key.
var copies = store.Bucket[string]{Name: "cluster_records"}

// Load fills a Mirror with the saved records and passes them to apply. Records that are rejected now are left out.
func (m *Mirror) Load(st *store.Store) error {
	var changes []record.Change
	err := st.View(func(tx store.Tx) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return copies.Each(tx, m.prefix, func(key, value string) error {
			r, err := record.Decode(key, []byte(value))
			if err != nil {
				m.dirty[key] = true
				return nil //nolint:nilerr // the next Save deletes it
			}
			m.cached[key] = cached{Record: r, value: value}
			changes = append(changes, record.Change{Key: key, New: r})
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
func Discard(tx store.Tx, prefix string) error {
	for _, key := range copies.Keys(tx, prefix) {
		if err := copies.Delete(tx, key); err != nil {
			return err
		}
	}
	return nil
}
