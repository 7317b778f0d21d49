package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) portsCommand() *cli.Command {
	return list[api.Port]{
		fetch: func(c *cli.Context) ([]api.Port, error) { return client(c).Ports(c.Context) },
		order: byHostPort,
		columns: func(id shortener) []column[api.Port] {
			return []column[api.Port]{
				{head: "HOST", cell: hostCell},
				{head: "PROTO", cell: func(p api.Port) string { return p.Proto }},
				{head: "CONTAINER", cell: func(p api.Port) string { return cmp.Or(p.Container, id(p.ContainerID), id(p.EndpointID)) }},
				{head: "TARGET", fit: fit{goes: 3}, cell: func(p api.Port) string { return net.JoinHostPort(p.Address, span(p.Port, p.PortEnd)) }},
				{head: "ENGINE", fit: fit{goes: 1}, cell: func(p api.Port) string { return p.Engine }},
				{head: "NETWORK", fit: fit{goes: 2}, cell: func(p api.Port) string { return cmp.Or(p.Network, id(p.NetworkID)) }},
				{head: "STATE", fit: fit{goes: 4}, cell: stateOf},
			}
		},
	}.command(p.Width, &cli.Command{
		Name: "ports", Usage: "list the published ports of all containers, which docker ps cannot show for a plugin's networks",
	})
}

// stateOf is a port's state, and who else is in it.
func stateOf(p api.Port) string {
	if p.Owner == "" {
		return p.State
	}
	return p.State + ": " + p.Owner
}

// hostCell is where a port is published: on the host, or at another port of the container's own address. One that is
// the same port of that address is nowhere else.
func hostCell(p api.Port) string {
	if p.Routed && p.HostPort == p.Port {
		return ""
	}
	return net.JoinHostPort(p.HostIP, span(p.HostPort, p.HostPortEnd))
}

// span is a port, or the first and the last of a range.
func span(first, last int) string {
	if last <= first {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func byHostPort(a, b api.Port) int {
	x, _ := netip.ParseAddr(a.HostIP)
	y, _ := netip.ParseAddr(b.HostIP)
	return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Proto, b.Proto), x.Compare(y))
}
