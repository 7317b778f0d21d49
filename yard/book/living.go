package book

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"netyard/modes"
	"netyard/store"
)

// A Holder is an endpoint that has what another one requests.
type Holder struct{ Network, Endpoint string }

// A HeldError says that a request failed since other endpoints have what it needs.
type HeldError struct {
	Err     error
	Holders []Holder
	// AnyOne: it is enough that one of the holders is removed.
	AnyOne bool
}

// Error returns the text of the request's error.
func (e *HeldError) Error() string { return e.Err.Error() }

// Unwrap returns the request's error.
func (e *HeldError) Unwrap() error { return e.Err }

// ErrUnjudged is the cause of a HeldError whose request can succeed, but gets what it prefers if its holders are dead.
var ErrUnjudged = errors.New("not known whether it lives")

// AddressHolder returns the endpoint that has an address of a network; found is false if none has, or it is held.
func AddressHolder(tx store.Tx, network string, a netip.Addr) (h Holder, found bool, err error) {
	id, err := Claims.Get(tx, ClaimKey(network, a))
	if errors.Is(err, store.ErrNotFound) {
		return h, false, nil
	}
	return Holder{network, id}, err == nil && !strings.HasPrefix(id, holdPrefix), err
}

// HoldersOf adds to an error the endpoints that have these addresses of a network. If none is named, it adds all of the
// network's endpoints, of which it is enough to remove one.
func HoldersOf(tx store.Tx, network string, cause error, addrs ...netip.Addr) (*HeldError, error) {
	held := &HeldError{Err: cause}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		h, found, err := AddressHolder(tx, network, a)
		if err != nil {
			return nil, err
		}
		if found {
			held.Err, held.Holders = fmt.Errorf("%w (%s)", held.Err, InUseBy(tx, h)), append(held.Holders, h)
		}
	}
	if len(addrs) > 0 && addrs[0].IsValid() {
		return held, nil
	}
	es, err := Endpoints.List(tx, EndpointKey(network, ""))
	for _, e := range es {
		held.Holders = append(held.Holders, Holder{Network: e.NetworkID, Endpoint: e.ID})
	}
	held.AnyOne = true
	return held, err
}

// WithHolders is HoldersOf for the addresses that an attachment requests.
func WithHolders(tx store.Tx, r AttachRequest, cause error) error {
	held, err := HoldersOf(tx, r.Network.ID, cause, r.Addrs...)
	if err != nil {
		return errors.Join(cause, err)
	}
	return held
}

// InUseBy names the container of an endpoint and its network, for the error of a conflict.
func InUseBy(tx store.Tx, h Holder) string {
	who := "endpoint " + modes.Short(h.Endpoint)
	if e, err := GetEndpoint(tx, h.Network, h.Endpoint); err == nil {
		who = Owned(e)
		if e.Container.Name != "" && e.Container.Engine != "" {
			who += " of " + e.Container.Engine
		}
	}
	if n, err := GetNetwork(tx, h.Network); err == nil {
		who += " on network " + Label(n)
	}
	return who
}
