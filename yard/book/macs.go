package book

import (
	"errors"

	"netyard/modes"
	"netyard/store"
)

// MACs has the endpoint of each hardware address on a network.
var MACs = store.Bucket[string]{Name: "macs"}

// MACKey returns the key of a hardware address on a network.
func MACKey(network, mac string) string { return network + "/" + mac }

// SetMAC records the hardware address of an endpoint, or deletes it if the endpoint is being deleted.
func SetMAC(tx store.Tx, e modes.Endpoint) error {
	key := MACKey(e.NetworkID, e.MAC)
	switch holder, err := MACs.Get(tx, key); {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	case e.Phase != modes.Deleting && holder != e.ID && e.MAC != "":
		return MACs.Put(tx, key, e.ID)
	case e.Phase == modes.Deleting && holder == e.ID:
		return MACs.Delete(tx, key)
	}
	return nil
}
