package overlay

import "netyard/modes"

var (
	encrypted = modes.BoolOption{
		Name: "encrypted", Bare: "true",
		Fixed: "it applies to all traffic between the hosts; recreate the network",
		Help:  "encrypt traffic between the hosts with WireGuard, and send none in clear; set by the first host",
	}
	name = modes.TextOption{
		Name:  "overlay",
		Fixed: "it would be another network; recreate the network",
		Help:  "name of the network in the cluster, the same on all hosts; the first host sets the subnets",
	}
)
