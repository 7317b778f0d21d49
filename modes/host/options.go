package host

import "netyard/modes"

var (
	device = modes.LinkOption{
		Name:  "device",
		Fixed: "the container that runs has that card; make the network anew",
		Help:  "a whole network card of the host that the one container of the network gets, and the host gets back",
	}
	exclude = modes.PortsOption{
		Name: "exclude", Set: true,
		Help: "ports that the host does not share with the containers, such as 22,8000-8100/udp",
	}
	include = modes.PortsOption{
		Name: "include", Set: true,
		Help: "the only ports that the host shares with the containers; all of them unless said otherwise",
	}
	strict = modes.BoolOption{
		Name: "strict", Default: "false",
		Fixed: "it says whether the network is made at all",
		Help:  "refuse what is not the host's own network namespace, which no driver can give: docker run --network host",
	}
)
