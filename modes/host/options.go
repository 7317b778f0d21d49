package host

import "netyard/modes"

var (
	device = modes.LinkOption{
		Name:  "device",
		Fixed: "the running container has that card; recreate the network",
		Help:  "network card of the host to move into the network's one container, and back afterwards",
	}
	exclude = modes.PortsOption{
		Name: "exclude", Set: true,
		Help: "ports of containers that do not become ports of the host, such as 22,8000-8100/udp",
	}
	include = modes.PortsOption{
		Name: "include", Set: true,
		Help: "the only ports of containers that become ports of the host; default: all",
	}
	strict = modes.BoolOption{
		Name: "strict", Default: "false",
		Fixed: "it only decides whether the network is created",
		Help: "refuse to create the network, since no driver can give the host's own network namespace; " +
			"use docker run --network host",
	}
)
