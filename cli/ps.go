package cli

import (
	"cmp"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
)

func (p Program) psCommand() *cli.Command {
	return list[api.Endpoint]{
		fetch: func(c *cli.Context) ([]api.Endpoint, error) { return client(c).Endpoints(c.Context) },
		order: byNetwork,
		id:    func(e api.Endpoint) string { return e.ID },
		columns: func(id shortener) []column[api.Endpoint] {
			return []column[api.Endpoint]{
				{head: "CONTAINER", cell: func(e api.Endpoint) string { return containerOf(e, id) }},
				{head: "ENGINE", fit: fit{drop: 2}, cell: func(e api.Endpoint) string { return e.Engine }},
				{head: "NETWORK", fit: fit{drop: 8}, cell: func(e api.Endpoint) string { return networkOf(e, id) }},
				{head: "MODE", fit: fit{drop: 4}, cell: func(e api.Endpoint) string { return e.Mode }},
				{head: "ADDRESS", fit: fit{drop: 7}, cell: func(e api.Endpoint) string {
					return strings.Join(e.Addresses, ", ")
				}},
				{head: "MAC", fit: fit{drop: 1}, cell: func(e api.Endpoint) string { return e.MAC }},
				{head: "INTERFACE", fit: fit{drop: 3}, cell: func(e api.Endpoint) string { return e.Interface }},
				{head: "PORTS", fit: fit{drop: 5, min: 12}, cell: func(e api.Endpoint) string {
					return strings.Join(e.Ports, ", ")
				}},
				{head: "STATE", fit: fit{drop: 6}, cell: func(e api.Endpoint) string { return e.State }},
			}
		},
		examples: []string{"netyard ps", `netyard ps --format '{{.Container}}\t{{join .Addresses ", "}}'`},
	}.command(p.Width, &cli.Command{
		Name: "ps", Aliases: []string{"ls"},
		Usage: "list containers with their networks, addresses, interfaces and ports",
	})
}

// byNetwork is the order of netyard ps: by network, then by container.
func byNetwork(a, b api.Endpoint) int {
	whole := func(id string) string { return id }
	return cmp.Or(
		cmp.Compare(networkOf(a, whole), networkOf(b, whole)),
		cmp.Compare(containerOf(a, whole), containerOf(b, whole)),
		cmp.Compare(a.ID, b.ID),
	)
}

// containerOf returns the container's name, or its ID, or, before the engine was asked, the endpoint's ID.
func containerOf(e api.Endpoint, id shortener) string {
	return cmp.Or(e.Container, id(e.ContainerID), id(e.ID))
}

// networkOf returns the name of the endpoint's network, or its ID.
func networkOf(e api.Endpoint, id shortener) string {
	return cmp.Or(e.Network, id(e.NetworkID))
}
