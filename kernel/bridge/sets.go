package bridge

import "netyard/kernel/rule"

const (
	// Bound holds the ports with an egress policy: they send from their own addresses, whatever antispoof says.
	Bound rule.SetName = "bound"

	// Bridges holds the bridge of each network.
	Bridges rule.SetName = "bridges"
	// Internal holds the bridges of internal networks, which have no way out.
	Internal rule.SetName = "internal"
	// Reachable holds the pairs of bridges that may reach each other; (b, b) lets the containers of b reach each other.
	Reachable rule.SetName = "talk"
	// NAT4 and NAT6 hold the subnets whose traffic is masqueraded when it leaves the host.
	NAT4 rule.SetName = "nat4"
	// NAT6 is NAT4 for IPv6.
	NAT6 rule.SetName = "nat6"
	// Own holds the pair (b, b) for each of netyard's bridges.
	Own rule.SetName = "own"
	// Foreign holds the bridges of other container managers, found by watching the links and named by engines.
	Foreign rule.SetName = "foreign"
	// Others holds the links that lead to networks of other programs: their bridges, and links to one container each.
	Others rule.SetName = "others"
	// Same holds the pair (b, b) for each bridge that is not netyard's: with br_netfilter, frames that stay on one
	// bridge pass the forward hook.
	Same rule.SetName = "same"
)
