package book

import (
	"errors"
	"net/netip"

	"netyard/modes"
	"netyard/store"
)

// Claims says which endpoint of a network has an address, so that neither a late release nor a reaper takes it away.
var Claims = store.Bucket[string]{Name: "claims"}

// ClaimKey is where the claim on an address of a network is.
func ClaimKey(network string, a netip.Addr) string { return network + "/" + a.String() }

// setClaims makes the claims of an endpoint what its record says.
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

// DropClaim ends a claim, unless another has it by now.
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

// Claimed says whether somebody has an address of a network.
func Claimed(tx store.Tx, network string, a netip.Addr) (bool, error) {
	_, err := Claims.Get(tx, ClaimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
