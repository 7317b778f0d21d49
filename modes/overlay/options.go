package overlay

import "netyard/modes"

var (
	encrypted = modes.BoolOption{
		Name: "encrypted", Bare: "true",
		Fixed: "what is between the hosts is all of one kind; make the network anew",
		Help:  "what is between the hosts is inside WireGuard, or is not at all; the first of the hosts says it",
	}
	name = modes.TextOption{
		Name:  "overlay",
		Fixed: "it is another network; make the network anew",
		Help:  "name of the network in the cluster, on all of its hosts; the first of them says the subnets",
	}
)
