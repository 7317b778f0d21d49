package reconcile

import (
	"errors"

	"netyard/store"
	"netyard/yard"
)

// engineVersions has the version that each engine last told, by its name. It is a record because an engine that starts
// requests endpoints before it answers.
var engineVersions = store.Bucket[string]{Name: "engine-versions"}

// EngineVersion returns the version that an engine last told; empty: none.
func EngineVersion(y *yard.Yard, engine string) (version string, err error) {
	err = y.Config.Store.View(func(tx store.Tx) error {
		version, err = engineVersions.Get(tx, engine)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	return version, err
}

// RecordEngineVersion records the version that an engine tells.
func RecordEngineVersion(y *yard.Yard, engine, version string) error {
	if had, err := EngineVersion(y, engine); err != nil || had == version {
		return err
	}
	return y.Config.Store.Update(func(tx store.Tx) error { return engineVersions.Put(tx, engine, version) })
}
