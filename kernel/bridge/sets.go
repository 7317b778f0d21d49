package bridge

import (
	"github.com/google/nftables/expr"

	"netyard/kernel/rule"
)

const (
	// Bound has the ports whose egress is decided: they send from their own addresses, whatever antispoof says.
	Bound rule.SetName = "bound"

	// Bridges has the bridge of each network.
	Bridges rule.SetName = "bridges"
	// Internal has those of them that have no way out.
	Internal rule.SetName = "internal"
	// Talk has the pairs of bridges that may talk; (b, b) lets the containers of b reach each other.
	Talk rule.SetName = "talk"
	// NAT4 and NAT6 have the subnets that leave masqueraded.
	NAT4 rule.SetName = "nat4"
	// NAT6 is NAT4 for IPv6.
	NAT6 rule.SetName = "nat6"
	// Own has the pairs (b, b) of netyard's bridges.
	Own rule.SetName = "own"
	// Foreign has the bridges of other managers of containers, found by watching the links.
	Foreign rule.SetName = "foreign"
	// Same has the pairs (b, b) of all bridges that are not netyard's: with br_netfilter what stays on one passes the
	// forward hook.
	Same rule.SetName = "same"
)

// Between matches what is forwarded for no container at all, neither netyard's nor another manager's.
func Between(b rule.Book) []expr.Any {
	return rule.Join(b.IIF(Bridges, true), b.IIF(Foreign, true), b.OIF(Foreign, true), b.IfPair(Same, true))
}
