package cli

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
)

func (p Program) portsCommand() *cli.Command {
	return table.List[api.Port]{
		Fetch: func(c *cli.Context) ([]api.Port, error) { return client(c).Ports(c.Context) },
		Order: byHostPort,
		Columns: func(id table.Shortener) []table.Column[api.Port] {
			return []table.Column[api.Port]{
				{Head: "HOST", Cell: hostCell},
				{Head: "PROTO", Cell: func(p api.Port) string { return p.Proto }},
				{Head: "CONTAINER", Cell: func(p api.Port) string {
					return cmp.Or(p.Container, id(p.ContainerID), id(p.EndpointID))
				}},
				{Head: "TARGET", Drop: 3, Cell: func(p api.Port) string {
					return net.JoinHostPort(p.Address, span(p.Port, p.PortEnd))
				}},
				{Head: "ENGINE", Drop: 1, Cell: func(p api.Port) string { return p.Engine }},
				{Head: "NETWORK", Drop: 2, Cell: func(p api.Port) string {
					return cmp.Or(p.Network, id(p.NetworkID))
				}},
				{Head: "STATE", Drop: 4, Cell: stateOf},
			}
		},
		Examples: []string{"netyard ports", "netyard ports --format '{{.Container}} {{.HostPort}}/{{.Proto}}'"},
	}.Command(p.Width, &cli.Command{
		Name: "ports", Usage: "list the published ports of all containers",
		Description: "docker ps does not show ports on a plugin's networks.\n" +
			"HOST is the published address and port, TARGET the container's.",
	})
}

// stateOf returns a port's state, with the owner that it conflicts with.
func stateOf(p api.Port) string {
	if p.Owner == "" {
		return p.State
	}
	return p.State + ": " + p.Owner
}

// hostCell returns where a port is published: at an address of the host, or, on a routed network, at another port of
// the container's own address. It is empty if that port is the container's own.
func hostCell(p api.Port) string {
	if p.Routed && p.HostPort == p.Port {
		return ""
	}
	return net.JoinHostPort(p.HostIP, span(p.HostPort, p.HostPortEnd))
}

// span formats a port, or the first and last port of a range.
func span(first, last int) string {
	if last <= first {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// byHostPort is the order of netyard ports.
func byHostPort(a, b api.Port) int {
	x, _ := netip.ParseAddr(a.HostIP)
	y, _ := netip.ParseAddr(b.HostIP)
	return cmp.Or(cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Proto, b.Proto), x.Compare(y))
}
