package book

import (
	"errors"
	"slices"
	"strings"

	"netyard/modes"
	"netyard/store"
	"netyard/yard/index"
)

// Neighbours returns the other endpoints in the sandbox of an endpoint, in the order of their keys.
func Neighbours(tx store.Tx, e modes.Endpoint) (others []modes.Endpoint, err error) {
	if e.Sandbox == "" {
		return nil, nil
	}
	for _, key := range index.In(tx, e.Sandbox) {
		if strings.HasSuffix(key, "/"+e.ID) { // whoever asks has read it
			continue
		}
		o, err := Endpoints.Get(tx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if o.Sandbox == e.Sandbox && o.Phase != modes.Deleting {
			others = append(others, o)
		}
	}
	return others, nil
}

// IndexEndpoints records by hardware address and by sandbox the endpoints that an older netyard did not record so.
func (y *Book) IndexEndpoints() error {
	missing, err := y.EndpointsOf("")
	if err != nil {
		return err
	}
	err = y.Config.Store.View(func(tx store.Tx) error {
		missing = slices.DeleteFunc(missing, func(e modes.Endpoint) bool { return index.Complete(tx, e) })
		return nil
	})
	if err != nil || len(missing) == 0 {
		return err
	}
	return y.Update("endpoints indexed", func(tx store.Tx) error {
		for _, e := range missing {
			if err := index.Replace(tx, modes.Endpoint{}, e); err != nil {
				return err
			}
		}
		return nil
	})
}
