package book

import (
	"errors"
	"slices"
	"strings"

	"netyard/modes"
	"netyard/store"
)

// sandboxes has the endpoints in each sandbox, so that a request finds those of one container without reading all.
var sandboxes = store.Bucket[Holder]{Name: "sandboxes"}

// sandboxKey returns the key of an endpoint in a sandbox; of no endpoint: the prefix of all.
func sandboxKey(sandbox, key string) string { return sandbox + "\x00" + key }

// sandboxOf returns the key of an endpoint in its sandbox; empty if it is in none.
func sandboxOf(e modes.Endpoint) string {
	if e.Sandbox == "" || e.Phase == modes.Deleting {
		return ""
	}
	return sandboxKey(e.Sandbox, EndpointKey(e.NetworkID, e.ID))
}

// setSandbox records the sandbox of an endpoint in place of its former one.
func setSandbox(tx store.Tx, was, is modes.Endpoint) error {
	old, key := sandboxOf(was), sandboxOf(is)
	if old == key {
		return nil
	}
	if old != "" {
		if err := sandboxes.Delete(tx, old); err != nil {
			return err
		}
	}
	if key == "" {
		return nil
	}
	return sandboxes.Put(tx, key, Holder{is.NetworkID, is.ID})
}

// Neighbours returns the other endpoints in the sandbox of an endpoint, in the order of their keys.
func Neighbours(tx store.Tx, e modes.Endpoint) (others []modes.Endpoint, err error) {
	if e.Sandbox == "" {
		return nil, nil
	}
	for _, key := range sandboxes.Keys(tx, sandboxKey(e.Sandbox, "")) {
		if strings.HasSuffix(key, "/"+e.ID) { // whoever asks has read it
			continue
		}
		o, err := Endpoints.Get(tx, strings.TrimPrefix(key, sandboxKey(e.Sandbox, "")))
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
		missing = slices.DeleteFunc(missing, func(e modes.Endpoint) bool {
			_, errMAC := MACs.Get(tx, MACKey(e.NetworkID, e.MAC))
			_, errSandbox := sandboxes.Get(tx, sandboxOf(e))
			return (errMAC == nil || e.MAC == "") && (errSandbox == nil || sandboxOf(e) == "")
		})
		return nil
	})
	if err != nil || len(missing) == 0 {
		return err
	}
	return y.Update("endpoints indexed", func(tx store.Tx) error {
		for _, e := range missing {
			if err := errors.Join(SetMAC(tx, e), setSandbox(tx, modes.Endpoint{}, e)); err != nil {
				return err
			}
		}
		return nil
	})
}
