// Package index finds the records of endpoints by what they have: a hardware address, a sandbox. So a request reads the
// endpoints that concern it, and not all.
package index

import (
	"errors"
	"strings"

	"netyard/modes"
	"netyard/store"
)

// macs has the ID of the endpoint with each hardware address of a network; sandboxes has the endpoints in each sandbox,
// in its keys.
var (
	macs      = store.Bucket[string]{Name: "macs"}
	sandboxes = store.Bucket[string]{Name: "sandboxes"}
)

// Key returns the key of an endpoint. It begins with the network, so the endpoints of a network are together.
func Key(network, id string) string { return network + "/" + id }

// Replace records what an endpoint has, in place of what it had. An endpoint that is being deleted has nothing.
func Replace(tx store.Tx, was, is modes.Endpoint) error {
	return errors.Join(replaceMAC(tx, is), replaceSandbox(tx, was, is))
}

// Complete reports whether all that an endpoint has is recorded. What an older netyard recorded is not.
func Complete(tx store.Tx, e modes.Endpoint) bool {
	_, errMAC := macs.Get(tx, Key(e.NetworkID, e.MAC))
	_, errSandbox := sandboxes.Get(tx, sandboxKey(e))
	return (errMAC == nil || e.MAC == "") && (errSandbox == nil || sandboxKey(e) == "")
}

// WithMAC returns the ID of the endpoint of a network with a hardware address; store.ErrNotFound: there is none.
func WithMAC(tx store.Tx, network, mac string) (id string, err error) {
	return macs.Get(tx, Key(network, mac))
}

// In returns the keys of the endpoints in a sandbox, in order.
func In(tx store.Tx, sandbox string) (keys []string) {
	prefix := sandboxPrefix(sandbox)
	for _, key := range sandboxes.Keys(tx, prefix) {
		keys = append(keys, strings.TrimPrefix(key, prefix))
	}
	return keys
}

// replaceMAC leaves the address to another endpoint that has it by now.
func replaceMAC(tx store.Tx, e modes.Endpoint) error {
	key := Key(e.NetworkID, e.MAC)
	switch holder, err := macs.Get(tx, key); {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	case e.Phase != modes.Deleting && holder != e.ID && e.MAC != "":
		return macs.Put(tx, key, e.ID)
	case e.Phase == modes.Deleting && holder == e.ID:
		return macs.Delete(tx, key)
	}
	return nil
}

func replaceSandbox(tx store.Tx, was, is modes.Endpoint) error {
	old, key := sandboxKey(was), sandboxKey(is)
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
	return sandboxes.Put(tx, key, is.ID)
}

func sandboxPrefix(sandbox string) string { return sandbox + "\x00" }

// sandboxKey returns the key of an endpoint in its sandbox; empty if it is in none.
func sandboxKey(e modes.Endpoint) string {
	if e.Sandbox == "" || e.Phase == modes.Deleting {
		return ""
	}
	return sandboxPrefix(e.Sandbox) + Key(e.NetworkID, e.ID)
}
