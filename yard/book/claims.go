package book

import (
	"errors"
	"net/netip"

	"netyard/modes"
	"netyard/store"
)

// Claims has the endpoint, or hold, of each address of a network. It protects the address from late releases, and from
// the removal of orphans.
var Claims = store.Bucket[string]{Name: "claims"}

// ClaimKey returns the key of the claim on an address of a network.
func ClaimKey(network string, a netip.Addr) string { return network + "/" + a.String() }

// setClaims records the claims of an endpoint, or deletes them if the endpoint is being deleted.
func setClaims(tx store.Tx, e modes.Endpoint) error {
	for _, a := range e.Addrs {
		key := ClaimKey(e.NetworkID, a.Addr())
		if e.Phase == modes.Deleting {
			if err := DropClaim(tx, key, e.ID); err != nil {
				return err
			}
			continue
		}
		if err := Claims.Put(tx, key, e.ID); err != nil {
			return err
		}
	}
	return nil
}

// DropClaim deletes the claim of an endpoint, unless another one has the address by now.
func DropClaim(tx store.Tx, key, endpoint string) error {
	holder, err := Claims.Get(tx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && holder != endpoint {
		return nil
	}
	if err != nil {
		return err
	}
	return Claims.Delete(tx, key)
}

// Claimed reports whether an endpoint has an address of a network, or it is held.
func Claimed(tx store.Tx, network string, a netip.Addr) (bool, error) {
	_, err := Claims.Get(tx, ClaimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
