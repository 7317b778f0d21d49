package cli

import (
	"cmp"
	"strings"

	"github.com/urfave/cli/v2"

	"netyard/cli/api"
	"netyard/cli/table"
)

func (p Program) psCommand() *cli.Command {
	return table.List[api.Endpoint]{
		Fetch: func(c *cli.Context) ([]api.Endpoint, error) { return client(c).Endpoints(c.Context) },
		Order: byNetwork,
		ID:    func(e api.Endpoint) string { return e.ID },
		Columns: func(id table.Shortener) []table.Column[api.Endpoint] {
			return []table.Column[api.Endpoint]{
				{Head: "CONTAINER", Cell: func(e api.Endpoint) string { return containerOf(e, id) }},
				{Head: "ENGINE", Drop: 2, Cell: func(e api.Endpoint) string { return e.Engine }},
				{Head: "NETWORK", Drop: 8, Cell: func(e api.Endpoint) string { return networkOf(e, id) }},
				{Head: "MODE", Drop: 4, Cell: func(e api.Endpoint) string { return e.Mode }},
				{Head: "ADDRESS", Drop: 7, Cell: func(e api.Endpoint) string {
					return strings.Join(e.Addresses, ", ")
				}},
				{Head: "MAC", Drop: 1, Cell: func(e api.Endpoint) string { return e.MAC }},
				{Head: "INTERFACE", Drop: 3, Cell: func(e api.Endpoint) string { return e.Interface }},
				{Head: "PORTS", Drop: 5, Min: 12, Cell: func(e api.Endpoint) string {
					return strings.Join(e.Ports, ", ")
				}},
				{Head: "STATE", Drop: 6, Cell: func(e api.Endpoint) string { return e.State }},
			}
		},
		Examples: []string{"netyard ps", `netyard ps --format '{{.Container}}\t{{join .Addresses ", "}}'`},
	}.Command(p.Width, &cli.Command{
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
func containerOf(e api.Endpoint, id table.Shortener) string {
	return cmp.Or(e.Container, id(e.ContainerID), id(e.ID))
}

// networkOf returns the name of the endpoint's network, or its ID.
func networkOf(e api.Endpoint, id table.Shortener) string {
	return cmp.Or(e.Network, id(e.NetworkID))
}
