package enforce

import (
	"net/netip"

	"netyard/policy"
	"netyard/yard/book"
)

// decidedAddrs returns the addresses that the policies on record decide about completely: those of all endpoints, or
// none while policies may be missing from the records.
func decidedAddrs(y *book.Book, es []policy.Endpoint) (addrs []netip.Addr, err error) {
	lost, err := y.PoliciesLost()
	if lost || err != nil {
		return nil, err
	}
	for _, e := range es {
		addrs = append(addrs, e.Addrs...)
	}
	return addrs, nil
}
