package enforce

import (
	"net/netip"
	"slices"

	"netyard/policy"
	"netyard/yard/book"
)

// settled are the addresses of which the records know all that policies say. While the policies may not be all there
// are, there are none.
func settled(y *book.Book, es []policy.Endpoint) (addrs []netip.Addr, err error) {
	lost, err := y.PoliciesLost()
	if lost || err != nil {
		return nil, err
	}
	for _, e := range es {
		addrs = slices.Concat(addrs, e.Addrs)
	}
	return addrs, nil
}
